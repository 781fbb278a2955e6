"""The highest rate of queries at which a latency limit holds.

Rules:
    * Each rate is a run of the server scenario, judged with 99 % confidence.  A rate that was
      not decided within its time did not hold, but it did not fail either.
    * Bracket, then halve: from nine tenths of the capacity up or down until one rate holds and one
      does not, then between them until they are within `precision`.  What short runs found is
      searched once more in its neighbourhood with longer ones, and these decide: queries that wait
      in one queue are slow together, so a short run near saturation may hold by luck.
    * Every run has arrivals of its own, so that the luck of one schedule does not decide them all.
    * What would not fit into the time is not begun; the answer then is the highest rate that held
      so far, and says that there may be a higher one.
    * A disturbed run is tried again; a machine that stays disturbed ends the search.
    * A limit of two or three service times is met less and less often over a wide band of rates.
      To tell those apart with confidence takes more queries than a search has time for, so the rate
      that is stated then lies up to a tenth below the true one.

Source: MLPerf LoadGen, Server scenario: its result is the highest rate whose run is valid.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, ConfigDict

from edge_agent.measure import machine, percentiles
from edge_agent.measure.attempt import Clocks, Issue, Load
from edge_agent.measure.load import measure
from edge_agent.measure.results import Measurement, MeasureSettings, Scenario, Verdict

log = logging.getLogger("skerry.measure")

PRECISION: Final = 0.02
_FIRST_SHARE: Final = 0.9
_CAPACITY_S: Final = 1.0
"""Longest that the capacity is measured: it only says where to begin."""

_BRIEF_QUERIES: Final = 10

_OVER_NEEDED: Final = 2.0
"""How much longer than its fewest queries take a run may last, whatever its share of the time."""

_SHORTEST_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class _Level:
    """How thoroughly rates are tried.

    Attributes:
        queries: times the settings' fewest queries, where its share of the time allows.
        share: of the time limit, for one run.
        up, down: steps while the bracket is open on a side.
    """

    queries: int
    share: float
    up: float
    down: float


_COARSE: Final = _Level(queries=1, share=1 / 8, up=1.25, down=0.7)
_FINE_QUERIES: Final = 5
_FINE_SHARE: Final = 1 / 6


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
        verdict: PASS: the rate is found, and one within `precision` above it failed or could not
            be decided; INCONCLUSIVE: the time was up before (`highest_qps` holds, a higher one may
            too); FAIL: the limit does not hold even for a single query on an idle machine;
            INVALID: the machine was disturbed.
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

    def __init__(self, first_qps: float, precision: float, up: float, down: float) -> None:
        """
        Args:
            precision: the bracket is closed once `failed` is within it of `held`.
            up, down: factors by which the rate steps while one of the two is missing.
        """
        self._first_qps = first_qps
        self._precision = precision
        self._up = up
        self._down = down
        self.held = 0.0
        self.failed = math.inf

    @property
    def closed(self) -> bool:
        # a step of exactly the precision closes it, whatever the last bit says
        return self.failed <= self.held * (1 + self._precision + 1e-9)

    def next_qps(self) -> float:
        if self.held and self.failed < math.inf:
            return (self.held + self.failed) / 2
        if self.held:
            return self.held * self._up
        if self.failed < math.inf:
            return self.failed * self._down
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
        idle = self._measure("single_stream", self._brief())
        if idle.verdict == "FAIL":
            return "FAIL", f"not even one query at a time keeps the limit: {idle.reason}"
        self._capacity_qps = idle.qps
        if self._load.concurrency > 1:
            self._capacity_qps = self._measure("offline", self._brief()).qps
        coarse = Bracket(
            self._capacity_qps * _FIRST_SHARE, self._precision, _COARSE.up, _COARSE.down
        )
        if trouble := self._narrow(coarse, _COARSE):
            return trouble[0], self._said(coarse, trouble[1])
        step = 1 + 2 * self._precision
        level = _Level(_FINE_QUERIES, _FINE_SHARE, step, 1 / step)
        fine = Bracket(coarse.held, self._precision, level.up, level.down)
        best, self._best = self._best, None
        trouble = self._narrow(fine, level)
        if trouble is None:
            return "PASS", self._said(fine, "")
        if self._best is None:
            self._best = best
            return trouble[0], f"{self._said(coarse, trouble[1])}, by short runs alone"
        return trouble[0], self._said(fine, trouble[1])

    def _narrow(self, bracket: Bracket, level: _Level) -> tuple[Verdict, str] | None:
        """Try rates until `bracket` is closed.

        Returns:
            What ended it before, if something did.
        """
        disturbed = 0
        while not bracket.closed:
            qps = bracket.next_qps()
            settings = self._settings_at(qps, level)
            if settings is None:
                return "INCONCLUSIVE", "the time was up"
            probe = self._measure("server", settings, qps)
            self._note(probe)
            if probe.verdict == "INVALID":
                disturbed += 1
                if disturbed >= self._attempts:
                    return "INVALID", probe.reason
                continue
            disturbed = 0
            bracket.note(qps, probe.verdict == "PASS")
            if probe.verdict == "PASS":
                self._best = probe
        return None

    def result(self, verdict: Verdict, reason: str) -> QpsSearch:
        load, best = self._load, self._best
        failed = [probe.qps for probe in self._probes if probe.verdict == "FAIL"]
        if best is not None:
            failed = [qps for qps in failed if qps > (best.target_qps or 0.0)]
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

    def _settings_at(self, qps: float, level: _Level) -> MeasureSettings | None:
        """The settings of one run at `qps`; None where there is no time for it."""
        settings, left_s = self._settings, self._left_s()
        share_s = self._limit_s * level.share
        fewest = max(settings.min_queries, percentiles.queries_needed(0, self._load.percentile))
        queries = max(fewest, min(fewest * level.queries, int(share_s * qps)))
        needed_s = max(settings.min_duration_s, queries / qps)
        if needed_s > left_s:
            return None
        longest_s = max(min(settings.max_duration_s, share_s), _OVER_NEEDED * needed_s)
        return settings.model_copy(
            update={
                "seed": settings.seed + len(self._probes),
                "min_queries": queries,
                "max_duration_s": min(longest_s, left_s),
            }
        )

    def _brief(self) -> MeasureSettings:
        """The settings of a run that only says where to begin."""
        longest_s = max(min(_CAPACITY_S, self._left_s()), _SHORTEST_S)
        return self._settings.model_copy(
            update={
                "min_duration_s": min(self._settings.min_duration_s, longest_s),
                "min_queries": min(self._settings.min_queries, _BRIEF_QUERIES),
                "max_duration_s": longest_s,
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
