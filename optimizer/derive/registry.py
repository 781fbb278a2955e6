"""What a derivation is, how it is found by name, and what a project's derivations make.

    @derivation("prune", config=Prune)
    def prune(context: DeriveContext, config: Prune) -> Derived: ...

Rules:
    * What is to be derived follows from the sizes of the trained members alone, so it can be
      planned before any of it is done.
    * A derivation that cannot be applied is one clear line; the others go on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from edge_agent.wire.base import describe
from edge_agent.wire.ids import Slug, is_slug
from edge_agent.wire.manifest import StepSpec
from optimizer.errors import DeriveFailed, OptimizerError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from optimizer.fine_tuning import Trainer


@dataclass(frozen=True)
class Sized:
    """A trained member and how many parameters it has."""

    name: str
    parameters: int


@dataclass(frozen=True)
class Choice:
    """A member to derive from, and the member that teaches the new one."""

    parent: str
    teacher: str


class DeriveConfig(BaseModel, ABC):
    """Base of what a derivation can be told.

    Attributes:
        members: what is derived from; empty leaves it to the derivation.
        epochs: of training after it; half of the project's where `None`.
        rate: factor of the project's learning rate.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: tuple[Slug, ...] = ()
    epochs: int | None = Field(default=None, ge=1, le=10_000)
    rate: Annotated[float, Field(gt=0, le=10)] = 0.5

    @property
    @abstractmethod
    def suffix(self) -> str:
        """What follows the parent's name in that of the derived member."""

    @abstractmethod
    def choices(self, members: Sequence[Sized]) -> Sequence[Choice]:
        """What to derive from; `members` is not empty.

        Raises:
            DeriveFailed: nothing of the family suits.
        """

    def chosen(self, members: Sequence[Sized]) -> list[Sized]:
        """Those that `members` of the config names; those that are not there have dropped out."""
        return [one for one in members if one.name in self.members]


class Wanted(BaseModel):
    """One member to derive, as it travels between processes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    parent: str
    teacher: str
    derivation: str
    config: dict[str, JsonValue] = {}


@dataclass(frozen=True)
class DeriveContext:
    """What a derivation works on.

    Attributes:
        earlier: the same derived member of the version that is retrained: it keeps its shape and
            learns on from there.
    """

    trainer: Trainer
    parent: str
    teacher: str
    earlier: nn.Module | None = None

    def epochs(self, config: DeriveConfig) -> int:
        return config.epochs or max(1, self.trainer.spec.epochs // 2)


@dataclass(frozen=True)
class Derived:
    """A new member.

    Attributes:
        notes: what was done, for the report.
    """

    module: nn.Module
    notes: tuple[str, ...]


C = TypeVar("C", bound=DeriveConfig)
Apply = Callable[[DeriveContext, C], Derived]


@dataclass(frozen=True)
class Derivation:
    """A registered derivation with a config that fits it."""

    name: str
    config: DeriveConfig
    _apply: Callable[[DeriveContext], Derived]

    def apply(self, context: DeriveContext) -> Derived:
        """Make the member.

        Raises:
            DeriveFailed: the network does not suit, or cannot be trained again.
        """
        try:
            return self._apply(context)
        except DeriveFailed:
            raise
        except OptimizerError as error:
            raise DeriveFailed(f"{self.name} of {context.parent}: {error}") from error
        except Exception as error:  # what traces or takes apart a network raises whatever it does
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DeriveFailed(f"{self.name} of {context.parent}: {line}") from error


_registry: Final[dict[str, Callable[[Mapping[str, JsonValue]], Derivation]]] = {}


def derivation(name: str, *, config: type[C]) -> Callable[[Apply[C]], Apply[C]]:
    """Register a derivation."""

    def decorate(function: Apply[C]) -> Apply[C]:
        def configured(values: Mapping[str, JsonValue]) -> Derivation:
            try:
                parsed = config.model_validate(dict(values))
            except ValidationError as error:
                raise DeriveFailed(f"derivation '{name}': {describe(error)}") from error
            return Derivation(name, parsed, lambda context: function(context, parsed))

        _registry[name] = configured
        return function

    return decorate


def derivations() -> list[str]:
    """Names of the registered derivations, in the order in which they were registered."""
    return list(_registry)


def find(name: str, config: Mapping[str, JsonValue] | None = None) -> Derivation:
    """The derivation `name`, told `config`.

    Raises:
        DeriveFailed: there is none of that name, or the config does not fit.
    """
    configured = _registry.get(name)
    if configured is None:
        raise DeriveFailed(f"unknown derivation '{name}'{did_you_mean(name, _registry)}")
    return configured(config or {})


def planned(
    specs: Sequence[StepSpec], members: Sequence[Sized]
) -> tuple[tuple[Wanted, ...], tuple[str, ...]]:
    """What `specs` make of trained members, and a line for each spec that makes nothing of them.

    Raises:
        DeriveFailed: a spec is unknown or its config does not fit.
    """
    wanted: dict[str, Wanted] = {}
    notes: list[str] = []
    taken = {one.name for one in members}
    for spec in specs:
        found = find(spec.name, spec.config)
        try:
            choices = found.config.choices(members)
            for choice in choices:
                name = f"{choice.parent}-{found.config.suffix}"
                if name in taken:
                    raise DeriveFailed(f"{spec.name}: there is a member '{name}' already")
                if not is_slug(name):
                    raise DeriveFailed(f"{spec.name}: '{name}' is too long for a name")
                taken.add(name)
                wanted[name] = Wanted(
                    name=name,
                    parent=choice.parent,
                    teacher=choice.teacher,
                    derivation=spec.name,
                    config=dict(spec.config),
                )
        except DeriveFailed as error:
            notes.append(str(error))
    return tuple(wanted.values()), tuple(notes)
