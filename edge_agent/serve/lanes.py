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

from edge_agent.pipeline import InputError, Pipeline, PipelineError, Request
from edge_agent.runtime import Tensors
from edge_agent.serve.errors import Expired, Overloaded
from edge_agent.serve.forecast import Forecast, patience_s, waiting_us
from edge_agent.serve.prediction import Prediction
from edge_agent.wire.manifest import CostModel, Manifest

log = logging.getLogger("skerry.serve")

INLINE_LIMIT_US: Final = 300.0
"""Batches up to this run on the event loop: a hop to a thread costs a good part of it."""

_SWEEP_S: Final = 0.002
"""How long after its deadline a request that still waits is answered; and how often refusals look
through the queue for what need not wait: each time would cost more than all else of a refusal."""

_SWITCH_S: Final = 0.0005
"""A worker that has its answer waits at most this long for the interpreter, instead of 5 ms."""

_SLOW_TURNS: Final = 8
_SLOW_TURN_FACTOR: Final = 4
"""A model whose batches hold the loop this much longer than they may, so often in a row, moves to a
worker: its cost was measured elsewhere, or with other inputs."""

MAX_REQUEST_ITEMS: Final = 4096
"""Items of one request; whoever has more sends several."""
_LONGEST_QUEUES: Final = 10
"""A time-out does not make a request wait longer than this many times the usual bound."""

_BUSY_TURN_S: Final = 0.002
"""A loop that takes this long to come round reads more than it can have answered."""
_HOLD_S: Final = 0.05
"""How long a client that was refused in such a turn is not read from."""

