"""What a variant may cost and how good it must be, and the judgement of one variant against that.

Rules:
    * Every bound that is given is judged.  A bound whose fact was not established makes the
      verdict INCONCLUSIVE, never PASS: the judgement fails closed.
    * A percentile of latency is judged by the statistics of the measurement (early stopping at a
      stated confidence), not by comparing one number with another.
    * Pure: facts in, verdict out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Outcome = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]
MetricName = Literal["accuracy", "macro_f1", "balanced_accuracy"]
Preference = Literal["speed", "accuracy"]

DEFAULT_PERCENTILE: Final = 0.99

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Budget(BaseModel):
    """Bounds for one hardware profile.  What is left out is not bounded.

    Attributes:
        latency_ms: bound of the latency at `percentile`, from the scheduled time of a request.
        percentile: share of requests that must keep `latency_ms`.
        qps: arrivals per second (Poisson) at which `latency_ms` must still hold.
        memory_mib: peak resident memory of a process that serves the variant.
        artifact_kib: size of the unpacked bundle.
        max_accuracy_drop_points: largest loss of the primary metric, in points of a percent,
            against the best unquantised member of the family.
        min_accuracy: floors by metric, 0..1.
        min_recall: floors by class label, 0..1.
        replicas: processes with the variant that one device must hold side by side by its memory.
        prefer: what decides between variants that all keep the bounds; see `preference`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_ms: Positive | None = None
    percentile: Annotated[float, Field(ge=0.5, le=0.999)] = DEFAULT_PERCENTILE
    qps: Positive | None = None
    memory_mib: Positive | None = None
    artifact_kib: Positive | None = None
    max_accuracy_drop_points: Annotated[float, Field(ge=0, le=100)] | None = None
    min_accuracy: dict[MetricName, Share] = Field(default_factory=dict)
    min_recall: dict[str, Share] = Field(default_factory=dict)
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    prefer: Preference | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.latency_ms is None and self.qps is not None:
            raise ValueError("qps needs latency_ms: a rate holds only together with a latency")
        if self.latency_ms is None and self.percentile != DEFAULT_PERCENTILE:
            raise ValueError("percentile needs latency_ms")
        return self

    @property
    def preference(self) -> Preference:
        """What decides between variants that keep every bound.

        Without `prefer`: speed where a bound already says what accuracy is good enough, else
        accuracy.
        """
        if self.prefer is not None:
            return self.prefer
        bounded = self.max_accuracy_drop_points is not None or self.min_accuracy or self.min_recall
        return "speed" if bounded else "accuracy"


@dataclass(frozen=True)
class Facts:
    """What was established about a variant; `None` where it was not.

    Attributes:
        latency: outcome of the latency measurement against the budget's bound.
        latency_ms: observed latency at the budget's percentile.
        server: outcome of the measurement at the budget's QPS.
        server_latency_ms: observed latency at the percentile under that load.
        metrics: metrics of the variant, 0..1.
        baseline: the primary metric of the best unquantised member, 0..1.
        recall: recall by label; `nan` for a class the data does not have.
        device_memory_mib: memory of one device that processes with the variant may share.
    """

    latency: Outcome | None = None
    latency_ms: float | None = None
    server: Outcome | None = None
    server_latency_ms: float | None = None
    memory_mib: float | None = None
    artifact_kib: float | None = None
    metrics: Mapping[MetricName, float] = field(default_factory=dict)
    primary: MetricName = "macro_f1"
    baseline: float | None = None
    recall: Mapping[str, float] = field(default_factory=dict)
    device_memory_mib: float | None = None

    @property
    def replicas(self) -> int | None:
        """Processes with the variant that one device holds by its memory."""
        if self.memory_mib is None or self.device_memory_mib is None:
            return None
        return whole_replicas(self.device_memory_mib, self.memory_mib)


@dataclass(frozen=True)
class Verdict:
    """Judgement of a variant.

    Attributes:
        reasons: one line for each bound that is not met; empty for PASS.
        distance: sum of the relative overshoots, 0 where no bound is missed; orders near misses.
    """

    verdict: Outcome
    reasons: tuple[str, ...] = ()
    distance: float = 0.0

    @property
    def reason(self) -> str:
        return "; ".join(self.reasons)


