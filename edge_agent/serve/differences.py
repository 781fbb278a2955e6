"""How the answers of two versions to the same inputs differ, counted item by item.

An item disagrees when the two name another class (`pipeline.classes`, by name: the versions may
order their labels differently).  Where one names none, it disagrees when an output has another
shape or type, is missing, or differs in a value that is no floating-point number.

Numbers are those of the floating-point outputs that both have, with equal shapes; a value that is
finite in one answer only makes its item disagree.  Differences are summed, so windows add up.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_agent.pipeline.classes import predicted_of
from edge_agent.runtime import Array, Tensors
from edge_agent.wire.manifest import Manifest
from edge_agent.wire.messages import ComparisonReport

_LARGEST: Final = 1e30
"""Larger differences count as this one, so that sums stay finite."""


class Differences:
    """See the module.  Not thread-safe.

    Attributes:
        errors: requests that the version failed or refused although the live one answered.
        shed: requests that were left out under load.
    """

    def __init__(self) -> None:
        self.errors = 0
        self.shed = 0
        self._compared = 0
        self._disagreed = 0
        self._scored = 0
        self._abs_max = 0.0
        self._abs_sum = 0.0
        self._numbers = 0

    def add(
        self, live: Tensors, live_manifest: Manifest, other: Tensors, other_manifest: Manifest,
        items: int,
    ) -> None:  # fmt: skip
        """Compare two answers of `items` items, each output [items, …]."""
        disagree = np.zeros(items, dtype=bool)
        named = np.zeros(items, dtype=bool)
        for index in range(items):
            mine = predicted_of(live_manifest, live, index)
            theirs = predicted_of(other_manifest, other, index)
            named[index] = bool(mine and theirs)
            disagree[index] = named[index] and mine != theirs
        for name in live.keys() | other.keys():
            unlike = self._unlike(live.get(name), other.get(name), items)
            disagree |= unlike & ~named
        scored = self._add_numbers(live, other, items, disagree)
        self._compared += items
        self._disagreed += int(disagree.sum())
        self._scored += items if scored else 0

    def report(self) -> ComparisonReport:
        """All that was counted."""
        return ComparisonReport(
            compared=self._compared,
            disagreed=self._disagreed,
            errors=self.errors,
            shed=self.shed,
            scored=self._scored,
            abs_max=self._abs_max,
            abs_mean=self._abs_sum / self._numbers if self._numbers else 0.0,
        )

    @property
    def empty(self) -> bool:
        return not (self._compared or self.errors or self.shed)

    @staticmethod
    def _unlike(mine: Array | None, theirs: Array | None, items: int) -> Array:
        """Items in which an output that is no floating-point number differs."""
        if mine is None or theirs is None or not _alike(mine, theirs, items):
            return np.ones(items, dtype=bool)
        if mine.dtype.kind == "f":
            return np.zeros(items, dtype=bool)
        return _any_of_item(np.not_equal(mine, theirs))

    def _add_numbers(self, live: Tensors, other: Tensors, items: int, disagree: Array) -> bool:
        """Sum up the differences of numbers; whether there were any to compare."""
        found = False
        for name, mine in live.items():
            theirs = other.get(name)
            if theirs is None or mine.dtype.kind != "f" or not _alike(mine, theirs, items):
                continue
            found = True
            finite, other_finite = np.isfinite(mine), np.isfinite(theirs)
            disagree |= _any_of_item(np.not_equal(finite, other_finite))
            both = finite & other_finite
            with np.errstate(over="ignore"):
                gaps = np.abs(mine[both].astype(np.float64) - theirs[both].astype(np.float64))
            gaps = np.minimum(gaps, _LARGEST)
            if gaps.size:
                self._abs_max = max(self._abs_max, float(gaps.max()))
                self._abs_sum += float(gaps.sum())
                self._numbers += gaps.size
        return found


def _alike(mine: Array, theirs: Array, items: int) -> bool:
    return (
        mine.shape == theirs.shape
        and mine.dtype.kind == theirs.dtype.kind
        and mine.ndim > 0
        and len(mine) == items
    )


def _any_of_item(each: Array) -> Array:
    """Whether anything of an item is true, for every item of the leading axis."""
    return np.asarray(each.reshape(len(each), -1).any(axis=1))
