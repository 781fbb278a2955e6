"""Percentiles and what may be claimed about them.  Pure functions.

A percentile of a sample is not the percentile of the system: a p99 from 20 runs reads 17 % low.
What is claimed here holds with a stated confidence, by the binomial distribution of the number of
queries over the limit.

Source: MLPerf Inference, "Early Stopping Criterion"
(github.com/mlcommons/inference_policies, inference_rules.adoc, appendix).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

CONFIDENCE: Final = 0.99
"""Probability with which a verdict on a percentile is right."""


def percentile(values: Sequence[float] | NDArray[np.float64], fraction: float) -> float:
    """The smallest value that at least `fraction` of all values do not exceed (nearest rank).

    Raises:
        ValueError: there are no values, or `fraction` is outside of (0, 1].
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if ordered.size == 0 or not 0 < fraction <= 1:
        raise ValueError("percentile needs values and a fraction in (0, 1]")
    # 0.99 * 200 is 198.00000000000003 in binary; the slack keeps it at rank 198
    rank = math.ceil(fraction * ordered.size - 1e-9)
    return float(ordered[max(rank, 1) - 1])


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """P(X ≤ `successes`) for X of `trials` draws with `probability` each, 0 < p < 1."""
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    k = np.arange(successes, dtype=np.float64)
    ratios = np.log((trials - k) / (k + 1.0)) + math.log(probability) - math.log1p(-probability)
    logs = trials * math.log1p(-probability) + np.concatenate(([0.0], np.cumsum(ratios)))
    top = float(logs.max())
    return min(1.0, math.exp(top) * float(np.exp(logs - top).sum()))


def holds(over: int, queries: int, fraction: float, confidence: float = CONFIDENCE) -> bool:
    """Whether the percentile `fraction` is under the limit, with `confidence`.

    Args:
        over: queries that took longer than the limit.
    """
    return binomial_cdf(over, queries, 1.0 - fraction) <= 1.0 - confidence


def breaks(over: int, queries: int, fraction: float, confidence: float = CONFIDENCE) -> bool:
    """Whether the percentile `fraction` is over the limit, with `confidence`."""
    return 1.0 - binomial_cdf(over - 1, queries, 1.0 - fraction) <= 1.0 - confidence


def queries_needed(over: int, fraction: float, confidence: float = CONFIDENCE) -> int:
    """Fewest queries with which `over` of them may exceed the limit and the percentile holds."""
    low, high = over, max(2 * over, 2)
    while not holds(over, high, fraction, confidence):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if holds(over, middle, fraction, confidence):
            high = middle
        else:
            low = middle
    return high


def upper_bound(
    values: Sequence[float] | NDArray[np.float64], fraction: float, confidence: float = CONFIDENCE
) -> float | None:
    """A limit under which the percentile `fraction` lies with `confidence`.

    Returns:
        The smallest such value of the sample, or None when the sample is too small for any.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if ordered.size == 0 or not holds(0, ordered.size, fraction, confidence):
        return None
    low, high = 0, int(ordered.size)  # `low` over the limit still holds, `high` does not
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle, ordered.size, fraction, confidence):
            low = middle
        else:
            high = middle
    return float(ordered[ordered.size - 1 - low])
