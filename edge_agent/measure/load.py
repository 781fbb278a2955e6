"""The load generator: issues queries by a scenario and judges their latency.

Rules:
    * Latency runs from the moment a query was due, not from when it was sent: a server that falls
      behind cannot hide the queue.
    * PASS and FAIL hold with 99 % confidence; otherwise the verdict is INCONCLUSIVE.
    * A run that somebody else disturbed is INVALID and tried again a few times.  A limit that holds
      even so stands: a neighbour can only make us slower.
    * The same seed issues the same queries in the same order at the same times.
    * The verdict is looked at after numbers of queries that grow by half, not after each one, so
      that looking often does not make luck likely.

Source: MLPerf LoadGen (github.com/mlcommons/inference/tree/master/loadgen), scenarios
SingleStream, Server and Offline.
"""

from __future__ import annotations

import logging
import math
import platform
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from edge_agent.measure import machine, percentiles, schedule
from edge_agent.runtime.cpu import cpu_flags

log = logging.getLogger("skerry.measure")

Scenario = Literal["single_stream", "server", "offline"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]

_CANARY_EVERY_S: Final = 0.1
_WARM_UP_QUERIES: Final = 10
_SLEEP_SLACK_S: Final = 0.0002
"""The system wakes us late by about this much; the rest is spun away."""


class MeasureSettings(BaseModel):
    """How long and how carefully to measure.

    Attributes:
        quick: marks figures that are good enough to choose by, not to publish.
        min_queries: fewest queries; a percentile may need more to be decided.
        max_canary_ratio: canary median over minimum above which a run is disturbed.
        max_waited_share: share of the time spent waiting for a core, above which it is too.
        attempts: runs in all before INVALID stands.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quick: bool = False
    seed: int = 0
    min_duration_s: float = Field(default=5.0, ge=0)
    max_duration_s: float = Field(default=60.0, gt=0)
    min_queries: int = Field(default=1000, ge=1)
    max_canary_ratio: float = Field(default=1.3, gt=1)
    max_waited_share: float = Field(default=0.02, ge=0, le=1)
    attempts: int = Field(default=3, ge=1)

    @classmethod
    def quick_mode(cls, seed: int = 0) -> Self:
        """About half a second for a fast network, four at most; says so in its result."""
        return cls(
            quick=True,
            seed=seed,
            min_duration_s=0.3,
            max_duration_s=4.0,
            min_queries=500,
            max_canary_ratio=1.6,
            max_waited_share=0.05,
            attempts=3,
        )


class Measurement(BaseModel):
    """What one run found.

    Attributes:
        verdict: PASS: the limit holds (or, with no limit, there are enough queries to state the
            percentile); FAIL: it does not; INCONCLUSIVE: the time was up before either was sure;
            INVALID: the machine was disturbed, the figures mean nothing.
        reason: one line on the verdict.
        duration_s: from the first query's due time to the last answer, canary left out.
        qps: answered queries per second.
        percentile: the fraction that `target_latency_ms` is about.
        upper_bound_ms: the percentile lies below it with 99 % confidence; None: too few queries.
        over_limit: queries slower than the limit.
        peak_rss_mib: peak of the measuring process; `measure_memory` weighs a bundle alone.
        canary_ratio: canary's median over its minimum.
        waited_share: share of the time that we were ready and waited for a core.
        load_per_core: load average over cores when the run began.
        runs: how many runs it took; those before were INVALID.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scenario: Scenario
    verdict: Verdict
    reason: str
    queries: int
    duration_s: float
    qps: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    percentile: float
    upper_bound_ms: float | None
    target_latency_ms: float | None
    target_qps: float | None
    over_limit: int
    quick: bool
    seed: int
    peak_rss_mib: float
    canary_ms: float
    canary_ratio: float
    waited_share: float
    load_per_core: float
    runs: int
    provenance: dict[str, str]


