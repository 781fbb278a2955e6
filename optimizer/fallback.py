"""Which layers of a network to leave in fp32, when all of it in int8 answers too badly.

Layers are taken in the order of the graph.  A tensor is quantised if a layer on either side of it
is, so what ruins the answers often lies between two layers; blocks of neighbours find it where
single layers would not.

    1. the shortest beginning of the network that, in fp32, makes the bounds hold: by halving
    2. the shortest end of that beginning that does: by halving
    3. of that block, parts are put back into int8 for as long as the bounds hold, those first that
       cost most milliseconds in fp32

Rules:
    * The number of evaluations is bounded; the cheapest set that was seen to hold is the result.
    * All in fp32 is no result: that is what the recipe "fp32" is for.

Source: step 3 is delta debugging: A. Zeller, R. Hildebrandt, "Simplifying and Isolating
Failure-Inducing Input", IEEE TSE 28(2), 2002.

Pure: making, answering and timing are the caller's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

MOST_EVALUATIONS: Final = 20

Block = tuple[str, ...]
"""Layers that stand beside each other."""


@dataclass(frozen=True)
class Reverted:
    """What was found.

    Attributes:
        layers: those to leave in fp32, in the order of the graph; `None` where nothing holds.
        cost_ms: what they take in fp32, as far as it is known.
        evaluations: networks that were made and answered.
    """

    layers: tuple[str, ...] | None
    cost_ms: float
    evaluations: int


class _OutOfEvaluations(Exception):
    pass


class _Search:
    def __init__(
        self,
        layers: Sequence[str],
        holds: Callable[[frozenset[str]], bool],
        cost_ms: Mapping[str, float],
        limit: int,
    ) -> None:
        self.layers = tuple(layers)
        self.known: dict[frozenset[str], bool] = {}
        self._holds, self._cost_ms, self._limit = holds, cost_ms, limit

    def holds(self, layers: Sequence[str]) -> bool:
        """Whether the bounds hold with these in fp32; with all of them they do."""
        reverted = frozenset(layers)
        if len(reverted) == len(self.layers):
            return True
        if reverted not in self.known:
            if len(self.known) >= self._limit:
                raise _OutOfEvaluations
            self.known[reverted] = self._holds(reverted)
        return self.known[reverted]

    def cost(self, layers: Sequence[str]) -> float:
        return sum(self._cost_ms.get(layer, 0.0) for layer in layers)

    def run(self) -> None:
        if self.holds(()):
            return
        layers = self.layers
        end = self._first(len(layers), lambda count: self.holds(layers[:count]))
        tail = self._first(end, lambda count: self.holds(layers[end - count : end]))
        self._put_back(layers[end - tail : end])

    def _first(self, count: int, holds: Callable[[int], bool]) -> int:
        """The smallest number up to `count` that holds, if it holds from there on; `count` does."""
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            if holds(middle):
                high = middle
            else:
                low = middle
        return high

    def _put_back(self, block: Block) -> None:
        """Take parts out of `block` while the bounds hold; smaller and smaller parts."""
        kept, parts = list(block), _halves(block)
        while parts:
            for part in sorted(parts, key=lambda part: -self.cost(part)):
                rest = [layer for layer in kept if layer not in part]
                if rest and self.holds(rest):
                    kept = rest
            left = [tuple(layer for layer in part if layer in kept) for part in parts]
            parts = [half for part in left for half in _halves(part)]


def revert(
    layers: Sequence[str],
    holds: Callable[[frozenset[str]], bool],
    cost_ms: Mapping[str, float],
    *,
    limit: int = MOST_EVALUATIONS,
) -> Reverted:
    """Find layers that, left in fp32, make the answers good enough at the least cost.

    Args:
        layers: of the network, in the order of the graph; with all in fp32 the bounds must hold.
        holds: whether they do with the given ones in fp32 and the others in int8.
        cost_ms: what a layer takes in fp32; 0 where it is not known.
        limit: evaluations at most.
    """
    search = _Search(layers, holds, cost_ms, limit)
    with contextlib.suppress(_OutOfEvaluations):
        search.run()
    found = [reverted for reverted, good in search.known.items() if good]
    if not found:
        return Reverted(None, 0.0, len(search.known))
    cheapest = min(found, key=lambda reverted: (search.cost(tuple(reverted)), len(reverted)))
    kept = tuple(layer for layer in layers if layer in cheapest)
    return Reverted(kept, search.cost(kept), len(search.known))


def _halves(block: Block) -> list[Block]:
    """The two halves; nothing of a single layer, which has been tried as a part already."""
    middle = len(block) // 2
    return [block[:middle], block[middle:]] if middle else []
