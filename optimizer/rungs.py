"""Which points of a search are looked at how carefully: successive halving with bounds.  Pure.

    probe   every point: a few runs, some of the labelled items
    quick   the promising ones: more runs, all labelled items
    full    the best of these, one after the other, until no other can be faster

Rules:
    * A point that surely misses a bound goes no further.  So does one that another surely beats:
      the times of both, with their margins, do not meet.
    * At most a share of the points is measured in full, unless none of them has passed yet: then
      the next ones follow, for a search that finds nothing is worth less than one that takes long.
    * Where several full measurements could not be decided and none passed, the rest is left alone:
      on a machine that is too busy to measure, more of the same helps nobody.
    * Where accuracy is preferred, a point must not be surely worse than the most accurate one, and
      that one is measured in full too: the choice refers to it.

What a look costs and how it is taken is the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from optimizer.budget import Outcome, Preference
from optimizer.task import Fidelity

FULL_SHARE: Final = 0.15
"""Share of the points that is measured in full, at most."""

QUICK_SHARE: Final = 0.4
SMALL: Final = 8
"""So few points are all measured in full: leaving some out would save less than it tells."""

_FULL_AT_LEAST: Final = 2
_QUICK_AT_LEAST: Final = 4
_UNDECIDED: Final = 2
"""Full measurements that may stay undecided, over those that are allowed."""

_HIGH_LOAD: Final = 0.9
_LOW_LOAD: Final = 0.5
_ORDER: Final[dict[Fidelity, int]] = {"probe": 0, "quick": 1, "full": 2}


@dataclass(frozen=True)
class Look:
    """What is known of a point.

    Attributes:
        outcome: PASS only in full; FAIL where a bound is surely missed; INVALID where there is
            nothing to measure.
        time_ms: median latency; `None` where it was not timed.
        margin: the true time lies within `time_ms` / (1 + margin) and `time_ms` · (1 + margin).
        quality: primary metric, 0..1, on the items that the fidelity looks at.
        load: share of full load at the rate that the budget names; 0 where it names none.
    """

    fidelity: Fidelity
    outcome: Outcome
    time_ms: float | None = None
    margin: float = 0.0
    quality: float = 0.0
    load: float = 0.0

    @property
    def open(self) -> bool:
        """Whether it may still be chosen."""
        if self.fidelity == "full":
            return self.outcome == "PASS"
        return self.outcome in ("PASS", "INCONCLUSIVE")

    def beats(self, other: Look) -> bool:
        """Whether it is surely faster, and no nearer to its limit at the budget's rate."""
        if self.time_ms is None or other.time_ms is None:
            return False
        slowest, fastest = self.time_ms * (1 + self.margin), other.time_ms / (1 + other.margin)
        return slowest < fastest and self.load <= max(other.load, _LOW_LOAD)


