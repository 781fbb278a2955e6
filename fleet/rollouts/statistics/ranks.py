"""Comparing sizes of two sides by ranks, so that no single unit can decide.

The units of each stratum (a hardware profile) are ranked among themselves; the strata's rank sums
are added with weights 1/(n+1).  The normal approximation is conservative in the far tail, where
gates look: a handful of units never reach a small p-value by an accident of the approximation.

Source: Wilcoxon 1945; Mann and Whitney 1947; van Elteren 1960, "On the combination of independent
two-sample tests of Wilcoxon"; Hodges and Lehmann 1963 for the estimate of the shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_THINNED = 400
"""Order statistics of a side from which its shift is estimated."""


def greater(strata: Sequence[tuple[Values, Values]]) -> float:
    """One-sided p-value that the first sides tend to be greater than the second ones.

    Args:
        strata: values of both sides, each [n] and finite; a stratum with an empty side says
            nothing.

    Returns:
        1.0 when there is nothing to compare, or all values are equal.
    """
    distance = variance = 0.0
    least = math.inf
    for treated, control in strata:
        n, m = len(treated), len(control)
        if not n or not m:
            continue
        total = n + m
        ranks, tied = _ranks(np.concatenate((treated, control)))
        weight = 1 / (total + 1)
        distance += weight * (float(ranks[:n].sum()) - n * (total + 1) / 2)
        variance += weight**2 * n * m / 12 * (total + 1 - tied / (total * (total - 1)))
        least = min(least, weight)
    if variance <= 0:
        return 1.0
    z = (distance - least / 2) / math.sqrt(variance)
    return NormalDist().cdf(-z)


def shift(strata: Sequence[tuple[Values, Values]]) -> float:
    """By how much the first sides are greater: the strata's Hodges–Lehmann estimates, averaged by
    the number of treated units.  0.0 when there is nothing to compare."""
    estimates: list[float] = []
    weights: list[int] = []
    for treated, control in strata:
        if len(treated) and len(control):
            differences = _thin(treated)[:, None] - _thin(control)[None, :]
            estimates.append(float(np.median(differences)))
            weights.append(len(treated))
    return float(np.average(estimates, weights=weights)) if estimates else 0.0


def _ranks(values: Values) -> tuple[Values, float]:
    """Ranks from 1, ties sharing their mean, and Σ(t³ - t) over the ties."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    means = last - (counts - 1) / 2
    tied = float((counts.astype(np.float64) ** 3 - counts).sum())
    return means[inverse], tied


def _thin(values: Values) -> Values:
    ordered = np.sort(values)
    if len(ordered) <= _THINNED:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, _THINNED).astype(np.int64)]
