from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from optimizer.budget import Budget, Facts, judge, whole_replicas

GOOD = Facts(
    latency="PASS",
    latency_ms=2.0,
    server="PASS",
    server_latency_ms=3.0,
    memory_mib=80.0,
    artifact_kib=100.0,
    metrics={"macro_f1": 0.97, "accuracy": 0.98},
    baseline=0.98,
    recall={"cat": 0.9, "dog": math.nan},
    device_memory_mib=320.0,
)

ALL = Budget(
    latency_ms=5,
    percentile=0.95,
    qps=100,
    memory_mib=100,
    artifact_kib=200,
    max_accuracy_drop_points=2,
    min_accuracy={"accuracy": 0.9},
    min_recall={"cat": 0.8},
    replicas=4,
)


def test_a_variant_within_every_bound_passes() -> None:
    verdict = judge(ALL, GOOD)
    assert (verdict.verdict, verdict.reason, verdict.distance) == ("PASS", "", 0.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latency": "FAIL", "latency_ms": 7.5}, "p95 latency 7.5 ms > 5 ms"),
        ({"server": "FAIL", "server_latency_ms": 6}, "p95 latency at 100 QPS 6 ms > 5 ms"),
        ({"memory_mib": 120.0, "device_memory_mib": 480.0}, "memory 120 MiB > 100 MiB"),
        ({"device_memory_mib": 319.9}, "3 replicas < 4: 80 MiB each in 319.9 MiB"),
        ({"artifact_kib": 300.0}, "bundle 300 KiB > 200 KiB"),
        ({"baseline": 0.995}, "loss of macro_f1 2.5 points > 2 points"),
        ({"metrics": {"macro_f1": 0.97, "accuracy": 0.5}}, "accuracy 0.5000 < 0.9"),
        ({"recall": {"cat": 0.7}}, "recall of 'cat' 0.7000 < 0.8"),
    ],
)
def test_each_bound_that_is_missed_fails_with_its_figures(
    change: dict[str, Any], reason: str
) -> None:
    verdict = judge(ALL, replace(GOOD, **change))
    assert verdict.verdict == "FAIL"
    assert verdict.reasons == (reason,)
    assert verdict.distance > 0


@pytest.mark.parametrize(
    "change",
    [
        {"latency": None},
        {"server": None},
        {"memory_mib": None},
        {"artifact_kib": None},
        {"device_memory_mib": None},
        {"baseline": None},
        {"metrics": {"macro_f1": 0.97}},
        {"recall": {}},
        {"recall": {"cat": math.nan}},
    ],
)
def test_a_bound_whose_fact_is_unknown_never_passes(change: dict[str, Any]) -> None:
    verdict = judge(ALL, replace(GOOD, **change))
    assert verdict.verdict == "INCONCLUSIVE"
    assert "was not established" in verdict.reason


def test_a_sure_miss_outweighs_what_is_open() -> None:
    verdict = judge(ALL, replace(GOOD, latency="INVALID", artifact_kib=300.0))
    assert verdict.verdict == "FAIL"
    assert len(verdict.reasons) == 2


def test_a_busy_machine_is_invalid_and_not_slow() -> None:
    assert judge(ALL, replace(GOOD, latency="INVALID")).verdict == "INVALID"


def test_nothing_asked_is_always_met() -> None:
    assert judge(Budget(), Facts()).verdict == "PASS"


def test_a_gain_is_no_loss() -> None:
    assert judge(Budget(max_accuracy_drop_points=0), replace(GOOD, baseline=0.9)).verdict == "PASS"


@pytest.mark.parametrize(
    "fields",
    [
        {"qps": 10},
        {"percentile": 0.9},
        {"latency_ms": 0},
        {"latency_ms": math.inf},
        {"min_accuracy": {"auc": 0.5}},
        {"latency": 3},
        {"replicas": 0},
        {"replicas": 1.5},
        {"prefer": "size"},
    ],
)
def test_a_budget_that_says_nothing_sound_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Budget.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "preference"),
    [
        ({}, "accuracy"),
        ({"latency_ms": 5, "replicas": 2}, "accuracy"),
        ({"max_accuracy_drop_points": 1}, "speed"),
        ({"min_accuracy": {"accuracy": 0.9}}, "speed"),
        ({"min_recall": {"cat": 0.5}}, "speed"),
        ({"min_recall": {"cat": 0.5}, "prefer": "accuracy"}, "accuracy"),
        ({"prefer": "speed"}, "speed"),
    ],
)
def test_speed_decides_where_a_bound_says_what_is_accurate_enough(
    fields: dict[str, Any], preference: str
) -> None:
    assert Budget.model_validate(fields).preference == preference


def test_replicas_are_whole_and_each_has_memory_of_its_own() -> None:
    assert whole_replicas(1000, 334) == 2
    assert whole_replicas(100, 334) == 0
    with pytest.raises(ValueError, match="must be positive"):
        whole_replicas(1000, 0)
