"""Confidence bounds of proportions."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def wilson(failures: int, n: int, confidence: float) -> tuple[float, float]:
    """One-sided lower and upper confidence bounds of a proportion, each at `confidence`.

    With n = 0 nothing is known: (0, 1).

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(confidence)
    rate = failures / n
    scale = 1 + z * z / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def wilson_lower(failures: Values, n: Values, confidence: float) -> Values:
    """The lower bounds of `wilson` for many proportions at once; `n` is positive throughout."""
    z = NormalDist().inv_cdf(confidence)
    rate = failures / n
    centre = rate + z * z / (2 * n)
    spread = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return np.maximum(0.0, (centre - spread) / (1 + z * z / n))
