from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from optimizer.budget import MetricName
from optimizer.paired import significantly_worse

METRICS: tuple[MetricName, ...] = get_args(MetricName)
LABELS = np.arange(400, dtype=np.int64) % 10


def spoiled(count: int, start: int = 0) -> np.ndarray:
    """The right answers, but for `count` items."""
    answers = LABELS.copy()
    answers[start : start + count] = (answers[start : start + count] + 1) % 10
    return answers


@pytest.mark.parametrize("metric", METRICS)
def test_many_lost_items_are_worse_and_a_few_are_luck(metric: MetricName) -> None:
    assert significantly_worse(LABELS, spoiled(20), LABELS, metric)
    assert not significantly_worse(LABELS, spoiled(1), LABELS, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_as_many_lost_as_won_is_not_worse(metric: MetricName) -> None:
    assert not significantly_worse(LABELS, spoiled(20), spoiled(20, start=100), metric)
    assert not significantly_worse(LABELS, spoiled(20), spoiled(30, start=100), metric)


def test_items_that_both_miss_take_nothing_from_the_certainty() -> None:
    both = spoiled(200)
    worse = both.copy()
    worse[200:208] = (worse[200:208] + 1) % 10
    assert significantly_worse(LABELS, worse, both, "accuracy")


def test_losing_a_rare_class_shows_in_the_metrics_of_classes_only() -> None:
    labels = np.zeros(1000, np.int64)
    labels[:40] = 1
    labels[40:45] = 2
    worse = labels.copy()
    worse[:36] = 0
    better = labels.copy()
    better[40:45] = 0
    better[45:71] = 1
    assert not significantly_worse(labels, worse, better, "accuracy")
    assert significantly_worse(labels, worse, labels, "balanced_accuracy")


def test_a_refused_item_counts_as_answered_wrongly() -> None:
    refused = LABELS.copy()
    refused[:30] = -1
    assert significantly_worse(LABELS, refused, LABELS, "macro_f1")


def test_the_same_answers_get_the_same_verdict() -> None:
    for count in range(2, 8):
        verdicts = {significantly_worse(LABELS, spoiled(count), LABELS, "macro_f1", 7)} | {
            significantly_worse(LABELS, spoiled(count), LABELS, "macro_f1", 7)
        }
        assert len(verdicts) == 1


def test_answers_on_other_items_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="same items"):
        significantly_worse(LABELS, LABELS[:5], LABELS, "accuracy")
