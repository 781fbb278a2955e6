from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cloud.gates import holm, paired_bootstrap, wilson
from cloud.gates.statistics import below_p_value, metric_of


def test_wilson_bounds_are_those_of_scipy() -> None:
    for k, n in [(0, 10), (3, 10), (10, 10), (97, 100)]:
        low, high = wilson(k, n, 0.975)  # one-sided .975 on both sides is two-sided .95
        expected = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
        assert low == pytest.approx(expected.low, abs=1e-12)
        assert high == pytest.approx(expected.high, abs=1e-12)


def test_nothing_observed_bounds_nothing() -> None:
    assert wilson(0, 0, 0.95) == (0.0, 1.0)
    assert below_p_value(0, 0, 0.5) == 1.0


def test_wilson_and_its_p_value_agree() -> None:
    _, high = wilson(40, 60, 0.95)
    assert below_p_value(40, 60, high) == pytest.approx(0.05)


def test_holm_gives_the_textbook_values_in_the_given_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []


def test_metrics_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    predicted = np.where(rng.random(300) < 0.7, labels, rng.integers(0, 5, 300))
    assert metric_of("accuracy", predicted, labels, 5) == pytest.approx(
        metrics.accuracy_score(labels, predicted)
    )
    assert metric_of("macro_f1", predicted, labels, 5) == pytest.approx(
        metrics.f1_score(labels, predicted, average="macro")
    )
    assert metric_of("balanced_accuracy", predicted, labels, 5) == pytest.approx(
        metrics.balanced_accuracy_score(labels, predicted)
    )


def test_the_bootstrap_of_cells_equals_one_of_rows() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 200)
    old = np.where(rng.random(200) < 0.8, labels, (labels + 1) % 3)
    new = np.where(rng.random(200) < 0.85, labels, (labels + 1) % 3)
    found = paired_bootstrap(
        "accuracy", old, new, labels, classes=3, confidence=0.95, rounds=20_000, seed=0
    )
    rows = rng.integers(0, 200, (20_000, 200))
    by_rows = (new == labels)[rows].mean(axis=1) - (old == labels)[rows].mean(axis=1)
    assert found.low == pytest.approx(np.quantile(by_rows, 0.05), abs=0.006)
    assert found.high == pytest.approx(np.quantile(by_rows, 0.95), abs=0.006)
    assert found.low < found.estimate < found.high
