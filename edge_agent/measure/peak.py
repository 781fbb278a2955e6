"""The highest rate of queries at which a latency limit holds.

Rules:
    * Each rate is a run of the server scenario, judged with 99 % confidence.  A rate that was
      not decided within its time did not hold, but it did not fail either.
    * Bracket, then halve: from nine tenths of the capacity up or down until one rate holds
      and one does not, then between them until they are within `precision`.
    * Every run has arrivals of its own, so that the luck of one schedule does not decide them all.
    * What would not fit into the time is not begun; the answer then is the highest rate that held
      so far, and says that there may be a higher one.
    * A disturbed run is tried again; a machine that stays disturbed ends the search.

Source: MLPerf LoadGen, Server scenario: its result is the highest rate whose run is valid.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Final

from pydantic import BaseModel, ConfigDict

from edge_agent.measure import machine, percentiles
from edge_agent.measure.attempt import Clocks, Issue, Load
from edge_agent.measure.load import measure
from edge_agent.measure.results import Measurement, MeasureSettings, Scenario, Verdict

log = logging.getLogger("skerry.measure")

PRECISION: Final = 0.02
_FIRST_SHARE: Final = 0.9
_UP: Final = 1.25
_DOWN: Final = 0.7
_CAPACITY_S: Final = 1.0
"""Longest that the capacity is measured: it only says where to begin."""

_RUNS: Final = 6
_OVER_NEEDED: Final = 2.0
_SHORTEST_S: Final = 0.01


class Probe(BaseModel):
    """One rate that was tried.

    Attributes:
        qps: mean rate of arrivals.
        upper_bound_ms: the percentile lies below it with 99 % confidence; None: too few queries.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    qps: float
    verdict: Verdict
    queries: int
    duration_s: float
    p99_ms: float
    upper_bound_ms: float | None


