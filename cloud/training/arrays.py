"""Rows of a dataset as one `.npz` file: how they reach a child process and come back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime.session import Tensors

_INPUT: Final = "input:"


@dataclass(frozen=True)
class Rows:
    """Labelled rows.

    Attributes:
        inputs: the pipeline's inputs, each with a leading axis of n.
        labels: class indices INT64 [n].
        split: "train", "eval", "golden" or "field" of each row; empty where not yet split.
        weight: weight of each row in the loss FP64 [n].
    """

    inputs: Tensors
    labels: NDArray[np.int64]
    split: NDArray[np.str_] = field(default_factory=lambda: np.array([], dtype=np.str_))
    weight: NDArray[np.float64] = field(default_factory=lambda: np.array([], dtype=np.float64))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[Any]) -> Rows:
        """The rows that a boolean mask or an index array picks."""
        return Rows(
            {name: array[rows] for name, array in self.inputs.items()},
            self.labels[rows],
            self.split[rows] if len(self.split) else self.split,
            self.weight[rows] if len(self.weight) else self.weight,
        )

    def part(self, *splits: str) -> Rows:
        """The rows of these splits, in order."""
        return self.take(np.isin(self.split, splits))

    def save(self, path: Path) -> None:
        arrays: dict[str, NDArray[Any]] = {
            "labels": self.labels,
            "split": self.split,
            "weight": self.weight,
        }
        arrays |= {f"{_INPUT}{name}": array for name, array in self.inputs.items()}
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def open(cls, path: Path) -> Rows:
        with np.load(path, allow_pickle=False) as archive:
            inputs = {
                key.removeprefix(_INPUT): archive[key]
                for key in archive.files
                if key.startswith(_INPUT)
            }
            return cls(inputs, archive["labels"], archive["split"], archive["weight"])
