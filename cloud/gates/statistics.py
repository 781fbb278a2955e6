"""Statistics of the gates: pure functions, no I/O.

Confidence is one-sided throughout: a bound at .95 is wrong on its side in 5 % of cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1"]

_NORMAL = NormalDist()


def wilson(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """Lower and upper one-sided Wilson bounds of a proportion.

    `n` may be an effective sample size, so neither number need be whole; n = 0 gives (0, 1).
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    JASA 22 (1927).
    """
    if n <= 0:
        return 0.0, 1.0
    z = _NORMAL.inv_cdf(confidence)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def below_p_value(successes: int, n: int, floor: float) -> float:
    """p-value of "the proportion is at least `floor`" against "it is below": the score test.

    It is the test that Wilson's interval inverts, so both agree.  n = 0 gives 1.
    """
    if n == 0:
        return 1.0
    return _NORMAL.cdf((successes / n - floor) / math.sqrt(floor * (1 - floor) / n))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number, in the given order.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6
    (1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def metric_of(
    metric: Metric, predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: int
) -> float:
    """A metric of predicted class indices against labels, both [n]; NaN when n = 0.

    Classes that do not occur among the labels are left out of the averages.
    """
    confusion = np.zeros((1, classes, classes))
    np.add.at(confusion[0], (labels, predicted), 1.0)
    return float(_metric(metric, confusion)[0])


@dataclass(frozen=True, slots=True)
class Difference:
    """Candidate minus champion, in the metric's unit (0..1), with one-sided bounds."""

    champion: float
    candidate: float
    low: float
    high: float

    @property
    def estimate(self) -> float:
        return self.candidate - self.champion


def paired_bootstrap(
    metric: Metric,
    champion: NDArray[np.integer],
    candidate: NDArray[np.integer],
    labels: NDArray[np.integer],
    *,
    classes: int,
    confidence: float,
    rounds: int,
    seed: int,
) -> Difference:
    """Difference of two models on the same rows, by resampling rows.

    Rows with the same (label, champion, candidate) are interchangeable, so a resample is a draw of
    how often each such cell occurs: one multinomial instead of n indices.  Percentile bounds.
    """
    cells, counts = np.unique(np.stack([labels, champion, candidate]), axis=1, return_counts=True)
    n = len(labels)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n, counts / n, size=rounds).astype(np.float64)
    scores = []
    for answers in (cells[1], cells[2]):
        flat = cells[0] * classes + answers
        one_hot = np.zeros((cells.shape[1], classes * classes))
        one_hot[np.arange(cells.shape[1]), flat] = 1.0
        scores.append(_metric(metric, (draws @ one_hot).reshape(rounds, classes, classes)))
    difference = scores[1] - scores[0]
    return Difference(
        champion=metric_of(metric, champion, labels, classes),
        candidate=metric_of(metric, candidate, labels, classes),
        low=float(np.quantile(difference, 1 - confidence)),
        high=float(np.quantile(difference, confidence)),
    )


def _metric(metric: Metric, confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """The metric of each confusion matrix [rounds, label, predicted]."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    support = confusion.sum(axis=2)
    total = support.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "accuracy":
            return np.asarray(hits.sum(axis=1) / total)
        present = support > 0
        if metric == "balanced_accuracy":
            per_class = hits / support
        else:
            per_class = 2 * hits / (support + confusion.sum(axis=1))
        return np.asarray(np.where(present, per_class, 0.0).sum(axis=1) / present.sum(axis=1))