_WAY_SHARE: Final = 0.1
"""Of a client's time, what admission leaves for the way there and back."""

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
        finished: Callable[[Batch, list[int]], None],
        idle: Callable[[], None],
    ) -> None:
        """Prepare; threads start with the first request that needs them.

        Args:
            max_waiting: requests that may wait.
            queue_s: longest that a request without a deadline may take, see `patience_s`.
            finished: called on the event loop with each batch, every one answered or in error, and
                the items of the runs that it took.
            idle: called on the event loop whenever nothing is left to do.
        """
        self._name = manifest.model
        self._pipeline = pipeline
        self._max_waiting = max_waiting
        self._queue_s = queue_s
        self._patience_s = patience_s(cost, manifest.limits, queue_s)
        self._finished = finished
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._instances = pipeline.instances
        self._forecast = Forecast(cost, self._instances)
        self._stacks = _stacks(manifest, cost)
        self._fixed_shapes = all(size >= 0 for spec in manifest.inputs for size in spec.shape[1:])
        self._names = [spec.name for spec in manifest.inputs]
        self._max_items = cost.max_batch if self._stacks else 1
        self._inline_items = _inline_items(cost) if self._fixed_shapes else 0
        self._slow_turns = 0
        self._inline: deque[Prediction] = deque()
        self._queue: deque[Prediction] = deque()
        self._queued_items = 0
        self._running = 0
        self._turn_s = 0.0
        self._tick_set = False
        self._wake = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._next_sweep_s = math.inf
        self._purge_again_s = 0.0
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
            InputError: it has too many items.
            Overloaded: too many wait, or it would not be answered in time.
        """
        if prediction.items > MAX_REQUEST_ITEMS:
            raise InputError(f"{prediction.items} items; a request has {MAX_REQUEST_ITEMS} at most")
        if not self._fixed_shapes:
            inputs = prediction.inputs
            prediction.group = tuple([inputs[name].shape[1:] for name in self._names])
        if prediction.items <= self._inline_items:
            if len(self._inline) >= self._max_waiting:
                raise Overloaded(self._name)
            self._inline.append(prediction)
        else:
            with self._wake:
                over = self._admit(prediction)
                self._queued_items += prediction.items
                self._queue.append(prediction)
            if over:
                self._drop(over)
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

    def _admit(self, prediction: Prediction) -> Batch:
        """Refuse what would not be done in time; returns what need not wait any longer."""
        over: Batch = []
        retry_s = self._retry_s(prediction)
        if retry_s is not None and time.perf_counter() >= self._purge_again_s:
            over = self._purge()
            self._purge_again_s = time.perf_counter() + _SWEEP_S
            if over:
                retry_s = self._retry_s(prediction)
        if retry_s is not None:
            if over:
                self._loop.call_soon(self._drop, over)
            hold_s = _HOLD_S if self._turn_s > _BUSY_TURN_S else 0.0
            raise Overloaded(self._name, max(1, math.ceil(retry_s)), hold_s)
        return over

    def _retry_s(self, prediction: Prediction) -> float | None:
        """None if the request is to be let in; else when it had been answered, from now."""
        now = time.perf_counter()
        alone = not self.busy
        waiting = waiting_us(
            self._forecast.cost, len(self._queue), self._queued_items, self._max_items
        )
        ready_s = self._forecast.ready_s(now, prediction.items, waiting, alone=alone)
        prediction.foreseen_s = ready_s
        deadline_s = prediction.deadline_s
        if deadline_s is None:
            if alone:
                return None  # however long it takes, nobody else waits for it
            deadline_s = prediction.arrived_s + self._patience_s
        if not alone:
            left_s = deadline_s - prediction.arrived_s
            deadline_s -= left_s * _WAY_SHARE
            deadline_s = min(deadline_s, prediction.arrived_s + self._queue_s * _LONGEST_QUEUES)
            # it may have lain in the socket for as long as the loop took to come round
            ready_s += self._forecast.allowance_s + self._turn_s
        if ready_s > deadline_s or len(self._queue) >= self._max_waiting:
            return ready_s - now
        return None

    def _purge(self) -> Batch:
        """Take out of the queue what is over; with the lock held."""
        now = time.perf_counter()
        over = [each for each in self._queue if each.is_over(now)]
        if over:
            kept = [each for each in self._queue if not each.is_over(now)]
            self._queue.clear()
            self._queue.extend(kept)
            self._queued_items -= sum([each.items for each in over])
        return over

    def _tick(self) -> None:
        self._tick_set = False
        if self._inline:
            dropped: Batch = []
            batch = self._take(self._inline, max(self._inline_items, 1), dropped)
            if dropped:
                self._drop(dropped)
            if batch:
                self._run_inline(batch)
            if self._inline and not self._tick_set:
                self._tick_set = True  # between two batches the loop reads and writes
                self._loop.call_soon(self._tick)
        if self._queue:
            self._start()
            self._loop.call_soon(self._measure_turn, time.perf_counter())
        elif not self.busy:
            self._rest()

    def _run_inline(self, batch: Batch) -> None:
        start = time.perf_counter()
        runs = self._compute(batch)
        took_us = (time.perf_counter() - start) * 1e6
        if took_us > _SLOW_TURN_FACTOR * INLINE_LIMIT_US:
            self._slow_turns += 1
            if self._slow_turns >= _SLOW_TURNS:
                self._inline_items = 0
                log.warning("lane.moved_to_worker model=%s took_us=%.0f", self._name, took_us)
        else:
            self._slow_turns = 0
        self._finished(batch, runs)

    def _rest(self) -> None:
        self._turn_s = 0.0
        self._forecast.calm()
        self._idle()

    def _measure_turn(self, began_s: float) -> None:
        """Note how long the loop took to come round: what it reads next may be as old."""
        if self.busy:
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

    def _return(self, dropped: Batch, batch: Batch, runs: list[int], took_s: float) -> None:
        """Take a batch back from a worker."""
        with self._wake:
            self._running -= 1
        if dropped:
            self._drop(dropped)
        if batch:
            if all(each.error is None for each in batch):  # a refusal tells nothing of the cost
                with self._wake:
                    self._forecast.learn(
                        time.perf_counter(),
                        sum([each.items for each in batch]),
                        took_s,
                        [each.foreseen_s for each in batch],
                    )
            self._finished(batch, runs)
        if not self.busy:
            self._rest()

    def _sweep_at(self, deadline_s: float) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()  # or one more would go round for each shorter deadline
        self._next_sweep_s = deadline_s
        left_s = max(deadline_s - time.perf_counter(), 0.0)
        self._sweeper = self._loop.call_later(left_s + _SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        """Answer those whose time is over although every worker is still busy."""
        self._sweeper, self._next_sweep_s = None, math.inf
        with self._wake:
            over = self._purge()
            deadlines = [each.deadline_s for each in self._queue if each.deadline_s is not None]
        if over:
            self._drop(over)
        if deadlines:
            self._sweep_at(min(deadlines))
        if not self.busy:
            self._rest()

    def _drop(self, batch: Batch) -> None:
        for prediction in batch:
            prediction.error = Expired(self._name)
        self._finished(batch, [])

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
                self._running += 1  # before the queue is shorter, so that it never looks idle
                batch = self._take(self._queue, self._max_items, dropped)
                self._queued_items -= sum([each.items for each in (*batch, *dropped)])
                if self._queue:
                    self._wake.notify()  # for another instance
                start = time.perf_counter()
                if batch:
                    self._forecast.began(number, start, sum([each.items for each in batch]))
            runs = self._compute(batch) if batch else []
            end = time.perf_counter()
            with self._wake:
                self._forecast.ended(number, end)
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the clients
                self._loop.call_soon_threadsafe(self._return, dropped, batch, runs, end - start)
            del batch, dropped  # while it waits it holds nobody's tensors

    # ── on either ────────────────────────────────────────────────────────────────────────────────

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

    def _compute(self, batch: Batch) -> list[int]:
        """Answer each of `batch`, or give it its error; returns the items of the runs it took."""
        if len(batch) == 1:
            return self._answer_alone(batch[0])
        stacked = {
            name: np.concatenate([each.inputs[name] for each in batch]) for name in self._names
        }
        try:
            outputs = self._pipeline.answer(stacked)
            _require_rows(outputs, sum([each.items for each in batch]))
        except Exception:
            # one of them is at fault: it is found by halves, so the others still share batches
            half = len(batch) // 2
            runs = self._compute(batch[:half]) + self._compute(batch[half:])
            if len(batch) == 2 and all(each.error is None for each in batch):
                self._stacks, self._max_items = False, 1
                log.warning("batch.not_possible model=%s cause=right_alone_only", self._name)
            return runs
        start = 0
        for each in batch:
            stop = start + each.items
            each.outputs = {name: array[start:stop] for name, array in outputs.items()}
            start = stop
        return [start]

    def _answer_alone(self, prediction: Prediction) -> list[int]:
        items, most = prediction.items, self._max_items
        try:
            if prediction.trace:
                request = Request(prediction.inputs, prediction.prediction_id, debug=True)
                prediction.outputs = self._pipeline.process(request)
                prediction.steps = request.steps
            elif self._stacks and items > most:
                prediction.outputs = self._answer_in_pieces(prediction.inputs, items)
            else:
                prediction.outputs = self._pipeline.answer(prediction.inputs)
        except Exception as error:
            if not isinstance(error, PipelineError):
                log.exception("prediction.failed_unforeseen model=%s", self._name)
            prediction.error = _without_frames(error)
            return []
        return [items]

    def _answer_in_pieces(self, inputs: Tensors, items: int) -> Tensors:
        """A request that is larger than a batch, so that it takes no more memory than one."""
        most = self._max_items
        pieces = [
            self._pipeline.answer(
                {name: array[start : start + most] for name, array in inputs.items()}
            )
            for start in range(0, items, most)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _require_rows(outputs: Tensors, items: int) -> None:
    """Refuse outputs that cannot be split among the requests of a batch."""
    for name, array in outputs.items():
        if not array.ndim or array.shape[0] != items:
            raise ValueError(f"output {name!r} has shape {array.shape} for {items} items")


def _without_frames(error: Exception) -> Exception:
    """`error` without its tracebacks, whose frames hold the request and what came with it."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


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
