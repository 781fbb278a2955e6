"""What a batch costs: service time = a·n + b, and the largest batch that is worth making.

Rules:
    * The largest batch is found by measurement.  Sizes double while the throughput per item still
      grows by `MIN_GAIN` and the batch keeps within the latency that it may take.
    * Batching must not change answers: where an item's answer depends on the size of the batch or
      on the items beside it, or a batch fails, the largest batch is 1.  Asked are batches of each
      size that is tried and of odd ones between, with the items in changing company; compared is
      what the pipeline answers and what the network does, for a label alone hides what turns it
      only now and then.
    * The tolerance for that is one of its own, only wide enough for float32 sums in another order
      (about 1e-6 of the largest value): the known answers' tolerance is meant for another CPU.  A
      static int8 network adds integers, exactly, so its answers do not move with the batch.  Where
      a float before it moves one and that turns a rounding by a whole step, batches do change
      answers, and are not made; so it is with a network that takes its scales from the batch.
    * Sizes are timed in turns, so a machine that slows down slows all of them alike; medians are
      taken, so an interruption counts for nothing.
    * What would not fit into the time budget is not begun.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from edge_agent.pipeline import MODEL_STEP, GoldenMismatch, Pipeline, PipelineError, golden
from edge_agent.runtime import Tensors
from edge_agent.wire.manifest import CostModel

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
MIN_GAIN: Final = 1.05
"""Throughput per item of a size over that of the one before it, from which on it is worth it."""

BUDGET_S: Final = 1.5
_MIN_ROUNDS: Final = 3
_PAIR_ROUNDS: Final = 31
_FIT_ROUNDS: Final = 60
_ENOUGH_ROUNDS: Final = 5
_FIT_AT_LEAST: Final = 4
"""Sizes up to this one are fitted through even when they are not worth it."""

_DISTINCT_ITEMS: Final = 32
"""Different items in batches: equal ones would hide a step that mixes them."""

ATOL: Final = 1e-4
RTOL: Final = 1e-5
"""Of the largest value of an item's tensor, because sums that cancel out keep its rounding."""

_FLOATS: Final = "f"


@dataclass(frozen=True, slots=True)
class CostFit:
    """The cost of a batch, and how its largest size was settled.

    Attributes:
        batch_us: median time by size, in µs; sizes that were tried and not taken included.
        reason: why no larger batch is made, one line.
        note: what a person must know, one line: batches change answers or fail; else empty.
    """

    cost: CostModel
    batch_us: dict[int, float]
    reason: str
    note: str = ""


