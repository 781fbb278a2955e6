"""Lanes: where the requests of one loaded version wait, become batches, and run.

A model whose request takes less than a hop to a thread is worth runs on the event loop: what one
turn of the loop read becomes one batch.  A slower one has worker threads, one per instance; a
worker that gets free takes what waits by then.  Either way nobody waits for a batch to fill.

What a batch costs is a·n + b, measured when the variant was judged and signed with it.  It decides
where a request runs, how large a batch grows, and which request is refused at once because it could
not be answered in time.

Rules:
    * Jobs come and are finished on one event loop; what its workers share is behind one lock.
    * A request whose time is over, or whose client has gone, is dropped before it runs.
    * A batch that fails is run again item by item: no request fails for its neighbour's input.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np

from edge_agent.pipeline import Pipeline, Request
from edge_agent.serve.errors import Expired, Overloaded
from edge_agent.serve.prediction import Prediction
from edge_agent.wire.manifest import CostModel, Manifest

log = logging.getLogger("skerry.serve")

INLINE_LIMIT_US: Final = 300.0
"""Batches up to this run on the event loop: a hop to a thread costs a good part of it."""

_SWEEP_S: Final = 0.002
"""How long after its deadline a request that still waits is answered."""

_SMOOTHING: Final = 0.1
_SLOWEST: Final = 50.0
_LATE_SHARE: Final = 0.01
"""How many admitted requests may come later than was foreseen; see `Lane._learn`."""
_LATE_STEP_S: Final = 0.001

_SWITCH_S: Final = 0.0005
"""A worker that has its answer waits at most this long for the interpreter, instead of 5 ms."""

Batch: TypeAlias = list[Prediction]


class Lane:
    """The requests of one loaded version.  Lives on the event loop that it was made on."""

    def __init__(
        self,
        manifest: Manifest,
        pipeline: Pipeline,
        cost: CostModel,
        *,
        max_waiting: int,
        queue_s: float,
        finished: Callable[[Batch], None],
        idle: Callable[[], None],
    ) -> None:
        """Prepare; threads start with the first request that needs them.

        Args:
            max_waiting: requests that may wait.
            queue_s: a request without a deadline is refused when it would take longer than this.
            finished: called on the event loop with each batch, every one answered or in error.
            idle: called on the event loop whenever nothing is left to do.
        """
        self._name = manifest.model
        self._pipeline = pipeline
        self._cost = cost
        self._max_waiting = max_waiting
        self._queue_s = queue_s
        self._finished = finished
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._instances = manifest.network.instances
        self._stacks = _stacks(manifest, cost)
        self._fixed_shapes = all(size >= 0 for spec in manifest.inputs for size in spec.shape[1:])
        self._names = [spec.name for spec in manifest.inputs]
        self._max_items = cost.max_batch if self._stacks else 1
        self._inline_items = _inline_items(cost)
        self._inline: deque[Prediction] = deque()
        self._queue: deque[Prediction] = deque()
        self._queued_items = 0
        self._running = 0
        self._free_s = [0.0] * self._instances
        self._slowdown = 1.0
        self._late_s = 0.0
        self._turn_s = 0.0
        self._tick_set = False
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._next_sweep_s = math.inf
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Requests that have not begun to run."""
        return len(self._inline) + len(self._queue)

    @property
    def busy(self) -> bool:
        return bool(self._inline or self._queue or self._running)

    def submit(self, prediction: Prediction) -> None:
        """Take a request whose tensors are valid.

        Raises:
            Overloaded: too many wait, or it would not be answered in time.
        """
        if not self._fixed_shapes:
            inputs = prediction.inputs
            prediction.group = tuple([inputs[name].shape[1:] for name in self._names])
        if prediction.items <= self._inline_items:
            if len(self._inline) >= self._max_waiting:
                raise Overloaded(self._name)
            self._inline.append(prediction)
        else:
            with self._wake:
                self._admit(prediction)
                self._queued_items += prediction.items
                self._queue.append(prediction)
            if prediction.deadline_s is not None and prediction.deadline_s < self._next_sweep_s:
                self._sweep_at(prediction.deadline_s)
        if not self._tick_set:
            # at the end of this turn of the loop, so that what it read shares a batch
            self._tick_set = True
            self._loop.call_soon(self._tick)

    def close(self) -> None:
        """End the threads.  Nothing may wait any more."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    # ── on the event loop ────────────────────────────────────────────────────────────────────────

    def _admit(self, prediction: Prediction) -> None:
        """Refuse what would not be done in time, by what is known of the queue."""
        now = time.perf_counter()
        deadline_s = prediction.deadline_s
        busy = self.busy
        if deadline_s is None:
            if not busy:
                return  # however long it takes, nobody else waits for it
            deadline_s = prediction.arrived_s + self._queue_s
        items = self._queued_items + prediction.items
        batches = math.ceil(items / self._max_items) if self._stacks else len(self._queue) + 1
        work_us = batches * self._cost.fixed_us + items * self._cost.per_item_us
        free_s = max(min(self._free_s), now)
        # a slow run must not lock an idle model: only another run shows that it is fast again
        slowdown = self._slowdown if busy else min(self._slowdown, 1.0)
        ready_s = free_s + work_us * slowdown / self._instances / 1e6
        prediction.foreseen_s = ready_s
        if busy:
            # it may have lain in the socket for as long as the loop took to come round
            ready_s += self._late_s + self._turn_s
        if ready_s > deadline_s or len(self._queue) >= self._max_waiting:
            raise Overloaded(self._name, max(1, math.ceil(ready_s - now)))

    def _tick(self) -> None:
        self._tick_set = False
        if self._inline:
            dropped: Batch = []
            batch = self._take(self._inline, self._inline_items, dropped)
            if dropped:
                self._drop(dropped)
            if batch:
                self._compute(batch)
                self._finished(batch)
            if self._inline and not self._tick_set:
                self._tick_set = True  # between two batches the loop reads and writes
                self._loop.call_soon(self._tick)
        if self._queue:
            self._start()
            self._loop.call_soon(self._measure_turn, time.perf_counter())
        elif not self.busy:
            self._idle()

    def _measure_turn(self, began_s: float) -> None:
        """Note how long the loop took to come round: what it reads next may be as old."""
        self._turn_s = time.perf_counter() - began_s

    def _start(self) -> None:
        """Wake a worker, if one is free; start those that are missing."""
        if not self._threads:
            sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        while len(self._threads) < min(self._instances, self._running + len(self._queue)):
            number = len(self._threads)
            thread = threading.Thread(
                target=self._work, args=(number,), name=f"{self._name}-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        with self._wake:
            self._wake.notify()

    def _finish_worked(self, dropped: Batch, batch: Batch, took_s: float) -> None:
        with self._wake:
            self._running -= 1
        if dropped:
            self._drop(dropped)
        if batch:
            if all(each.error is None for each in batch):  # a refusal tells nothing of the cost
                seen = min(max(took_s * 1e6 / self._cost_us(batch), 1 / _SLOWEST), _SLOWEST)
                self._slowdown += _SMOOTHING * (seen - self._slowdown)
                self._learn(batch)
            self._finished(batch)
        if not self.busy:
            self._idle()

    def _learn(self, batch: Batch) -> None:
        """Follow the percentile by which answers come later than foreseen.

        A stochastic approximation: steps up and down balance where `_LATE_SHARE` are later.
        """
        now = time.perf_counter()
        for each in batch:
            late = now - each.foreseen_s > self._late_s
            self._late_s += _LATE_STEP_S * (1.0 - _LATE_SHARE if late else -_LATE_SHARE)
        self._late_s = max(self._late_s, 0.0)

    def _sweep_at(self, deadline_s: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()  # or one more would go round for each shorter deadline
        self._next_sweep_s = deadline_s
        left_s = max(deadline_s - time.perf_counter(), 0.0)
        self._sweeper = self._loop.call_later(left_s + _SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Answer those whose time is over although every worker is still busy."""
        self._sweeper, self._next_sweep_s = None, math.inf
        now = time.perf_counter()
        with self._wake:
            over = [each for each in self._queue if each.is_over(now)]
            if over:
                kept = [each for each in self._queue if not each.is_over(now)]
                self._queue.clear()
                self._queue.extend(kept)
                self._queued_items -= sum([each.items for each in over])
            deadlines = [each.deadline_s for each in self._queue if each.deadline_s is not None]
        if over:
            self._drop(over)
        if deadlines:
            self._sweep_at(min(deadlines))

    def _drop(self, batch: Batch) -> None:
        for prediction in batch:
            prediction.error = Expired(self._name)
        self._finished(batch)

    # ── on a worker ──────────────────────────────────────────────────────────────────────────────

    def _work(self, number: int) -> None:
        """Body of a worker's thread."""
        while True:
            dropped: Batch = []
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if not self._queue:
                    return
                batch = self._take(self._queue, self._max_items, dropped)
                self._queued_items -= sum([each.items for each in (*batch, *dropped)])
                self._running += 1
                if self._queue:
                    self._wake.notify()  # for another instance
                start = time.perf_counter()
                if batch:
                    self._free_s[number] = start + self._cost_us(batch) * self._slowdown / 1e6
            if batch:
                self._compute(batch)
            took_s = time.perf_counter() - start
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the clients
                self._loop.call_soon_threadsafe(self._finish_worked, dropped, batch, took_s)
            del batch, dropped  # while it waits it holds nobody's tensors

    # ── on either ────────────────────────────────────────────────────────────────────────────────

    def _cost_us(self, batch: Batch) -> float:
        items = sum([each.items for each in batch])
        return max(self._cost.fixed_us + self._cost.per_item_us * items, 1.0)

    def _take(self, waiting: deque[Prediction], most_items: int, dropped: Batch) -> Batch:
        """The next batch: in order, of one group; what is over already goes to `dropped`."""
        batch: Batch = []
        items = 0
        now = time.perf_counter()
        while waiting:
            first = waiting[0]
            if first.is_over(now):
                dropped.append(waiting.popleft())
                continue
            if batch and (
                not self._stacks
                or items + first.items > most_items
                or first.group != batch[0].group
                or first.trace
                or batch[0].trace
            ):
                break
            batch.append(waiting.popleft())
            items += first.items
        return batch

    def _compute(self, batch: Batch) -> None:
        """Answer each of `batch`, or give it its error."""
        if len(batch) == 1:
            self._answer_alone(batch[0])
            return
        try:
            stacked = {
                name: np.concatenate([each.inputs[name] for each in batch]) for name in self._names
            }
            outputs = self._pipeline.answer(stacked)
        except Exception:
            # one of them is at fault; alone, each gets what it deserves
            for each in batch:
                self._answer_alone(each)
            return
        total = sum([each.items for each in batch])
        if any(not array.ndim or array.shape[0] != total for array in outputs.values()):
            self._stacks, self._max_items = False, 1
            log.warning("batch.not_possible model=%s cause=outputs_without_batch_axis", self._name)
            for each in batch:
                self._answer_alone(each)
            return
        start = 0
        for each in batch:
            stop = start + each.items
            each.outputs = {name: array[start:stop] for name, array in outputs.items()}
            start = stop

    def _answer_alone(self, prediction: Prediction) -> None:
        try:
            if not prediction.trace:
                prediction.outputs = self._pipeline.answer(prediction.inputs)
                return
            request = Request(prediction.inputs, prediction.prediction_id, debug=True)
            prediction.outputs = self._pipeline.process(request)
            prediction.steps = request.steps
        except Exception as error:
            prediction.error = error


def _stacks(manifest: Manifest, cost: CostModel) -> bool:
    """Whether requests may share a batch: a free leading axis throughout, and measured to pay."""
    tensors = (*manifest.inputs, *manifest.outputs)
    return cost.max_batch > 1 and all(spec.shape[:1] == (-1,) for spec in tensors)


def _inline_items(cost: CostModel) -> int:
    """Most items of a batch on the event loop; 0 when even one takes too long."""
    if cost.fixed_us + cost.per_item_us > INLINE_LIMIT_US:
        return 0
    if cost.per_item_us <= 0:
        return cost.max_batch
    fit = int((INLINE_LIMIT_US - cost.fixed_us) / cost.per_item_us)
    return max(1, min(fit, cost.max_batch))