def measure(
    issue: Callable[[int], None],
    *,
    scenario: Scenario,
    settings: MeasureSettings,
    target_latency_ms: float | None = None,
    percentile: float = 0.99,
    qps: float | None = None,
    samples: int = 1,
    provenance: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    waited: Callable[[], float] = machine.waited_s,
) -> Measurement:
    """Time `issue`, which answers the sample of the index it is given and returns when done.

    Args:
        target_latency_ms: the limit of the percentile; None states the percentile only.
        percentile: fraction in (0, 1), e.g. 0.99.
        qps: "server": mean rate of arrivals; "offline": throughput to reach, if any.
        samples: indices run below this.
        clock, sleep, waited: seconds; replaced in tests.

    Raises:
        ValueError: the scenario and its arguments do not fit.
    """
    if scenario == "server" and qps is None:
        raise ValueError("the server scenario needs qps")
    if not 0 < percentile < 1:
        raise ValueError(f"percentile is a fraction in (0, 1), not {percentile}")
    run = 0
    while True:
        run += 1
        attempt = _Run(
            issue, scenario, settings, target_latency_ms, percentile, qps, samples,
            clock, sleep, waited,
        )  # fmt: skip
        attempt.warm_up()
        attempt.loop()
        result = attempt.result(run, _provenance(provenance or {}))
        if result.verdict != "INVALID" or run >= settings.attempts:
            break
    log.info(
        "measure.done scenario=%s verdict=%s queries=%d p99_ms=%.3f qps=%.1f runs=%d",
        scenario, result.verdict, result.queries, result.p99_ms, result.qps, run,
    )  # fmt: skip
    return result


