"""A mergeable summary of a stream of signals: count, Σx, Σxxᵀ.  A few kilobytes, numpy only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from edge_agent.drift.errors import TooFewSignals, UnreadableSummary
from edge_agent.drift.signals import SIGNALS
from edge_agent.runtime.npz import read_npz


def _zeros() -> NDArray[np.float64]:
    return np.zeros(SIGNALS, dtype=np.float64)


def _square_zeros() -> NDArray[np.float64]:
    return np.zeros((SIGNALS, SIGNALS), dtype=np.float64)


@dataclass(slots=True)
class Summary:
    """Sums over a stream.  Not thread-safe; the owner locks.

    Attributes:
        count: items added.
        sum: Σx, [12].
        outer: Σxxᵀ, [12, 12].
    """

    count: int = 0
    sum: NDArray[np.float64] = field(default_factory=_zeros)
    outer: NDArray[np.float64] = field(default_factory=_square_zeros)

    def add(self, signals: NDArray[np.float64]) -> None:
        """Add a batch [n, 12]; rows with NaN or infinity are left out, for one would spoil all."""
        rows = signals[np.isfinite(signals).all(axis=1)]
        self.count += len(rows)
        self.sum = self.sum + rows.sum(axis=0)
        self.outer = self.outer + rows.T @ rows

    def merge(self, other: Summary) -> None:
        """Add everything that `other` has seen."""
        self.count += other.count
        self.sum = self.sum + other.sum
        self.outer = self.outer + other.outer

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean [12].

        Raises:
            TooFewSignals: nothing was added.
        """
        if self.count < 1:
            raise TooFewSignals("a mean needs one observation")
        return self.sum / self.count

    @property
    def cov(self) -> NDArray[np.float64]:
        """Unbiased covariance [12, 12].

        Raises:
            TooFewSignals: fewer than two were added.
        """
        if self.count < 2:
            raise TooFewSignals("a covariance needs two observations")
        mean = self.mean
        return (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)

    def to_json(self) -> str:
        return json.dumps(
            {"count": self.count, "sum": self.sum.tolist(), "outer": self.outer.tolist()}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`.

        Raises:
            UnreadableSummary: not such a text.
        """
        try:
            fields = json.loads(text)
            return cls._checked(
                int(fields["count"]),
                np.asarray(fields["sum"], dtype=np.float64),
                np.asarray(fields["outer"], dtype=np.float64),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise UnreadableSummary(f"not a summary: {error}") from error

    def save(self, path: Path) -> None:
        """Write an `.npz` with `count`, `sum` and `outer`."""
        with path.open("wb") as file:
            np.savez(file, count=np.int64(self.count), sum=self.sum, outer=self.outer)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` or `write_reference` wrote.

        Raises:
            UnreadableSummary: missing, damaged, or of another shape.
        """
        try:
            arrays = read_npz(path)
            return cls._checked(
                int(arrays["count"]),
                arrays["sum"].astype(np.float64),
                arrays["outer"].astype(np.float64),
            )
        except UnreadableSummary:
            raise
        except KeyError as error:
            raise UnreadableSummary(f"{path.name}: holds no {error.args[0]!r}") from error
        except (ValueError, TypeError) as error:
            raise UnreadableSummary(str(error)) from error

    @classmethod
    def _checked(cls, count: int, total: NDArray[np.float64], outer: NDArray[np.float64]) -> Self:
        if count < 0 or total.shape != (SIGNALS,) or outer.shape != (SIGNALS, SIGNALS):
            raise UnreadableSummary(f"sums of shape {total.shape} and {outer.shape}")
        if not (np.isfinite(total).all() and np.isfinite(outer).all()):
            raise UnreadableSummary("the sums are not finite")
        return cls(count, total, outer)
