"""A virtual machine for the load generator: its clock moves only by work and by waiting."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.measure import (
    Batches,
    Comparison,
    Measurement,
    MeasureSettings,
    QpsSearch,
    Scenario,
    compare,
    find_highest_qps,
    measure,
)

SETTINGS = MeasureSettings(
    min_duration_s=0, max_duration_s=30, min_queries=500, max_canary_ratio=1.3, attempts=1
)


class Machine:
    """Work advances the clock, and so does every look at it, a little."""

    def __init__(self, service_s: Callable[[int], float], look_s: float = 1e-7) -> None:
        """
        Args:
            service_s: seconds of the query of this number, counted from 1.
            look_s: what a look at the clock costs.
        """
        self.now = 0.0
        self.issued: list[int] = []
        self.began: list[float] = []
        self._service_s = service_s
        self._look_s = look_s
        self.waited_share = 0.0

    def clock(self) -> float:
        self.now += self._look_s
        return self.now

    def sleep(self, duration_s: float) -> None:
        self.now += duration_s

    def waited(self) -> float:
        return self.waited_share * self.now

    def neighbours(self) -> float:
        return 0.0

    def issue(self, index: int) -> None:
        self.issued.append(index)
        self.began.append(self.now)
        self.now += self._service_s(len(self.issued))

    def measure(
        self,
        scenario: Scenario = "single_stream",
        settings: MeasureSettings = SETTINGS,
        *,
        target_latency_ms: float | None = None,
        percentile: float = 0.99,
        qps: float | None = None,
        samples: int = 10,
        batches: Batches | None = None,
    ) -> Measurement:
        return measure(
            self.issue,
            scenario=scenario,
            settings=settings,
            target_latency_ms=target_latency_ms,
            percentile=percentile,
            qps=qps,
            samples=samples,
            batches=batches,
            clock=self.clock,
            sleep=self.sleep,
            waited=self.waited,
            neighbours=self.neighbours,
        )

    def find_highest_qps(
        self,
        target_latency_ms: float,
        settings: MeasureSettings = SETTINGS,
        *,
        percentile: float = 0.99,
        time_limit_s: float = 600.0,
        precision: float = 0.02,
    ) -> QpsSearch:
        return find_highest_qps(
            self.issue,
            target_latency_ms=target_latency_ms,
            percentile=percentile,
            settings=settings,
            time_limit_s=time_limit_s,
            samples=10,
            precision=precision,
            clock=self.clock,
            sleep=self.sleep,
            waited=self.waited,
            neighbours=self.neighbours,
        )

    def compare(
        self,
        baseline_s: Callable[[float], float],
        candidate_s: Callable[[float], float],
        settings: MeasureSettings = SETTINGS,
        *,
        time_limit_s: float | None = None,
    ) -> Comparison:
        """Compare two systems whose service times depend on the time of day."""

        def issue(service_s: Callable[[float], float]) -> Callable[[int], None]:
            def call(index: int) -> None:
                self.issued.append(index)
                self.now += service_s(self.now)

            return call

        return compare(
            issue(baseline_s),
            issue(candidate_s),
            samples=10,
            settings=settings,
            time_limit_s=time_limit_s,
            clock=self.clock,
            waited=self.waited,
        )


def steady(service_ms: float) -> Machine:
    return Machine(lambda _: service_ms / 1e3)
