from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.gates import GateResult, GateSpec, UnusablePredictions, judge_candidate, overall

CLASSES = [str(digit) for digit in range(10)]
Ints = NDArray[np.int64]


def model(labels: Ints, accuracy: float, seed: int, hard: NDArray[np.float64]) -> Ints:
    """Answers right with this probability; models share most of the rows they find hard."""
    rng = np.random.default_rng(seed)
    luck = np.where(rng.random(len(labels)) < 0.8, hard, rng.random(len(labels)))
    shift = rng.integers(1, 10, len(labels))
    return np.where(luck < accuracy, labels, (labels + shift) % 10).astype(np.int64)


def truth(n: int, seed: int) -> tuple[Ints, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 10, n), rng.random(n)


def by_gate(results: list[GateResult]) -> dict[str, GateResult]:
    return {result.gate: result for result in results}


def non_inferiority(n: int, champion: float, candidate: float, seed: int) -> str:
    labels, hard = truth(n, seed)
    results = judge_candidate(
        {"golden": model(labels, champion, 1000 + seed, hard)},
        {"golden": model(labels, candidate, 2000 + seed, hard)},
        {"golden": labels},
        GateSpec(bootstrap_rounds=500),
        classes=CLASSES,
    )
    return by_gate(results)["non_inferiority"].verdict


def test_equal_models_pass_and_worse_ones_do_not() -> None:
    equal = [non_inferiority(1000, 0.95, 0.95, seed) for seed in range(30)]
    worse = [non_inferiority(1000, 0.95, 0.91, seed) for seed in range(30)]
    assert equal.count("pass") >= 25
    assert equal.count("fail") == 0
    assert worse.count("pass") == 0
    assert worse.count("fail") >= 15


def test_few_rows_are_insufficient_whatever_they_say() -> None:
    labels, hard = truth(40, 0)
    results = judge_candidate(
        {"golden": model(labels, 0.5, 1, hard)},
        {"golden": labels},
        {"golden": labels},
        GateSpec(),
        classes=CLASSES,
    )
    assert by_gate(results)["non_inferiority"].verdict == "insufficient"
    assert by_gate(results)["recall_floors"].verdict == "insufficient"
    assert overall(results) == "insufficient"


@pytest.mark.parametrize("n", [100, 1000, 10_000])
@pytest.mark.parametrize("min_recall", [0.001, 0.5])
def test_a_majority_predictor_never_passes(n: int, min_recall: float) -> None:
    labels = np.zeros(n, np.int64)
    labels[: n // 100] = 1
    majority = np.zeros(n, np.int64)
    spec = GateSpec(min_recall=min_recall, min_samples=1, min_class_samples=1)
    for champion in (None, {"golden": majority}):
        results = judge_candidate(
            champion, {"golden": majority}, {"golden": labels}, spec, classes=["ok", "rare"]
        )
        assert by_gate(results)["recall_floors"].verdict != "pass"
        assert overall(results) != "pass"


def test_a_class_without_rows_is_insufficient() -> None:
    labels = np.zeros(500, np.int64)
    results = judge_candidate(
        None, {"eval": labels}, {"eval": labels}, GateSpec(), classes=["ok", "rare"]
    )
    recall = by_gate(results)["recall_floors"]
    assert recall.verdict == "insufficient"
    assert "rare 0/0" in recall.reason


def test_a_class_below_its_own_floor_fails_by_name() -> None:
    labels, _ = truth(2000, 3)
    answers = labels.copy()
    sevens = np.flatnonzero(labels == 7)
    answers[sevens[: len(sevens) // 4]] = 1
    passes = judge_candidate(
        None, {"eval": answers}, {"eval": labels}, GateSpec(min_recall=0.6), classes=CLASSES
    )
    assert overall(passes) == "pass"
    spec = GateSpec(min_recall=0.6, recall_floors={"7": 0.9})
    fails = judge_candidate(None, {"eval": answers}, {"eval": labels}, spec, classes=CLASSES)
    assert fails[0].verdict == "fail"
    assert fails[0].reason.startswith("recall is below its floor for 7 ")


def test_good_models_are_not_blocked_by_the_number_of_their_classes() -> None:
    verdicts = []
    for seed in range(40):
        labels, hard = truth(1000, seed)
        answers = model(labels, 0.9, seed, hard)
        results = judge_candidate(
            None, {"eval": answers}, {"eval": labels}, GateSpec(min_recall=0.9), classes=CLASSES
        )
        verdicts.append(results[0].verdict)
    assert verdicts.count("fail") <= 4


def field_gate(n: int, champion: float, candidate: float) -> GateResult:
    labels, hard = truth(500, 5)
    field, field_hard = truth(n, 6)
    results = judge_candidate(
        {"eval": model(labels, 0.97, 1, hard), "field": model(field, champion, 2, field_hard)},
        {"eval": model(labels, 0.97, 3, hard), "field": model(field, candidate, 4, field_hard)},
        {"eval": labels, "field": field},
        GateSpec(),
        classes=CLASSES,
    )
    return by_gate(results)["field_improvement"]


def test_improvement_in_the_field_has_its_own_gate() -> None:
    assert field_gate(60, 0.4, 0.9).verdict == "pass"
    assert field_gate(60, 0.9, 0.4).verdict == "fail"
    assert field_gate(60, 0.8, 0.82).verdict == "insufficient"
    assert field_gate(10, 0.1, 0.9).verdict == "insufficient"


def test_a_first_version_is_held_to_its_floors_alone() -> None:
    labels, _ = truth(1000, 8)
    results = judge_candidate(
        None, {"golden": labels}, {"golden": labels}, GateSpec(), classes=CLASSES
    )
    assert [(result.gate, result.verdict) for result in results] == [("recall_floors", "pass")]


def test_no_gates_are_no_pass() -> None:
    assert overall([]) == "insufficient"


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        ({}, {"golden": np.zeros(3, np.int64)}),
        ({"golden": np.zeros(2, np.int64)}, {"golden": np.zeros(3, np.int64)}),
        ({"golden": np.full(3, 10)}, {"golden": np.zeros(3, np.int64)}),
        ({"golden": np.full(3, -1)}, {"golden": np.zeros(3, np.int64)}),
    ],
)
def test_predictions_that_do_not_fit_are_refused(
    answers: dict[str, Ints], labels: dict[str, Ints]
) -> None:
    with pytest.raises(UnusablePredictions):
        judge_candidate(None, answers, labels, GateSpec(), classes=CLASSES)
