"""What may be said of a candidate by what was found: of a short look, and in full.  Pure.

Rules:
    * PASS needs figures that were taken in full.  A short look says FAIL only where a bound is
      missed by more than the look may be off, and INCONCLUSIVE otherwise.
    * Metrics on some of the items are compared with those of the reference on the same items.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.measure import Measurement
from optimizer.budget import Budget, Facts, judge
from optimizer.evaluate import Accuracy, score, select, spread
from optimizer.profiles import HardwareProfile
from optimizer.rungs import Look
from optimizer.task import Candidate, Fidelity, OptimizeTask

_SURELY: Final = 3.0
"""Standard errors that a figure must be off to count as off."""

_MARGIN: Final[Mapping[Fidelity, float]] = {"probe": 0.25, "quick": 0.1, "full": 0.04}
"""How far medians of two runs apart differ on a machine that does nothing else."""


class Verdicts:
    """Judges the candidates of one profile."""

    def __init__(
        self, task: OptimizeTask, profile: HardwareProfile, references: Mapping[str, Accuracy]
    ) -> None:
        """
        Args:
            references: by member, before any recipe; losses are counted from the best.
        """
        self._task = task
        self._profile = profile
        self._budget = task.profiles[profile.name]
        self.best_member = max(references, key=lambda name: references[name].metric(task.primary))
        self._best = references[self.best_member]
        self._best_of_some = functools.cache(self._metric_of_best)

    def keeps_accuracy(self, accuracy: Accuracy) -> bool:
        """Whether those bounds hold that are about the answers on all items."""
        budget = _without(
            self._budget, "latency_ms", "qps", "memory_mib", "artifact_kib", "replicas"
        )
        return judge(budget, self._answers(accuracy)).verdict == "PASS"

    def judge(self, candidate: Candidate, rows: int | None = None) -> Candidate:
        """The candidate with verdict, reason, distance and latency.

        Args:
            rows: items that its accuracy is about; `None` for all.
        """
        if candidate.fidelity != "full":
            return self._ruled_out(candidate, rows)
        facts = self._facts(candidate)
        verdict = judge(self._budget, facts)
        crowded = self._too_many_instances(candidate)
        return candidate.model_copy(
            update={
                "verdict": "FAIL" if crowded else verdict.verdict,
                "reason": "; ".join((*verdict.reasons, *crowded)),
                "distance": verdict.distance,
                "latency_ms": facts.latency_ms,
            }
        )

    def look(self, candidate: Candidate) -> Look:
        """What the search goes by."""
        timed, accuracy, load = candidate.measurement, candidate.accuracy, 0.0
        if timed is not None and self._budget.qps is not None:
            load = self._budget.qps * timed.p50_ms / 1e3 / candidate.instances
        return Look(
            fidelity=candidate.fidelity,
            outcome=candidate.verdict,
            time_ms=None if timed is None else timed.p50_ms,
            margin=_margin(timed, candidate.fidelity),
            quality=0.0 if accuracy is None else accuracy.metric(self._task.primary),
            load=load,
        )

    def labels(self, count: int) -> NDArray[np.int64]:
        """Right classes of the items that an accuracy of `count` items is about, [count]."""
        return select(self._task.data, count).labels

    def _ruled_out(self, candidate: Candidate, rows: int | None) -> Candidate:
        facts, budget = self._facts(candidate), _without(self._budget, "latency_ms", "qps")
        if candidate.memory_mib is None:
            budget = _without(budget, "memory_mib", "replicas")
        loose = facts
        if rows is not None and candidate.accuracy is not None:
            # A class has too few of the items to say anything.
            budget = budget.model_copy(update={"min_recall": {}})
            slack = self._slack(candidate.accuracy, rows)
            loose = replace(
                facts,
                metrics={name: value + slack for name, value in facts.metrics.items()},
                baseline=self._best_of_some(rows),
            )
        verdict = judge(budget, loose)
        reasons = [*verdict.reasons, *self._too_many_instances(candidate)]
        distance = verdict.distance
        timed, bound = candidate.measurement, self._budget.latency_ms
        if bound is not None and timed is not None and _surely_over(timed, candidate, bound):
            reasons.append(f"p50 latency of a short run {timed.p50_ms:.3g} ms > {bound:g} ms")
            distance += timed.p50_ms / bound - 1
        failed = verdict.verdict == "FAIL" or len(reasons) > len(verdict.reasons)
        return candidate.model_copy(
            update={
                "verdict": "FAIL" if failed else "INCONCLUSIVE",
                "reason": "; ".join(reasons),
                "distance": distance if failed else 0.0,
                "latency_ms": facts.latency_ms,
            }
        )

    def _slack(self, accuracy: Accuracy, rows: int) -> float:
        """How far a metric on some items may be off, from how many are answered another way."""
        part = _part(self._best, rows)
        differing = int(np.sum(part != np.asarray(accuracy.predictions)))
        return _SURELY * math.sqrt(max(differing, 1)) / len(part)

    def _metric_of_best(self, rows: int) -> float:
        data = select(self._task.data, rows)
        names = data.names or self._task.labels
        return score(_part(self._best, rows), data.labels, names).metric(self._task.primary)

    def _too_many_instances(self, candidate: Candidate) -> tuple[str, ...]:
        """Why the device has no memory for so many instances, if it has not."""
        room, weight = self._profile.usable_mib, candidate.memory_mib
        if candidate.instances == 1 or room is None or weight is None or weight <= room:
            return ()
        return (f"{candidate.instances} instances need {weight:.0f} MiB of {room} MiB",)

    def _facts(self, candidate: Candidate) -> Facts:
        latency, server, accuracy = candidate.measurement, candidate.server, candidate.accuracy
        return replace(
            Facts(primary=self._task.primary) if accuracy is None else self._answers(accuracy),
            latency=None if latency is None else latency.verdict,
            latency_ms=None if latency is None else at_percentile(latency),
            server=None if server is None else server.verdict,
            server_latency_ms=None if server is None else at_percentile(server),
            memory_mib=candidate.memory_mib,
            artifact_kib=candidate.artifact_kib,
            device_memory_mib=self._profile.usable_mib,
        )

    def _answers(self, accuracy: Accuracy) -> Facts:
        """Those facts that the answers establish."""
        return Facts(
            metrics=accuracy.metrics(),
            primary=self._task.primary,
            baseline=self._best.metric(self._task.primary),
            recall={n: value for n, value in accuracy.recall.items() if value is not None},
        )


def at_percentile(measurement: Measurement) -> float | None:
    """The latency at the percentile that was asked for, in ms."""
    observed = {
        0.5: measurement.p50_ms,
        0.9: measurement.p90_ms,
        0.95: measurement.p95_ms,
        0.99: measurement.p99_ms,
    }
    return observed.get(measurement.percentile, measurement.upper_bound_ms)


def _part(accuracy: Accuracy, rows: int) -> NDArray[np.int64]:
    known = np.asarray(accuracy.predictions, dtype=np.int64)
    return known[spread(len(known), rows)] if rows < len(known) else known


def _margin(timed: Measurement | None, fidelity: Fidelity) -> float:
    if timed is None:
        return 0.0
    spread = (timed.p90_ms - timed.p50_ms) / timed.p50_ms if timed.p50_ms > 0 else 0.0
    return _MARGIN[fidelity] + _SURELY * spread / math.sqrt(max(timed.queries, 1))


def _surely_over(timed: Measurement, candidate: Candidate, bound_ms: float) -> bool:
    # A percentile above the median lies no lower than it.
    return timed.p50_ms > bound_ms * (1 + _margin(timed, candidate.fidelity))


def _without(budget: Budget, *names: str) -> Budget:
    return budget.model_copy(update=dict.fromkeys(names))
