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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from pydantic import JsonValue, ValidationError

from edge_agent.wire.base import describe
from edge_agent.wire.manifest import RuntimeName
from optimizer.errors import RecipeFailed, UnknownRecipe, did_you_mean
from optimizer.passes import proof
from optimizer.passes.context import Artifact, PassContext, Precision, RecipeConfig

C = TypeVar("C", bound=RecipeConfig)
Apply = Callable[[PassContext, C], Artifact]


@dataclass(frozen=True)
class Recipe:
    """A registered recipe with a config that fits it.

    Attributes:
        runtimes: what can open its files; the first is the one they are made for.
    """

    name: str
    runtimes: tuple[RuntimeName, ...]
    precision: Precision
    packages: tuple[str, ...]
    _apply: Callable[[PassContext], Artifact]

    @property
    def runtime(self) -> RuntimeName:
        """The runtime that its files are made for."""
        return self.runtimes[0]

    def apply(self, context: PassContext) -> Artifact:
        """Make the files: all of them, or none.

        Raises:
            RecipeFailed: the network or the data does not suit the recipe, its files do not answer,
                or the disk is full.
        """
        try:
            proof.require_fitting(context.source, context.calibration)
            with tempfile.TemporaryDirectory(prefix=".making-", dir=context.directory) as scratch:
                directory = Path(scratch)
                artifact = self._apply(replace(context, directory=directory))
                proof.require_sound(artifact, directory, context.calibration)
                for name in artifact.files:
                    (directory / name).replace(context.directory / name)
            return artifact
        except RecipeFailed:
            raise
        except OSError as error:
            raise RecipeFailed(f"{self.name}: {error.strerror or error}") from error
        except Exception as error:  # quantisers raise whatever their depths raise
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RecipeFailed(f"{self.name}: {line}") from error


_registry: Final[dict[str, Callable[[Mapping[str, JsonValue]], Recipe]]] = {}


def recipe(
    name: str,
    *,
    runtimes: tuple[RuntimeName, ...],
    precision: Precision,
    config: type[C],
    packages: Sequence[str] = (),
) -> Callable[[Apply[C]], Apply[C]]:
    """Register a recipe.

    Args:
        runtimes: what opens its files, the one that they are made for first; at least one.
        packages: modules it imports beside the runtime; where one is missing it cannot be applied.
    """

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
            )

        _registry[name] = configured
        return function

    return decorate


def recipes() -> list[str]:
    """Names of the registered recipes, in the order in which they were registered."""
    return list(_registry)


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
