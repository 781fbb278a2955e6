"""What a recipe is, and how it is found by name.

    @recipe("ort-int8", runtimes=("onnxruntime", "openvino"), precision="int8", config=OrtInt8)
    def ort_int8(context: PassContext, config: OrtInt8) -> Artifact: ...

A recipe turns the exported network into files that one or more runtimes open.  It judges nothing:
whether they are worth having is found out by evaluating and measuring them.

Rules:
    * All files of a recipe appear, or none: it works in a directory of its own.
    * What it made is opened and must answer with finite numbers, whoever wrote the recipe.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar, get_args

from pydantic import JsonValue, ValidationError

from edge_agent.wire.base import describe
from edge_agent.wire.ids import is_slug
from edge_agent.wire.manifest import RuntimeName
from optimizer.disk_space import is_full
from optimizer.errors import DiskFull, RecipeFailed, UnknownRecipe, did_you_mean
from optimizer.passes import proof
from optimizer.passes.context import Artifact, PassContext, Precision, RecipeConfig

C = TypeVar("C", bound=RecipeConfig)
Apply = Callable[[PassContext, C], Artifact]


@dataclass(frozen=True)
class Recipe:
    """A registered recipe with a config that fits it.

    Attributes:
        runtimes: what can open its files; the first is the one they are made for.
        code: digest of the project's code that it comes from; empty for those of this package.
        trains: it trains the network further, which takes a trainer and time.
    """

    name: str
    runtimes: tuple[RuntimeName, ...]
    precision: Precision
    packages: tuple[str, ...]
    _apply: Callable[[PassContext], Artifact]
    code: str = ""
    trains: bool = False

    @property
    def runtime(self) -> RuntimeName:
        """The runtime that its files are made for."""
        return self.runtimes[0]

    def apply(self, context: PassContext) -> Artifact:
        """Make the files: all of them, or none.

        Raises:
            RecipeFailed: the network or the data does not suit the recipe, or its files do not
                answer.
            DiskFull: there is no room for them.
        """
        try:
            proof.require_fitting(context.source, context.calibration)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=context.directory) as scratch:
                directory = Path(scratch)
                artifact: object = self._apply(replace(context, directory=directory))
                if not isinstance(artifact, Artifact):
                    raise RecipeFailed(f"{self.name} gave {artifact!r:.100}, not an Artifact")
                proof.require_sound(artifact, directory, context.calibration)
                for name in artifact.files:
                    (directory / name).replace(context.directory / name)
            return artifact
        except RecipeFailed:
            raise
        except Exception as error:  # quantisers raise whatever their depths raise
            if is_full(error, context.directory):
                raise DiskFull.at(context.directory) from error
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RecipeFailed(f"{self.name}: {line}") from error


_registry: Final[dict[str, Callable[[Mapping[str, JsonValue]], Recipe]]] = {}
_own: Final[list[str]] = []
"""Names of those that a project brought along."""

_registering: Final[ContextVar[tuple[str, list[str]] | None]] = ContextVar(
    "registering", default=None
)
_on_request: Final[set[str]] = set()


def recipe(
    name: str,
    *,
    runtimes: tuple[RuntimeName, ...],
    precision: Precision,
    config: type[C],
    packages: Sequence[str] = (),
    trains: bool = False,
) -> Callable[[Apply[C]], Apply[C]]:
    """Register a recipe.

    Args:
        runtimes: what opens its files, the one that they are made for first; at least one.
        packages: modules it imports beside the runtime; where one is missing it cannot be applied.
        trains: it trains the network further, so it is tried only where a project names it.

    Raises:
        ValueError: the name is no slug or taken, or a runtime is unknown; said in one line.
    """
    project = _registering.get()
    digest = "" if project is None else project[0]
    if not is_slug(name):
        raise ValueError(f"a recipe's name is lower-case letters, digits and dashes, not {name!r}")
    if name in _registry:
        raise ValueError(f"there is a recipe '{name}' already")
    if not runtimes or not set(runtimes) <= set(get_args(RuntimeName)):
        raise ValueError(
            f"recipe '{name}' names the runtimes {runtimes!r}; known are "
            f"{', '.join(get_args(RuntimeName))}"
        )

    def decorate(function: Apply[C]) -> Apply[C]:
        def configured(values: Mapping[str, JsonValue]) -> Recipe:
            try:
                parsed = config.model_validate(dict(values))
            except ValidationError as error:
                raise RecipeFailed(f"recipe '{name}': {describe(error)}") from error
            return Recipe(
                name,
                runtimes,
                precision,
                tuple(packages),
                lambda context: function(context, parsed),
                digest,
                trains,
            )

        _registry[name] = configured
        if trains:
            _on_request.add(name)
        else:
            _on_request.discard(name)
        if project is not None:
            _own.append(name)
            project[1].append(name)
        return function

    return decorate


def recipes() -> list[str]:
    """Names of the recipes that are tried unasked, in the order in which they were registered."""
    return [name for name in _registry if name not in _on_request]


@contextmanager
def registering(digest: str) -> Iterator[list[str]]:
    """Within the block, recipes are those of a project whose code has this digest.

    Yields:
        Names of those that are registered within the block.
    """
    names: list[str] = []
    token = _registering.set((digest, names))
    try:
        yield names
    finally:
        _registering.reset(token)


def forget_own() -> None:
    """Take a project's recipes out again."""
    while _own:
        del _registry[_own.pop()]


def find(name: str, config: Mapping[str, JsonValue] | None = None) -> Recipe:
    """The recipe `name`, told `config`.

    Raises:
        UnknownRecipe: no such recipe.
        RecipeFailed: the config does not fit.
    """
    configured = _registry.get(name)
    if configured is None:
        raise UnknownRecipe(f"unknown recipe '{name}'{did_you_mean(name, _registry)}")
    return configured(config or {})