class QpsSearch(BaseModel):
    """What the search found.

    Attributes:
        verdict: PASS: the rate is found to within `precision`; INCONCLUSIVE: the time was up
            before (`highest_qps` holds, a higher one may too); FAIL: the limit does not hold even
            for a single query on an idle machine; INVALID: the machine was disturbed.
        highest_qps: highest rate that held, with 99 % confidence; None if none did.
        lowest_failed_qps: lowest rate above it that surely did not hold; None if none was seen.
        measurement: the run at `highest_qps`.
        probes: the rates in the order in which they were tried.
        capacity_qps: throughput without a limit, where the search began.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    verdict: Verdict
    reason: str
    highest_qps: float | None
    lowest_failed_qps: float | None
    measurement: Measurement | None
    probes: tuple[Probe, ...]
    capacity_qps: float
    target_latency_ms: float
    percentile: float
    concurrency: int
    precision: float
    duration_s: float
    quick: bool
    seed: int
    provenance: dict[str, str]


def find_highest_qps(
    issue: Issue,
    *,
    target_latency_ms: float,
    percentile: float = 0.99,
    settings: MeasureSettings,
    time_limit_s: float = 120.0,
    concurrency: int = 1,
    samples: int = 1,
    precision: float = PRECISION,
    provenance: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    waited: Callable[[], float] = machine.waited_s,
    neighbours: Callable[[], float] = machine.neighbours_s,
) -> QpsSearch:
    """Search the highest Poisson rate at which `percentile` keeps within `target_latency_ms`.

    Hold `machine_lock` around it.

    Args:
        settings: of each run.
        time_limit_s: seconds for the whole search; a query under way is not interrupted.
        concurrency: threads that call `issue` at the same time, one per instance.
        precision: how close the highest rate that holds and the lowest that does not come.
        clock, sleep, waited, neighbours: see `measure`.

    Raises:
        ValueError: an argument is out of range.
    """
    if not target_latency_ms > 0:
        raise ValueError(f"target_latency_ms must be positive, not {target_latency_ms}")
    if not 0 < precision < 1:
        raise ValueError(f"precision is a fraction in (0, 1), not {precision}")
    search = _Search(
        Load(issue, "server", target_latency_ms, percentile, 1.0, samples, concurrency, None),
        settings,
        time_limit_s,
        Clocks(clock, sleep, waited, neighbours),
        precision,
        provenance or {},
    )
    result = search.result(*search.run())
    log.info(
        "measure.peak verdict=%s highest_qps=%s probes=%d duration_s=%.1f",
        result.verdict, result.highest_qps, len(result.probes), result.duration_s,
    )  # fmt: skip
    return result


class Bracket:
    """Which rate to try next.  Pure.

    Attributes:
        held: highest rate that held; 0 for none yet.
        failed: lowest rate that did not hold; infinite for none yet.
    """

    def __init__(self, first_qps: float, precision: float) -> None:
        self._first_qps = first_qps
        self._precision = precision
        self.held = 0.0
        self.failed = math.inf

    @property
    def closed(self) -> bool:
        return self.failed <= self.held * (1 + self._precision)

    def next_qps(self) -> float:
        if self.held and self.failed < math.inf:
            return (self.held + self.failed) / 2
        if self.held:
            return self.held * _UP
        if self.failed < math.inf:
            return self.failed * _DOWN
        return self._first_qps

    def note(self, qps: float, held: bool) -> None:
        if held:
            self.held = max(self.held, qps)
        else:
            self.failed = min(self.failed, qps)


class _Search:
    """One search: what was tried so far, and the time it may still take."""

    def __init__(
        self,
        load: Load,
        settings: MeasureSettings,
        time_limit_s: float,
        clocks: Clocks,
        precision: float,
        provenance: Mapping[str, str],
    ) -> None:
        self._load = load
        self._settings = settings.model_copy(update={"attempts": 1})
        self._attempts = settings.attempts
        self._clocks = clocks
        self._precision = precision
        self._provenance = provenance
        self._begin = clocks.now()
        self._limit_s = time_limit_s
        self._capacity_qps = 0.0
        self._best: Measurement | None = None
        self._probes: list[Probe] = []

    def run(self) -> tuple[Verdict, str]:
        """Try rates until the answer is known or the time is up."""
        idle = self._measure("single_stream", self._settings_for(_CAPACITY_S))
        if idle.verdict == "FAIL":
            return "FAIL", f"not even one query at a time keeps the limit: {idle.reason}"
        self._capacity_qps = idle.qps
        if self._load.concurrency > 1:
            self._capacity_qps = self._measure("offline", self._settings_for(_CAPACITY_S)).qps
        bracket = Bracket(self._capacity_qps * _FIRST_SHARE, self._precision)
        disturbed = 0
        while not bracket.closed:
            qps = bracket.next_qps()
            needed_s = self._needed_s(qps)
            if needed_s > self._left_s():
                return "INCONCLUSIVE", self._said(bracket, "the time was up")
            probe = self._measure("server", self._settings_for(needed_s), qps)
            self._note(probe)
            if probe.verdict == "INVALID":
                disturbed += 1
                if disturbed >= self._attempts:
                    return "INVALID", self._said(bracket, probe.reason)
                continue
            disturbed = 0
            bracket.note(qps, probe.verdict == "PASS")
            if probe.verdict == "PASS":
                self._best = probe
        return "PASS", self._said(bracket, "")

    def result(self, verdict: Verdict, reason: str) -> QpsSearch:
        load, best = self._load, self._best
        failed = [probe.qps for probe in self._probes if probe.verdict == "FAIL"]
        return QpsSearch(
            verdict=verdict,
            reason=reason,
            highest_qps=None if best is None else best.target_qps,
            lowest_failed_qps=min(failed, default=None),
            measurement=best,
            probes=tuple(self._probes),
            capacity_qps=self._capacity_qps,
            target_latency_ms=load.target_latency_ms or 0.0,
            percentile=load.percentile,
            concurrency=load.concurrency,
            precision=self._precision,
            duration_s=self._clocks.now() - self._begin,
            quick=self._settings.quick,
            seed=self._settings.seed,
            provenance=machine.provenance(self._provenance),
        )

    def _measure(
        self, scenario: Scenario, settings: MeasureSettings, qps: float | None = None
    ) -> Measurement:
        load = self._load
        return measure(
            load.issue,
            scenario=scenario,
            settings=settings,
            target_latency_ms=None if scenario == "offline" else load.target_latency_ms,
            percentile=load.percentile,
            qps=qps,
            samples=load.samples,
            concurrency=1 if scenario == "single_stream" else load.concurrency,
            provenance=self._provenance,
            clock=self._clocks.now,
            sleep=self._clocks.sleep,
            waited=self._clocks.waited,
            neighbours=self._clocks.neighbours,
        )

    def _left_s(self) -> float:
        return self._begin + self._limit_s - self._clocks.now()

    def _needed_s(self, qps: float) -> float:
        """Seconds until the fewest queries that can decide have arrived at this rate."""
        queries = percentiles.queries_needed(0, self._load.percentile)
        return max(self._settings.min_duration_s, max(queries, self._settings.min_queries) / qps)

    def _settings_for(self, needed_s: float) -> MeasureSettings:
        """The settings of one run: its share of the time, twice what it needs, or what is left."""
        settings = self._settings
        longest_s = max(
            min(settings.max_duration_s, self._limit_s / _RUNS), _OVER_NEEDED * needed_s
        )
        return settings.model_copy(
            update={
                "seed": settings.seed + len(self._probes),
                "min_duration_s": min(settings.min_duration_s, needed_s),
                "max_duration_s": max(min(longest_s, self._left_s()), _SHORTEST_S),
            }
        )

    def _note(self, probe: Measurement) -> None:
        self._probes.append(
            Probe(
                qps=probe.target_qps or 0.0,
                verdict=probe.verdict,
                queries=probe.queries,
                duration_s=probe.duration_s,
                p99_ms=probe.p99_ms,
                upper_bound_ms=probe.upper_bound_ms,
            )
        )

    def _said(self, bracket: Bracket, trouble: str) -> str:
        limit = f"p{self._load.percentile * 100:g} of {self._load.target_latency_ms:g} ms"
        said = (
            f"{limit} held at {bracket.held:.4g} queries/s"
            if bracket.held
            else (f"{limit} held at no rate that was tried")
        )
        if bracket.failed < math.inf:
            said += f", not at {bracket.failed:.4g}"
        return f"{trouble}: {said}" if trouble else said
