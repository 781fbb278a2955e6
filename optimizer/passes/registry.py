"""What a recipe is, and how it is found by name.

    @recipe("ort-int8", runtimes=("onnxruntime", "openvino"), precision="int8", config=OrtInt8)
    def ort_int8(context: PassContext, config: OrtInt8) -> Artifact: ...

A recipe turns the exported network into files that one or more runtimes open.  It judges nothing:
whether they are worth having is found out by evaluating and measuring them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from edge_agent.runtime import Tensors
from edge_agent.wire.base import describe
from edge_agent.wire.manifest import RuntimeName
from optimizer.errors import RecipeFailed, UnknownRecipe, did_you_mean
from optimizer.profiles import HardwareProfile

if TYPE_CHECKING:
    from optimizer.fine_tuning import Trainer

Precision = Literal["fp32", "fp16", "bf16", "int8", "int4"]
"""Of the arithmetic, or of the weights where these alone are stored in fewer bits (int4)."""


class RecipeConfig(BaseModel):
    """Base of what a recipe can be told; this one takes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class PassContext:
    """What a recipe works on.

    Attributes:
        source: the exported network, ONNX in fp32; never changed.
        calibration: inputs of the *network* (behind the pipeline's processors), [n, ...] each.
        directory: where the recipe writes its files; other files of the bundle stand there too.
        profile: what the files are to run on.
        seed: of every random choice.
        parent: files that the same recipe made of the network that this one was retrained from;
            quantisers keep its scales where they fit, so that the two have most bytes in common.
        member: name of the network, by which the trainer knows it.
        trainer: trains the network further; `None` where there is only its ONNX file.
    """

    source: Path
    calibration: Tensors
    directory: Path
    profile: HardwareProfile
    seed: int = 0
    parent: Path | None = None
    member: str = ""
    trainer: Trainer | None = None

    @property
    def calibration_rows(self) -> int:
        return min((len(array) for array in self.calibration.values()), default=0)

    def calibration_batches(self, rows: int, batch: int) -> list[Tensors]:
        """`rows` rows spread evenly over the calibration data, in batches, as views or copies.

        Raises:
            RecipeFailed: there is no calibration data.
        """
        count = self.calibration_rows
        if count == 0:
            raise RecipeFailed("quantisation needs calibration data, and there is none")
        chosen = np.unique(np.linspace(0, count - 1, min(rows, count)).astype(np.int64))
        parts = [chosen[start : start + batch] for start in range(0, len(chosen), batch)]
        return [{name: a[part] for name, a in self.calibration.items()} for part in parts]


@dataclass(frozen=True)
class Artifact:
    """What a recipe made.

    Attributes:
        runtimes: what can open the files; the first is the one they were made for.
        entry: file name that the runtime opens.
        files: names of all files, the entry among them.
        precision: of the arithmetic that the files ask for.
        notes: what a reader of the report should know of how they were made.
    """

    runtimes: tuple[RuntimeName, ...]
    entry: str
    files: tuple[str, ...]
    precision: Precision
    notes: tuple[str, ...] = ()

    @property
    def runtime(self) -> RuntimeName:
        """The runtime that the files were made for."""
        return self.runtimes[0]


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
        """Make the files.

        Raises:
            RecipeFailed: the network or the data does not suit the recipe.
        """
        try:
            return self._apply(context)
        except RecipeFailed:
            raise
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