class _Run:
    """One attempt: the latencies so far and what can be said about them."""

    def __init__(
        self,
        issue: Callable[[int], None],
        scenario: Scenario,
        settings: MeasureSettings,
        target_latency_ms: float | None,
        percentile: float,
        qps: float | None,
        samples: int,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        waited: Callable[[], float],
    ) -> None:
        self._issue = issue
        self._scenario: Scenario = scenario
        self._settings = settings
        self._target_s = None if target_latency_ms is None else target_latency_ms / 1e3
        self._percentile = percentile
        self._qps = qps
        self._clock = clock
        self._sleep = sleep
        self._waited = waited
        self._waited_share = 0.0
        self._order = schedule.order(samples, settings.seed)
        self._samples = samples
        self._latencies_s: list[float] = []
        self._over = 0
        self._busy_s = 0.0
        self._canary = machine.Canary(clock)
        self._load = machine.load_per_core()

    def warm_up(self) -> None:
        machine.reset_peak_rss()
        for index in range(_WARM_UP_QUERIES):
            self._issue(index % self._samples)
        self._canary.sing(5)

    def loop(self) -> None:
        start, waited_before = self._clock(), self._waited()
        if self._scenario == "server":
            self._server()
        else:
            self._serial()
        elapsed_s = self._clock() - start
        if elapsed_s > 0:
            self._waited_share = (self._waited() - waited_before) / elapsed_s
        self._canary.sing(5)

    def _serial(self) -> None:
        """SingleStream and Offline: the next query is due when the last one is answered."""
        clock, issue = self._clock, self._issue
        next_canary = clock() + _CANARY_EVERY_S
        next_look = self._settings.min_queries
        for index in self._order:
            due = clock()
            issue(index)
            done = clock()
            self._note(done - due)
            self._busy_s += done - due
            if len(self._latencies_s) >= next_look or self._busy_s > self._settings.max_duration_s:
                if self._finished():
                    return
                next_look = math.ceil(len(self._latencies_s) * 1.5)
            if done >= next_canary:
                self._canary.sing()
                next_canary = clock() + _CANARY_EVERY_S

    def _server(self) -> None:
        """Poisson arrivals; a query that had to wait for the one before waits on the clock."""
        clock, issue = self._clock, self._issue
        next_look = self._settings.min_queries
        start = clock()
        next_canary = start + _CANARY_EVERY_S
        for index, offset in zip(
            self._order, schedule.poisson(self._qps or 0.0, self._settings.seed), strict=False
        ):
            due = start + offset
            if due - clock() > 2 * self._canary.median_ms / 1e3 and clock() >= next_canary:
                self._canary.sing()  # only where it fits into a gap and delays nobody
                next_canary = clock() + _CANARY_EVERY_S
            self._wait_until(due)
            issue(index)
            done = clock()
            self._note(done - due)
            self._busy_s = done - start
            if len(self._latencies_s) >= next_look or self._busy_s > self._settings.max_duration_s:
                if self._finished():
                    return
                next_look = math.ceil(len(self._latencies_s) * 1.5)

    def _wait_until(self, due: float) -> None:
        ahead = due - self._clock()
        if ahead > _SLEEP_SLACK_S:
            self._sleep(ahead - _SLEEP_SLACK_S)
        while self._clock() < due:
            pass

    def _note(self, latency_s: float) -> None:
        self._latencies_s.append(latency_s)
        if self._target_s is not None and latency_s > self._target_s:
            self._over += 1

    def _finished(self) -> bool:
        if self._busy_s > self._settings.max_duration_s:
            return True
        if self._busy_s < self._settings.min_duration_s:
            return False
        return self._judge()[0] != "INCONCLUSIVE"

    def _judge(self) -> tuple[Verdict, str]:
        """What the queries so far prove, the canary apart."""
        queries = len(self._latencies_s)
        if queries < self._settings.min_queries:
            return "INCONCLUSIVE", f"{queries} of at least {self._settings.min_queries} queries"
        if self._scenario == "offline":
            return self._judge_throughput(queries)
        name = f"p{self._percentile * 100:g}"
        if self._target_s is None:
            if percentiles.holds(0, queries, self._percentile):
                return "PASS", f"{name} stated from {queries} queries; no limit was given"
            return "INCONCLUSIVE", f"{queries} queries are too few to state {name}"
        said = f"{self._over} of {queries} queries over {self._target_s * 1e3:g} ms"
        if percentiles.holds(self._over, queries, self._percentile):
            return "PASS", f"{name} holds: {said}"
        if percentiles.breaks(self._over, queries, self._percentile):
            return "FAIL", f"{name} does not hold: {said}"
        return "INCONCLUSIVE", f"{name} undecided: {said}"

    def _judge_throughput(self, queries: int) -> tuple[Verdict, str]:
        reached = queries / self._busy_s if self._busy_s else 0.0
        if self._qps is None:
            return "PASS", f"{reached:.1f} queries/s; no target was given"
        verdict: Verdict = "PASS" if reached >= self._qps else "FAIL"
        return verdict, f"{reached:.1f} queries/s of {self._qps:g} wanted"

    def _disturbance(self) -> str:
        """How somebody else disturbed the run; empty if nobody did."""
        settings = self._settings
        if self._canary.ratio > settings.max_canary_ratio:
            return (
                f"the machine was disturbed: canary at {self._canary.ratio:.2f}× its fastest, "
                f"allowed is {settings.max_canary_ratio:g}×"
            )
        if self._waited_share > settings.max_waited_share:
            return (
                f"the machine was disturbed: {self._waited_share:.0%} of the time was spent "
                f"waiting for a core, allowed is {settings.max_waited_share:.0%}"
            )
        return ""

    def result(self, runs: int, provenance: dict[str, str]) -> Measurement:
        settings = self._settings
        verdict, reason = self._judge()
        disturbance = self._disturbance()
        if disturbance and verdict == "PASS" and self._target_s is not None:
            reason = f"{reason}, though {disturbance}"
        elif disturbance:
            verdict, reason = "INVALID", disturbance
        latencies_ms = np.asarray(self._latencies_s, dtype=np.float64) * 1e3
        p50, p90, p95, p99 = (
            percentiles.percentile(latencies_ms, fraction) for fraction in (0.5, 0.9, 0.95, 0.99)
        )
        return Measurement(
            scenario=self._scenario,
            verdict=verdict,
            reason=reason,
            queries=len(latencies_ms),
            duration_s=self._busy_s,
            qps=len(latencies_ms) / self._busy_s if self._busy_s else 0.0,
            mean_ms=float(latencies_ms.mean()),
            p50_ms=p50,
            p90_ms=p90,
            p95_ms=p95,
            p99_ms=p99,
            percentile=self._percentile,
            upper_bound_ms=percentiles.upper_bound(latencies_ms, self._percentile),
            target_latency_ms=None if self._target_s is None else self._target_s * 1e3,
            target_qps=self._qps,
            over_limit=self._over,
            quick=settings.quick,
            seed=settings.seed,
            peak_rss_mib=machine.peak_rss_mib(),
            canary_ms=self._canary.median_ms,
            canary_ratio=self._canary.ratio,
            waited_share=self._waited_share,
            load_per_core=self._load,
            runs=runs,
            provenance=provenance,
        )


def _provenance(given: Mapping[str, str]) -> dict[str, str]:
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu_flags": " ".join(cpu_flags()),
        **given,
    }
