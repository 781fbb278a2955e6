"""One attempt at a measurement: the load, the latencies so far, what can be said about them.

`load.measure` makes attempts until one was not disturbed.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from edge_agent.measure import machine, percentiles, schedule
from edge_agent.measure.latencies import Latencies
from edge_agent.measure.results import (
    Measurement,
    MeasureSettings,
    Scenario,
    Verdict,
    histogram,
)

T = TypeVar("T")

Issue = Callable[[int], None]
"""Answers the sample of the index it is given, and returns when done."""

_CANARY_EVERY_S: Final = 0.1
_WARM_UP_QUERIES: Final = 10
_SLEEP_SLACK_S: Final = 0.0002
"""The system wakes us late by about this much; the rest is spun away."""


@dataclass(frozen=True, slots=True)
class Batches:
    """A system that answers several samples at once.

    Attributes:
        issue: answers the samples of these indices, always `size` of them, and returns when done.
        size: samples in a batch.
    """

    issue: Callable[[Sequence[int]], None]
    size: int


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where time comes from; see `load.measure`."""

    now: Callable[[], float]
    sleep: Callable[[float], None]
    waited: Callable[[], float]
    neighbours: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Load:
    """What is issued and what it is held to; see `load.measure`.

    Raises:
        ValueError: the scenario and its arguments do not fit.
    """

    issue: Issue
    scenario: Scenario
    target_latency_ms: float | None
    percentile: float
    qps: float | None
    samples: int
    concurrency: int
    batches: Batches | None

    def __post_init__(self) -> None:
        if self.scenario == "server" and self.qps is None:
            raise ValueError("the server scenario needs qps")
        if self.scenario == "single_stream" and self.qps is not None:
            raise ValueError("single_stream has no rate; qps is for server and offline")
        if self.scenario == "offline" and self.target_latency_ms is not None:
            raise ValueError("offline judges throughput; a latency limit is for the other two")
        if not 0 < self.percentile < 1:
            raise ValueError(f"percentile is a fraction in (0, 1), not {self.percentile}")
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {self.concurrency}")
        if self.scenario == "single_stream" and self.concurrency > 1:
            raise ValueError("single_stream asks one query at a time; concurrency is for server")
        if self.batches is not None and self.scenario != "offline":
            raise ValueError(f"batches are issued offline, not in {self.scenario}")
        if self.batches is not None and self.batches.size < 1:
            raise ValueError(f"a batch holds at least 1 sample, not {self.batches.size}")


