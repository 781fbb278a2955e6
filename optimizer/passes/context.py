"""What a recipe works on, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edge_agent.runtime import Array, Tensors
from edge_agent.wire.manifest import RuntimeName
from optimizer.errors import RecipeFailed
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
        directory: where the recipe writes its files; what it leaves there besides is thrown away.
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

    def calibration_batches(self, rows: int, batch: int) -> Batches:
        """`rows` rows spread evenly over the calibration data, in batches made when asked for.

        Raises:
            RecipeFailed: there is no calibration data, or it is the same value throughout.
        """
        count = self.calibration_rows
        if count == 0:
            raise RecipeFailed("quantisation needs calibration data, and there is none")
        chosen = np.unique(np.linspace(0, count - 1, min(rows, count)).astype(np.int64))
        batches = Batches(self.calibration, chosen, batch)
        if all(_constant(array, chosen) for array in self.calibration.values()):
            raise RecipeFailed(
                "the calibration data is the same value throughout, which gives no ranges"
            )
        return batches


class Batches(Sequence[Tensors]):
    """Some rows of tensors in batches.  Each is copied out when it is asked for, never all."""

    def __init__(self, tensors: Tensors, rows: NDArray[np.int64], batch: int) -> None:
        self._tensors, self._rows = tensors, rows
        self.batch = batch

    @property
    def rows(self) -> int:
        return len(self._rows)

    def __len__(self) -> int:
        return -(-len(self._rows) // self.batch)

    @overload
    def __getitem__(self, index: int) -> Tensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensors]: ...
    def __getitem__(self, index: int | slice) -> Tensors | list[Tensors]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        start = index % len(self) * self.batch
        part = self._rows[start : start + self.batch]
        return {name: array[part] for name, array in self._tensors.items()}

    def of(self, batch: int) -> Batches:
        """The same rows in batches of another size."""
        return Batches(self._tensors, self._rows, batch)


def _constant(array: Array, rows: NDArray[np.int64]) -> bool:
    first = array[rows[0]].ravel()[:1]
    return all(bool(np.all(array[row] == first)) for row in rows)


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