def whole_replicas(device_memory_mib: float, memory_mib: float) -> int:
    """Processes of `memory_mib` each that a device of `device_memory_mib` holds.

    Each is counted with its own peak, since all may reach it at once.

    Raises:
        ValueError: `memory_mib` is not positive.
    """
    if not memory_mib > 0:
        raise ValueError("the memory of a replica must be positive")
    return int(device_memory_mib // memory_mib)


def judge(budget: Budget, facts: Facts) -> Verdict:
    """Hold `facts` against every bound of `budget`.

    FAIL outweighs INVALID, which outweighs INCONCLUSIVE: a bound that is surely missed stays missed
    however another measurement ends.
    """
    bench = _Bench()
    if budget.latency_ms is not None:
        name = f"p{budget.percentile * 100:g} latency"
        bench.measured(name, facts.latency, facts.latency_ms, budget.latency_ms)
        if budget.qps is not None:
            name += f" at {budget.qps:g} QPS"
            bench.measured(name, facts.server, facts.server_latency_ms, budget.latency_ms)
    bench.at_most("memory", facts.memory_mib, budget.memory_mib, "MiB")
    bench.at_most("bundle", facts.artifact_kib, budget.artifact_kib, "KiB")
    if budget.replicas is not None:
        bench.fitting(facts, budget.replicas)
    if budget.max_accuracy_drop_points is not None:
        value = facts.metrics.get(facts.primary)
        drop = None
        if value is not None and facts.baseline is not None:
            drop = max(0.0, (facts.baseline - value) * 100)
        name = f"loss of {facts.primary}"
        bench.at_most(name, drop, budget.max_accuracy_drop_points, "points")
    for metric, floor in budget.min_accuracy.items():
        bench.at_least(metric, facts.metrics.get(metric), floor)
    for label, floor in budget.min_recall.items():
        bench.at_least(f"recall of '{label}'", facts.recall.get(label), floor)
    return bench.verdict()


class _Bench:
    def __init__(self) -> None:
        self._outcomes: set[Outcome] = set()
        self._reasons: list[str] = []
        self._distance = 0.0

    def measured(
        self, name: str, outcome: Outcome | None, value_ms: float | None, bound_ms: float
    ) -> None:
        if outcome is None:
            self._unknown(name)
            return
        seen = name if value_ms is None else f"{name} {value_ms:.3g} ms"
        if outcome == "FAIL":
            overshoot = 0.0 if value_ms is None else value_ms / bound_ms - 1
            self._miss(f"{seen} > {bound_ms:g} ms", overshoot)
        elif outcome != "PASS":
            state = "too few requests to tell" if outcome == "INCONCLUSIVE" else "machine was busy"
            self._open(outcome, f"{seen} of {bound_ms:g} ms: {state}")

    def at_most(self, name: str, value: float | None, bound: float | None, unit: str) -> None:
        if bound is None:
            return
        if value is None or value != value:
            self._unknown(name)
        elif value > bound:
            # A bound of 0 points is legal; its misses are ordered by their absolute size.
            self._miss(
                f"{name} {value:.4g} {unit} > {bound:g} {unit}", (value - bound) / (bound or 1)
            )

    def fitting(self, facts: Facts, wanted: int) -> None:
        if facts.replicas is None:
            self._unknown("number of replicas")
        elif facts.replicas < wanted:
            room = f"{facts.memory_mib:.4g} MiB each in {facts.device_memory_mib:g} MiB"
            short = (wanted - facts.replicas) / wanted
            self._miss(f"{facts.replicas} replicas < {wanted}: {room}", short)

    def at_least(self, name: str, value: float | None, floor: float) -> None:
        if value is None or value != value:
            self._unknown(name)
        elif value < floor:
            self._miss(f"{name} {value:.4f} < {floor:g}", (floor - value) / floor)

    def verdict(self) -> Verdict:
        outcome: Outcome = "PASS"
        for candidate in ("FAIL", "INVALID", "INCONCLUSIVE"):
            if candidate in self._outcomes:
                outcome = candidate
                break
        return Verdict(outcome, tuple(self._reasons), self._distance)

    def _unknown(self, name: str) -> None:
        self._open("INCONCLUSIVE", f"{name} was not established")

    def _open(self, outcome: Outcome, reason: str) -> None:
        self._outcomes.add(outcome)
        self._reasons.append(reason)

    def _miss(self, reason: str, overshoot: float) -> None:
        self._open("FAIL", reason)
        # A miss by statistics can have an observed value below the bound: still not a hit.
        self._distance += max(overshoot, 1e-6)