class Attempt:
    """See the module."""

    def __init__(self, load: Load, settings: MeasureSettings, clocks: Clocks) -> None:
        self._load = load
        self._settings = settings
        self._clocks = clocks
        self._target_s = None if load.target_latency_ms is None else load.target_latency_ms / 1e3
        self._batch = 1 if load.batches is None else load.batches.size
        self._latencies = Latencies(self._target_s)
        self._busy_s = 0.0
        self._next_look = settings.min_queries
        self._canary = machine.Canary(clocks.now)
        self._load_per_core = machine.load_per_core()
        self._waited_s = 0.0
        self._waited_share = 0.0
        self._neighbours_share = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._errors: list[BaseException] = []

    def warm_up(self) -> None:
        machine.reset_peak_rss()
        load = self._load
        if load.batches is None:
            for index in range(_WARM_UP_QUERIES):
                load.issue(index % load.samples)
        else:
            for indices in itertools.islice(self._whole_batches(load.batches.size), 2):
                load.batches.issue(indices)
        self._canary.sing(5)

    def loop(self) -> None:
        load, clocks = self._load, self._clocks
        start, neighbours_before = clocks.now(), clocks.neighbours()
        if load.scenario == "server":
            self._server(start, self._order())
        elif load.batches is None:
            self._serial(start, self._order(), load.issue)
        else:
            self._serial(start, self._whole_batches(load.batches.size), load.batches.issue)
        elapsed_s = clocks.now() - start
        if elapsed_s > 0:
            self._waited_share = self._waited_s / (elapsed_s * load.concurrency)
            used_s = clocks.neighbours() - neighbours_before
            self._neighbours_share = min(1.0, max(0.0, used_s / elapsed_s / machine.cores()))
        self._canary.sing(5)

    def _order(self) -> Iterator[int]:
        return schedule.order(self._load.samples, self._settings.seed)

    def _whole_batches(self, size: int) -> Iterator[list[int]]:
        order = self._order()
        while True:
            yield list(itertools.islice(order, size))

    def _serial(self, start: float, drawn: Iterator[T], issue: Callable[[T], None]) -> None:
        """SingleStream and Offline: the next query is due when the last one is answered."""
        now = self._clocks.now
        alone = self._load.concurrency == 1

        def work() -> None:
            next_canary = now() + _CANARY_EVERY_S
            while not self._ended.is_set():
                with self._lock:
                    query = next(drawn)
                due = now()
                issue(query)
                done = now()
                with self._lock:
                    # alone, the canary's time is left out
                    self._busy_s = self._busy_s + done - due if alone else done - start
                    self._note(done - due)
                if alone and done >= next_canary:
                    self._canary.sing()
                    next_canary = now() + _CANARY_EVERY_S

        self._crew(work)

    def _server(self, start: float, order: Iterator[int]) -> None:
        """Poisson arrivals; a query that had to wait for the one before waits on the clock.

        Each worker takes the query that is due next and waits for its time.  So a query is begun
        when it is due or as soon as a worker is free, in order, with no queue to keep.
        """
        now, issue = self._clocks.now, self._load.issue
        alone = self._load.concurrency == 1
        arrivals = zip(
            order, schedule.poisson(self._load.qps or 0.0, self._settings.seed), strict=False
        )

        def work() -> None:
            next_canary = start + _CANARY_EVERY_S
            while not self._ended.is_set():
                with self._lock:
                    index, offset = next(arrivals)
                due = start + offset
                if alone:
                    if due - now() > 2 * self._canary.median_ms / 1e3 and now() >= next_canary:
                        self._canary.sing()  # only where it fits into a gap and delays nobody
                        next_canary = now() + _CANARY_EVERY_S
                    self._wait_until(due)
                # not spun: that would keep the interpreter from the others
                elif self._ended.wait(max(0.0, due - now())) and now() < due:
                    return  # what is overdue is issued still: leaving it out would flatter
                issue(index)
                done = now()
                with self._lock:
                    self._busy_s = max(self._busy_s, done - start)
                    self._note(done - due)

        self._crew(work)

    def _crew(self, work: Callable[[], None]) -> None:
        """Run `work` on as many threads as there are instances, on this one if it is one.

        Raises:
            BaseException: the first that a worker raised.
        """

        def counted() -> None:
            before = self._clocks.waited()
            try:
                work()
            except BaseException as error:
                self._errors.append(error)
                self._ended.set()
            finally:
                waited_s = self._clocks.waited() - before
                with self._lock:
                    self._waited_s += waited_s

        if self._load.concurrency == 1:
            counted()
        else:
            workers = [
                threading.Thread(target=counted, name=f"measure-{number}")
                for number in range(self._load.concurrency)
            ]
            try:
                for worker in workers:
                    worker.start()
                self._ended.wait()
            finally:
                self._ended.set()
                for worker in workers:
                    if worker.ident is not None:
                        worker.join()
        if self._errors:
            raise self._errors[0]

    def _wait_until(self, due: float) -> None:
        now = self._clocks.now
        ahead = due - now()
        if ahead > _SLEEP_SLACK_S:
            self._clocks.sleep(ahead - _SLEEP_SLACK_S)
        while now() < due:
            pass

    def _note(self, latency_s: float) -> None:
        """Keep one latency and see whether that is enough; the lock is held."""
        self._latencies.note(latency_s)
        settings = self._settings
        late = self._busy_s > settings.max_duration_s
        if late or self._queries >= self._next_look:
            self._next_look = math.ceil(self._queries * 1.5)
            long_enough = self._busy_s >= settings.min_duration_s
            if late or (long_enough and self._judge()[0] != "INCONCLUSIVE"):
                self._ended.set()

    @property
    def _queries(self) -> int:
        return self._latencies.count * self._batch

    def _judge(self) -> tuple[Verdict, str]:
        """What the queries so far prove, disturbance apart."""
        queries, over, load = self._queries, self._latencies.over, self._load
        if queries < self._settings.min_queries:
            return "INCONCLUSIVE", f"{queries} of at least {self._settings.min_queries} queries"
        if load.scenario == "offline":
            return self._judge_throughput(queries)
        name = f"p{load.percentile * 100:g}"
        if load.target_latency_ms is None:
            if percentiles.holds(0, queries, load.percentile):
                return "PASS", f"{name} stated from {queries} queries; no limit was given"
            return "INCONCLUSIVE", f"{queries} queries are too few to state {name}"
        said = f"{over} of {queries} queries over {load.target_latency_ms:g} ms"
        if percentiles.holds(over, queries, load.percentile):
            return "PASS", f"{name} holds: {said}"
        if percentiles.breaks(over, queries, load.percentile):
            return "FAIL", f"{name} does not hold: {said}"
        return "INCONCLUSIVE", f"{name} undecided: {said}"

    def _judge_throughput(self, queries: int) -> tuple[Verdict, str]:
        reached, wanted = queries / self._busy_s if self._busy_s else 0.0, self._load.qps
        if wanted is None:
            return "PASS", f"{reached:.1f} queries/s; no target was given"
        verdict: Verdict = "PASS" if reached >= wanted else "FAIL"
        return verdict, f"{reached:.1f} queries/s of {wanted:g} wanted"

    def _disturbance(self) -> str:
        """How somebody else disturbed the run; empty if nobody did."""
        return machine.disturbance(
            self._canary.ratio,
            self._waited_share,
            self._settings,
            # our own workers wait for one another where they outnumber the cores
            neighbours_share=None if self._load.concurrency == 1 else self._neighbours_share,
        )

    def result(self, runs: int, provenance: dict[str, str]) -> Measurement:
        settings, load = self._settings, self._load
        verdict, reason = self._judge()
        disturbance = self._disturbance()
        limit = load.qps if load.scenario == "offline" else load.target_latency_ms
        if disturbance and verdict == "PASS" and limit is not None:
            reason = f"{reason}, though {disturbance}"
        elif disturbance:
            verdict, reason = "INVALID", disturbance
        latencies_ms = self._latencies.kept_ms()
        p50, p90, p95, p99 = (
            percentiles.percentile(latencies_ms, fraction) for fraction in (0.5, 0.9, 0.95, 0.99)
        )
        return Measurement(
            scenario=load.scenario,
            verdict=verdict,
            reason=reason,
            queries=self._queries,
            duration_s=self._busy_s,
            qps=self._queries / self._busy_s if self._busy_s else 0.0,
            mean_ms=self._latencies.total_s / self._latencies.count * 1e3,
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            percentile=load.percentile,
            upper_bound_ms=percentiles.upper_bound(latencies_ms, load.percentile),
            target_latency_ms=load.target_latency_ms,
            target_qps=load.qps,
            over_limit=self._latencies.over,
            quick=settings.quick,
            seed=settings.seed,
            peak_rss_mib=machine.peak_rss_mib(),
            canary_ms=self._canary.median_ms,
            canary_ratio=self._canary.ratio,
            waited_share=self._waited_share,
            load_per_core=self._load_per_core,
            runs=runs,
            provenance=provenance,
            concurrency=load.concurrency,
            batch=self._batch,
            neighbours_share=self._neighbours_share,
            min_duration_s=settings.min_duration_s,
            histogram=histogram(latencies_ms),
        )
