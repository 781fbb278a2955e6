"""Taking out of a figure what was known of its device beforehand.

Devices differ from each other more than a version makes them differ.  What a device showed before
explains most of that: y - θ·(x - x̄) varies much less than y, and has the same expectation on both
sides, since no version was offered when x was taken.  Any θ keeps a test's level.  The one taken
leaves the least spread within the sides, by the median of the absolute deviations: a slope by least
squares would be bent by one broken device.

Source: Deng, Xu, Kohavi, Walker 2013, "Improving the sensitivity of online controlled experiments
by utilizing pre-experiment data" (CUPED).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
_SLOPES = tuple(step / 10 for step in range(11))

Pair = tuple[Values, Values]
"""Values after and before, each [n]; NaN where there is no value before."""


def without_baseline(strata: Sequence[tuple[Pair, Pair]]) -> list[tuple[Values, Values]]:
    """Values of both sides of each stratum, adjusted by what the devices showed before.

    A device without a value before keeps its own.
    """
    slope = min(_SLOPES, key=lambda each: _spread(strata, each))
    adjusted: list[tuple[Values, Values]] = []
    for (treated, treated_before), (control, control_before) in strata:
        every = np.concatenate((treated_before, control_before))
        known = every[np.isfinite(every)]
        mean = float(known.mean()) if len(known) else 0.0
        adjusted.append(
            (
                treated - slope * np.nan_to_num(treated_before - mean),
                control - slope * np.nan_to_num(control_before - mean),
            )
        )
    return adjusted


def _spread(strata: Sequence[tuple[Pair, Pair]], slope: float) -> float:
    """Median distance from the median of a device's own side and stratum."""
    distances: list[Values] = []
    for sides in strata:
        for after, before in sides:
            known = np.isfinite(before)
            if known.any():
                left = after[known] - slope * before[known]
                distances.append(np.abs(left - np.median(left)))
    return float(np.median(np.concatenate(distances))) if distances else 0.0