def fit_cost(
    pipeline: Pipeline,
    samples: Sequence[Tensors],
    *,
    max_batch_ms: float | None = None,
    atol: float = ATOL,
    batches: Sequence[int] = BATCHES,
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> CostFit:
    """Fit a·n + b and find the largest batch.  Hold `machine_lock` around it.

    Args:
        samples: items, each a batch of one; an interface with a fixed batch axis takes the first
            as it is, or repeated.
        max_batch_ms: the longest that a whole batch may take; None for no bound.
        atol: how far floats may move with the batch, beside `RTOL`; labels and integers may not.
        batches: sizes to try, growing from 1.
        budget_s: seconds for everything; the smallest sizes are timed in any case.

    Raises:
        PipelineError: the pipeline does not answer a sample.
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("there are no samples to measure with")
    run = _Timed(pipeline, samples, clock, clock() + budget_s)
    fixed = [spec.shape[0] for spec in pipeline.inputs if spec.shape and spec.shape[0] > 0]
    if fixed:
        return _fixed(run, fixed[0])
    growth = _Growth(run, max_batch_ms, atol, sorted({1, *batches}))
    growth.grow()
    sizes = [size for size in run.times_s if size <= max(growth.largest, _FIT_AT_LEAST)]
    run.in_turns(sizes, _FIT_ROUNDS)
    medians_us = [run.median_s(size) * 1e6 for size in sizes]
    per_item_us, fixed_us = _line(sizes, medians_us)
    return CostFit(
        CostModel(per_item_us=per_item_us, fixed_us=fixed_us, max_batch=growth.largest),
        {size: run.median_s(size) * 1e6 for size in run.times_s},
        growth.reason,
        growth.note,
    )


class _Timed:
    """Runs batches of samples and remembers how long each size took, round by round."""

    def __init__(
        self,
        pipeline: Pipeline,
        samples: Sequence[Tensors],
        clock: Callable[[], float],
        deadline: float,
    ) -> None:
        self._run = pipeline.run
        self.samples = samples
        self._clock = clock
        self._deadline = deadline
        self._fed: dict[int, Tensors] = {}
        self.times_s: dict[int, list[float]] = {}
        self._fit_from: dict[int, int] = {}

    def batch(self, size: int, distinct: int) -> Tensors:
        """A batch of `size` items, of which the first `distinct` differ."""
        if size not in self._fed:
            self._fed[size] = self.join([index % distinct for index in range(size)])
        return self._fed[size]

    def feed(self, size: int, tensors: Tensors) -> None:
        """Take `tensors` as the batch of `size`."""
        self._fed[size] = tensors

    def answer(self, tensors: Tensors) -> Tensors:
        """The pipeline's answer, and the floats that its network made row by row of the input."""
        count = len(next(iter(tensors.values())))
        result = self._run(tensors, trace=True)
        made = next((kept for name, kept in result.steps if name == MODEL_STEP), {})
        rows = {
            f"{MODEL_STEP}:{name}": array
            for name, array in made.items()
            if array.dtype.kind in _FLOATS and array.ndim and len(array) == count
        }
        return result.tensors | rows

    def join(self, items: Sequence[int]) -> Tensors:
        """A batch of the samples with these indices."""
        parts = [self.samples[index] for index in items]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def left_s(self) -> float:
        return self._deadline - self._clock()

    def time(self, size: int) -> float:
        tensors = self._fed[size]
        start = self._clock()
        self._run(tensors)
        taken = self._clock() - start
        self.times_s.setdefault(size, []).append(taken)
        return taken

    def in_turns(self, sizes: Sequence[int], rounds: int, until_left_s: float = 0.0) -> None:
        """Time all `sizes` once a round, until `until_left_s` of the budget is left.

        A size that was hardly timed yet is timed a few times whatever the budget says.
        """
        self._fit_from = {size: len(self.times_s.get(size, ())) for size in sizes}
        due = _MIN_ROUNDS - min(len(self.times_s.get(size, ())) for size in sizes)
        longest_s = 0.0
        for index in range(rounds):
            if self.left_s() - longest_s < until_left_s and index >= due:
                return
            # another order each round: none always runs behind the largest
            shift = index % len(sizes)
            taken = sum(self.time(size) for size in (*sizes[shift:], *sizes[:shift]))
            longest_s = max(longest_s, taken)

    def last_s(self, size: int) -> list[float]:
        """Times of the last rounds that were run in turns."""
        return self.times_s[size][self._fit_from.get(size, 0) :]

    def median_s(self, size: int) -> float:
        """Median over the last rounds in turns, or over all where those were too few."""
        last = self.last_s(size)
        return float(np.median(last if len(last) >= _ENOUGH_ROUNDS else self.times_s[size]))


class _Growth:
    """Doubles the batch for as long as it pays."""

    def __init__(
        self, run: _Timed, max_batch_ms: float | None, atol: float, sizes: Sequence[int]
    ) -> None:
        self._run = run
        self._max_s = float("inf") if max_batch_ms is None else max_batch_ms / 1e3
        self._atol = atol
        self._sizes = sizes
        self._slice_s = run.left_s() / 2 / len(sizes)
        self._alone: list[Tensors] = []
        self.largest = 1
        self.reason = f"{sizes[-1]} is the largest size that is tried"
        self.note = ""

    def grow(self) -> None:
        self._answer_alone()
        self._run.batch(1, 1)
        self._run.in_turns([1], _MIN_ROUNDS)
        for before, size in pairwise(self._sizes):
            if not self._worth(before, size):
                return
            self.largest = size

    def _answer_alone(self) -> None:
        """What single items are answered; as many as a tenth of the time allows, two at least."""
        enough_s = self._run.left_s() * 0.9
        for item in self._run.samples[:_DISTINCT_ITEMS]:
            self._alone.append(self._run.answer(item))
            if len(self._alone) >= 2 and self._run.left_s() < enough_s:
                return

    def _worth(self, before: int, size: int) -> bool:
        run = self._run
        before_s = run.median_s(before)
        if before_s > self._max_s:
            return self._stop(f"{before} item takes {_ms(before_s)}, allowed is {_ms(self._max_s)}")
        expected_s = before_s * size / before
        groups = _companies(before, size, len(self._alone))
        asked_s = before_s / before * sum(map(len, groups))
        if _MIN_ROUNDS * (before_s + expected_s) + asked_s > run.left_s():
            return self._stop(f"batches of {size} would not fit into the time to measure")
        problem = self._differs(groups)
        if problem is None:
            return False
        run.batch(size, len(self._alone))
        run.in_turns([before, size], _PAIR_ROUNDS, run.left_s() - self._slice_s)
        if problem:
            return self._never(f"answers depend on the batch: {problem}")
        size_s = run.median_s(size)
        if size_s > self._max_s:
            return self._stop(
                f"a batch of {size} takes {_ms(size_s)}, allowed is {_ms(self._max_s)}"
            )
        pairs = zip(run.last_s(before), run.last_s(size), strict=True)
        gain = float(np.median([slow * size / (fast * before) for slow, fast in pairs if fast > 0]))
        if not gain >= MIN_GAIN:
            return self._stop(
                f"a batch of {size} answers {gain - 1:+.0%} items per second against {before}, "
                f"worth it is {MIN_GAIN - 1:+.0%}"
            )
        return True

    def _differs(self, groups: Sequence[Sequence[int]]) -> str | None:
        """How the answers in batches differ from those alone; empty if not, None if one failed."""
        for items in groups:
            try:
                together = self._run.answer(self._run.join(items))
            except PipelineError as error:
                self._never(f"a batch of {len(items)} is not answered: {error}")
                return None
            for row, item in enumerate(items):
                if found := _difference(together, row, self._alone[item], self._atol):
                    return f"in a batch of {len(items)}, {found}"
        return ""

    def _never(self, note: str) -> bool:
        self.largest = 1
        self.note = f"batches are not made: {note}"
        return self._stop(note)

    def _stop(self, reason: str) -> bool:
        self.reason = reason
        return False


def _companies(before: int, size: int, distinct: int) -> list[list[int]]:
    """Batches of `size` and of odd ones above `before`: the indices of the items in each.

    Every item stands in one of `size`, twice in batches at least, each time in other company.
    """
    generator = np.random.default_rng(size)
    sizes = [size] * max(2, -(-distinct // size))
    sizes += [odd for odd in dict.fromkeys((before + 1, size - 1)) if before < odd < size]
    groups = []
    line: list[int] = []
    for count in sizes:
        while len(line) < count:
            line += generator.permutation(distinct).tolist()
        groups.append(line[:count])
        line = line[count:]
    return groups


def _difference(together: Tensors, row: int, alone: Tensors, atol: float) -> str:
    """How one row of a batch's answer differs from the item's own; empty if it does not."""
    for name, wanted in alone.items():
        array = together.get(name)
        if array is not None and array.ndim:
            array = array[row : row + 1]
        allowed = atol
        if wanted.dtype.kind in _FLOATS and wanted.size:
            allowed += RTOL * float(np.abs(wanted, dtype=np.float64).max())
        try:
            golden.compare({} if array is None else {name: array}, {name: wanted}, allowed)
        except GoldenMismatch as error:
            return str(error)
    return ""


def _fixed(run: _Timed, size: int) -> CostFit:
    """An interface whose batch axis is fixed is timed at that size; requests cannot be joined."""
    sample = run.samples[0]
    items = len(next(iter(sample.values())))
    run.feed(size, sample if items == size else run.batch(size, 1))
    run.time(size)
    run.times_s.clear()  # the first run pays for page faults
    run.in_turns([size], _FIT_ROUNDS)
    taken_us = run.median_s(size) * 1e6
    return CostFit(
        CostModel(per_item_us=taken_us / size, fixed_us=0.0, max_batch=1),
        {size: taken_us},
        f"the interface fixes the batch axis at {size}",
    )


def _line(sizes: Sequence[int], times_us: Sequence[float]) -> tuple[float, float]:
    """The line through (n, t) with the least relative error, neither slope nor offset below zero.

    Relative, because what disturbs a time is in proportion to it, and because the small sizes
    decide where a model runs.
    """
    n = np.asarray(sizes, dtype=np.float64)
    t = np.maximum(np.asarray(times_us, dtype=np.float64), 1e-3)
    if len(n) == 1:
        return float(t[0] / n[0]), 0.0
    slope, offset = (float(value) for value in np.polyfit(n, t, 1, w=1 / t))
    if offset < 0:
        return float(np.sum(n / t) / np.sum((n / t) ** 2)), 0.0
    if slope < 0:
        return 0.0, float(np.sum(1 / t) / np.sum(1 / t**2))
    return slope, offset


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
