from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_agent.measure import Measurement, MeasureSettings, measure
from optimizer.budget import Budget
from optimizer.evaluate import Accuracy, score, spread
from optimizer.profiles import Figure, load_profile
from optimizer.task import Candidate, Fidelity, OptimizeTask
from optimizer.verdicts import Verdicts

PROFILE = load_profile("this-machine").model_copy(
    update={"memory_mib": Figure[int](value=100, source="a test")}
)
SOME = 100
"""Items of a short look, of 300."""


def answered(task: OptimizeTask, wrong: float, rows: int | None = None) -> Accuracy:
    """Of a variant that answers a share of the items wrongly, evenly spread."""
    count = len(task.data.labels)
    labels = task.data.labels
    if rows is not None:
        labels = labels[np.unique(np.linspace(0, count - 1, rows).astype(np.int64))]
    answers = labels.copy()
    misses = (
        np.arange(len(labels)) % round(1 / wrong) == 0 if wrong else np.zeros(len(labels), bool)
    )
    answers[misses] = (answers[misses] + 1) % 10
    return score(answers, labels, task.labels)


def timed(time_ms: float, budget: Budget) -> Measurement:
    now = [0.0]

    def issue(index: int) -> None:
        now[0] += time_ms / 1e3

    return measure(
        issue, scenario="single_stream", target_latency_ms=budget.latency_ms,
        percentile=budget.percentile, clock=lambda: now[0], sleep=lambda _: None,
        waited=lambda: 0.0, neighbours=lambda: 0.0,
        settings=MeasureSettings(min_queries=500, min_duration_s=0, attempts=1),
    )  # fmt: skip


def judged(
    task: OptimizeTask,
    budget: Budget,
    fidelity: Fidelity,
    *,
    time_ms: float = 1.0,
    wrong: float = 0.0,
    rows: int | None = None,
    **more: Any,
) -> Candidate:
    task = replace(task, profiles={"this-machine": budget})
    verdicts = Verdicts(task, PROFILE, {"large": answered(task, 0.0)})
    candidate = Candidate(
        profile="this-machine", name="large/r", member="large", recipe="r", runtime="onnxruntime",
        precision="int8", verdict="INVALID", fidelity=fidelity,
        measurement=timed(time_ms, budget), accuracy=answered(task, wrong, rows),
        **({"artifact_kib": 10.0, "memory_mib": 40.0} | more),
    )  # fmt: skip
    return verdicts.judge(candidate, rows)


def test_only_a_full_measurement_passes(task: OptimizeTask) -> None:
    budget = Budget(latency_ms=10, max_accuracy_drop_points=1)
    outcomes = {f: judged(task, budget, f).verdict for f in ("probe", "quick", "full")}
    assert outcomes == {"probe": "INCONCLUSIVE", "quick": "INCONCLUSIVE", "full": "PASS"}


def test_a_short_look_rules_out_a_latency_that_is_far_over(task: OptimizeTask) -> None:
    budget = Budget(latency_ms=10)
    assert judged(task, budget, "probe", time_ms=11).verdict == "INCONCLUSIVE"
    over = judged(task, budget, "probe", time_ms=20)
    assert over.verdict == "FAIL"
    assert over.reason == "p50 latency of a short run 20 ms > 10 ms"
    assert over.distance == pytest.approx(1.0)
    assert judged(task, budget, "full", time_ms=11).verdict == "FAIL"


@pytest.mark.parametrize(
    "budget",
    [
        Budget(max_accuracy_drop_points=3),
        Budget(min_accuracy={"accuracy": 0.97}),
    ],
)
def test_some_of_the_items_rule_out_what_misses_by_more_than_luck(
    task: OptimizeTask, budget: Budget
) -> None:
    assert judged(task, budget, "probe", wrong=1 / 20, rows=SOME).verdict == "INCONCLUSIVE"
    assert judged(task, budget, "probe", wrong=1 / 3, rows=SOME).verdict == "FAIL"
    assert judged(task, budget, "quick", wrong=1 / 20).verdict == "FAIL"


def test_some_of_the_items_are_compared_with_the_reference_on_the_same_items(
    task: OptimizeTask,
) -> None:
    """The reference misses a third of just those items: so may a variant that answers like it."""
    labels, chosen = task.data.labels, spread(len(task.data.labels), SOME)
    answers = labels.copy()
    answers[chosen[::3]] = (answers[chosen[::3]] + 1) % 10
    budget = Budget(max_accuracy_drop_points=1)
    task = replace(task, profiles={"this-machine": budget})
    verdicts = Verdicts(task, PROFILE, {"large": score(answers, labels, task.labels)})
    alike = judged(task, budget, "probe").model_copy(
        update={"accuracy": score(answers[chosen], labels[chosen], task.labels)}
    )
    assert verdicts.judge(alike, SOME).verdict == "INCONCLUSIVE"


def test_the_recall_of_a_class_is_not_judged_by_some_of_its_items(task: OptimizeTask) -> None:
    budget = Budget(min_recall={"3": 0.99})
    assert judged(task, budget, "probe", wrong=1 / 20, rows=SOME).verdict == "INCONCLUSIVE"
    assert judged(task, budget, "quick", wrong=1 / 3).verdict == "FAIL"


def test_what_is_known_exactly_rules_out_at_once(task: OptimizeTask) -> None:
    small = judged(task, Budget(artifact_kib=5), "probe")
    assert (small.verdict, small.reason) == ("FAIL", "bundle 10 KiB > 5 KiB")


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(memory_mib=30), "memory 40 MiB > 30 MiB"),
        (Budget(replicas=3), "2 replicas < 3: 40 MiB each in 100 MiB"),
    ],
)
def test_memory_is_judged_where_it_was_weighed(
    task: OptimizeTask, budget: Budget, reason: str
) -> None:
    assert judged(task, budget, "probe", memory_mib=None).verdict == "INCONCLUSIVE"
    for fidelity in ("quick", "full"):
        found = judged(task, budget, fidelity)
        assert (found.verdict, found.reason) == ("FAIL", reason)
    unweighed = judged(task, budget, "full", memory_mib=None)
    assert unweighed.verdict == "INCONCLUSIVE"


def test_instances_must_fit_into_the_device(task: OptimizeTask) -> None:
    crowded = judged(task, Budget(), "full", instances=4, memory_mib=120.0)
    assert (crowded.verdict, crowded.reason) == ("FAIL", "4 instances need 120 MiB of 100 MiB")
    assert judged(task, Budget(), "full", instances=2, memory_mib=90.0).verdict == "PASS"


def test_the_load_at_the_rate_of_the_budget_counts_the_instances(task: OptimizeTask) -> None:
    budget = Budget(latency_ms=50, qps=100)
    task = replace(task, profiles={"this-machine": budget})
    verdicts = Verdicts(task, PROFILE, {"large": answered(task, 0.0)})
    loads = [
        verdicts.look(judged(task, budget, "probe", time_ms=8, instances=n)).load for n in (1, 2)
    ]
    assert loads == [pytest.approx(0.8), pytest.approx(0.4)]


def test_losses_are_counted_from_the_best_member(task: OptimizeTask) -> None:
    references = {"small": answered(task, 0.2), "large": answered(task, 0.0)}
    assert Verdicts(task, PROFILE, references).best_member == "large"