@dataclass
class Rungs:
    """One climb over the points 0 … `count` - 1.

    Attributes:
        look: looks at a point so carefully.
        more: whether there is time to begin a look of that kind.
        worse: whether the first point is surely less accurate than the second.
        everything: measure all points in full.
        looks: what was found; a point that there was no time for is missing.
        gave_up: too many measurements could not be decided.
        beaten_by: for a point that goes no further though it might pass: the one that beats it.
    """

    count: int
    look: Callable[[int, Fidelity], Look]
    preference: Preference
    worse: Callable[[int, int], bool] = lambda one, best: False
    more: Callable[[Fidelity], bool] = lambda fidelity: True
    everything: bool = False
    looks: dict[int, Look] = field(default_factory=dict)
    beaten_by: dict[int, int] = field(default_factory=dict)
    gave_up: bool = False

    def climb(self) -> None:
        """Look until the best point is known, or the time is up."""
        if self.everything or self.count <= SMALL:
            for point in range(self.count):
                self._look(point, "full")
            return
        for point in range(self.count):
            self._look(point, "probe")
        self._quick()
        self._full()
        self._note_beaten()

    @property
    def full_limit(self) -> int:
        """Points that are measured in full where some of them pass."""
        return max(_FULL_AT_LEAST, math.floor(FULL_SHARE * self.count))

    @property
    def quick_limit(self) -> int:
        return max(_QUICK_AT_LEAST, math.ceil(QUICK_SHARE * self.count))

    @property
    def measured(self) -> int:
        """Points that were measured in full."""
        return len(self._at("full"))

    def _quick(self) -> None:
        if self.preference == "accuracy" and (best := self._most_accurate()) is not None:
            self._look(best, "quick")
        while True:
            point = self._next("probe")
            settled = [other for other in self._at("quick") if self.looks[other].open]
            if point is None or len(settled) >= self.quick_limit or self._beaten(point, settled):
                return
            if not self._look(point, "quick"):
                return

    def _full(self) -> None:
        best = self._most_accurate() if self.preference == "accuracy" else None
        if best is not None and self.looks[best].fidelity != "full":
            self._look(best, "full")
        while True:
            passed = [point for point in self._at("full") if self.looks[point].open]
            point = self._next("quick")
            if point is None and not passed:
                point = self._next("probe")
                if point is not None and self._look(point, "quick"):
                    continue
            if point is None or (passed and self._enough(point, passed)):
                return
            if not passed and self._undecided() >= _UNDECIDED * self.full_limit:
                self.gave_up = True
                return
            if not self._look(point, "full"):
                return

    def _undecided(self) -> int:
        outcomes = [self.looks[point].outcome for point in self._at("full")]
        return sum(outcome in ("INVALID", "INCONCLUSIVE") for outcome in outcomes)

    def _enough(self, point: int, passed: list[int]) -> bool:
        """Whether `point`, the best of the rest, need not be measured in full."""
        best = self._most_accurate()
        chosen = [other for other in passed if self._may_be_chosen(other, best)]
        if not chosen:
            return False
        return self.measured >= self.full_limit or self._beaten(point, chosen)

    def _note_beaten(self) -> None:
        order = self._order()
        best = next((point for point in order if self.looks[point].fidelity == "full"), None)
        if best is not None:
            for point in order:
                if self.looks[point].fidelity != "full":
                    self.beaten_by[point] = best

    def _look(self, point: int, fidelity: Fidelity) -> bool:
        """Look, if there is time."""
        if not self.more(fidelity):
            return False
        self.looks[point] = self.look(point, fidelity)
        return True

    def _next(self, fidelity: Fidelity) -> int | None:
        """The most promising point that was looked at like that last."""
        order = self._order()
        return next((point for point in order if self.looks[point].fidelity == fidelity), None)

    def _order(self) -> list[int]:
        """Points that may still be chosen, the most promising first."""
        found = [point for point, look in self.looks.items() if look.open]
        best = self._most_accurate()
        return sorted(found, key=lambda point: self._rank(point, best))

    def _rank(self, point: int, best: int | None) -> tuple[bool, bool, float, float, int]:
        look = self.looks[point]
        time_ms = math.inf if look.time_ms is None else look.time_ms
        inaccurate = not self._may_be_chosen(point, best)
        # Of those that are too inaccurate the best comes first, should the others fail.
        first = -look.quality if inaccurate else time_ms
        return (inaccurate, look.load > _HIGH_LOAD, first, -look.quality, point)

    def _may_be_chosen(self, point: int, best: int | None) -> bool:
        if self.preference == "speed" or best is None or best == point:
            return True
        return not self.worse(point, best)

    def _most_accurate(self) -> int | None:
        """Of those that may still be chosen; metrics on all items count before those on some."""
        found = [point for point, look in self.looks.items() if look.open]
        evaluated = [point for point in found if _ORDER[self.looks[point].fidelity] > 0] or found
        if not evaluated:
            return None

        def key(point: int) -> tuple[float, float, int]:
            look = self.looks[point]
            return (-look.quality, math.inf if look.time_ms is None else look.time_ms, point)

        return min(evaluated, key=key)

    def _beaten(self, point: int, by: list[int]) -> bool:
        best = self._most_accurate()
        return any(
            self.looks[other].beats(self.looks[point]) and self._may_be_chosen(other, best)
            for other in by
        )

    def _at(self, fidelity: Fidelity) -> list[int]:
        return [point for point, look in self.looks.items() if look.fidelity == fidelity]
