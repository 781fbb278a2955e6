"""Whether one variant is really worse than another, from their answers on the same items.  Pure.

A few items answered differently can be luck.  The items are drawn anew many times (paired
bootstrap): a variant is significantly worse where hardly any draw has it as good as the other.
Items that both answer alike cancel out, which is why comparing on the same items needs far fewer
of them than comparing two percentages.

Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapter 16.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from optimizer.budget import MetricName

SIGNIFICANCE: Final = 0.05
"""Share of draws that may be at least as good while the verdict is still "worse"."""

_DRAWS: Final = 2000

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def significantly_worse(
    labels: Integers, answers: Integers, best: Integers, metric: MetricName, seed: int = 0
) -> bool:
    """Whether `answers` are worse than `best` by `metric`, beyond what luck explains.

    Args:
        labels: right classes, [n], as are `answers` and `best`.
        seed: of the draws, so that the same answers get the same verdict.

    Raises:
        ValueError: they are not as many.
    """
    if not len(labels) == len(answers) == len(best):
        raise ValueError("answers can be compared on the same items only")
    if len(labels) == 0 or np.array_equal(answers, best):
        return False
    # What counts is how often each (label, answer, best) occurs, not in which order.
    kinds, counts = np.unique(np.stack([labels, answers, best]), axis=1, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(labels), counts / counts.sum(), size=_DRAWS)
    worse = _metric(metric, kinds[0], kinds[1], draws) - _metric(metric, kinds[0], kinds[2], draws)
    return bool(np.mean(worse >= 0) < SIGNIFICANCE)


def _metric(metric: MetricName, labels: Integers, answers: Integers, draws: Integers) -> Floats:
    """The metric of each draw; `draws` is [draws, kinds], how often each kind was drawn."""
    hits = labels == answers
    if metric == "accuracy":
        return np.asarray(draws @ hits / draws.sum(axis=1), np.float64)
    classes = np.unique(labels)
    if metric == "macro_f1":
        classes = np.union1d(classes, answers[answers >= 0])
    wanted = draws @ (labels[:, None] == classes)
    right = draws @ ((labels[:, None] == classes) & hits[:, None])
    total = wanted
    if metric == "macro_f1":
        total = wanted + draws @ (answers[:, None] == classes)
        right = 2 * right
    # A class that a draw has none of does not count in it.
    drawn = total > 0
    values = np.divide(right, total, out=np.zeros(total.shape), where=drawn)
    return np.asarray(values.sum(axis=1) / np.maximum(drawn.sum(axis=1), 1), np.float64)
