"""Which of two systems is faster, found by timing both in turns.

Rules:
    * Times of two runs are not comparable: a machine slows down and speeds up by more than most
      optimisations gain.  What is compared are two calls that lie beside each other, as a ratio.
    * The order within a pair alternates, so that going second costs both alike.
    * Each side's calls are timed in a row behind one that is not, so that neither is charged for
      the caches that the other emptied.
    * The interval is that of order statistics, which assumes nothing of how times are spread.  It
      is looked at a few times, and wide enough that all looks together are wrong in 1 % of cases.
    * A disturbance is told and changes nothing else: it met both sides.

Source: H. A. David, H. N. Nagaraja, "Order Statistics", 3rd ed., section 7.1 (the interval).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from edge_agent.measure import machine, percentiles, schedule
from edge_agent.measure.attempt import Issue
from edge_agent.measure.results import MeasureSettings

FIRST_LOOK: Final = 20
"""Pairs before the first look."""

EQUAL_WITHIN: Final = 0.02
"""Once the interval is this narrow, more pairs are not worth their time."""

PRECISE_WITHIN: Final = 0.1
"""How narrow it becomes before a decided comparison ends."""

UNKNOWN: Final = (0.0, 1e6)
"""The interval of too few pairs; finite, so that JSON holds it."""

_BLOCK_S: Final = 0.002
_MOST_CALLS: Final = 64
_WARM_UP_CALLS: Final = 3
_CANARY_EVERY_S: Final = 0.1


class Comparison(BaseModel):
    """How two systems compare.

    Attributes:
        speedup: median over pairs of the baseline's time over the candidate's.
        low, high: `speedup` lies between with 99 % confidence.
        pairs: pairs that were timed.
        disturbed: how somebody else disturbed the machine, one line; empty if nobody did.
        quick: as `MeasureSettings.quick`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    speedup: float
    low: float
    high: float
    pairs: int
    baseline_p50_ms: float
    candidate_p50_ms: float
    disturbed: str = ""
    quick: bool = False
    provenance: dict[str, str]

    @property
    def faster(self) -> bool:
        """Whether the candidate is surely faster."""
        return self.low > 1

    @property
    def slower(self) -> bool:
        """Whether the candidate is surely slower."""
        return self.high < 1


def compare(
    baseline: Issue,
    candidate: Issue,
    *,
    samples: int,
    settings: MeasureSettings,
    time_limit_s: float | None = None,
    provenance: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    waited: Callable[[], float] = machine.waited_s,
) -> Comparison:
    """Time `baseline` and `candidate` in turns until it is clear which is faster.

    Hold `machine_lock` around it.  It ends once one is surely faster and by how much is known to
    `PRECISE_WITHIN`, or once they are equal to `EQUAL_WITHIN`; not before `min_duration_s` of the
    settings, for a disturbance may last that long, and not after the limit.

    Args:
        samples: indices run below this; both sides of a pair get the same ones.
        time_limit_s: seconds for everything; the settings' `max_duration_s` by default.  One pair
            is timed in any case.

    Raises:
        ValueError: there are no samples.
    """
    run = _Run(baseline, candidate, samples, settings, clock)
    begin, waited_before = clock(), waited()
    deadline = begin + (settings.max_duration_s if time_limit_s is None else time_limit_s)
    run.warm_up()
    looks, next_look = 0, FIRST_LOOK
    next_canary = clock()
    while True:
        run.pair()
        now = clock()
        if len(run.ratios) >= next_look and now - begin >= settings.min_duration_s:
            looks, next_look = looks + 1, math.ceil(len(run.ratios) * 1.5)
            if _settled(*interval(np.asarray(run.ratios), looks)):
                break
        if now + run.longest_s > deadline:
            looks += 1
            break
        if now >= next_canary:
            run.canary.sing()
            next_canary = clock() + _CANARY_EVERY_S
    elapsed_s = clock() - begin
    ratios = np.asarray(run.ratios)
    low, high = interval(ratios, looks)
    waited_share = (waited() - waited_before) / elapsed_s if elapsed_s > 0 else 0.0
    return Comparison(
        speedup=float(np.median(ratios)),
        low=low,
        high=high,
        pairs=len(ratios),
        baseline_p50_ms=float(np.median(run.times_s[0])) * 1e3,
        candidate_p50_ms=float(np.median(run.times_s[1])) * 1e3,
        disturbed=machine.disturbance(run.canary.ratio, waited_share, settings),
        quick=settings.quick,
        provenance=machine.provenance(provenance or {}),
    )


def interval(ratios: NDArray[np.float64], looks: int = 1) -> tuple[float, float]:
    """Where the median of the ratios' distribution lies.

    Args:
        looks: which look at growing data this is.  The one of number i may be wrong in 1 %/i(i+1)
            of cases, which sums to 1 % however many there are.

    Returns:
        Two order statistics of `ratios`; `UNKNOWN` for too few of them.
    """
    ordered = np.sort(ratios)
    each_side = (1.0 - percentiles.CONFIDENCE) / (looks * (looks + 1)) / 2
    outside = 0
    while percentiles.binomial_cdf(outside, len(ordered), 0.5) <= each_side:
        outside += 1
    if outside == 0:
        return UNKNOWN
    return float(ordered[outside - 1]), float(ordered[-outside])


class _Run:
    """The pairs so far."""

    def __init__(
        self,
        baseline: Issue,
        candidate: Issue,
        samples: int,
        settings: MeasureSettings,
        clock: Callable[[], float],
    ) -> None:
        self._sides = (baseline, candidate)
        self._order = schedule.order(samples, settings.seed)
        self._clock = clock
        self._calls = [1, 1]
        self.canary = machine.Canary(clock)
        self.times_s: tuple[list[float], list[float]] = ([], [])
        self.ratios: list[float] = []
        self.longest_s = 0.0

    def warm_up(self) -> None:
        """Call both a few times, and settle how many calls of each make a block."""
        for side, issue in enumerate(self._sides):
            for _ in range(_WARM_UP_CALLS):
                start = self._clock()
                issue(next(self._order))
                taken_s = self._clock() - start
            calls = math.ceil(_BLOCK_S / taken_s) if taken_s > 0 else _MOST_CALLS
            self._calls[side] = min(calls, _MOST_CALLS)
        self.canary.sing(5)

    def pair(self) -> None:
        """Time a block of each side; who is first alternates."""
        start = self._clock()
        index = next(self._order)
        first = len(self.ratios) % 2
        for side in (first, 1 - first):
            self.times_s[side].append(self._block_s(side, index))
        self.ratios.append(self.times_s[0][-1] / max(self.times_s[1][-1], 1e-9))
        self.longest_s = max(self.longest_s, self._clock() - start)

    def _block_s(self, side: int, index: int) -> float:
        """Seconds of one call: the median of a few in a row, the first of them left out."""
        issue, clock = self._sides[side], self._clock
        issue(index)
        times_s = []
        for _ in range(self._calls[side]):
            start = clock()
            issue(index)
            times_s.append(clock() - start)
        return float(np.median(times_s))


def _settled(low: float, high: float) -> bool:
    width = high / low - 1 if low > 0 else math.inf
    return width <= EQUAL_WITHIN or (width <= PRECISE_WITHIN and not low <= 1 <= high)
