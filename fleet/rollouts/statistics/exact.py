"""Exact tests of counts: no approximation that fails where events are rare.

`stratified_tail` is Fisher's exact test over several strata at once: given how many units of each
stratum stand out on both sides together, those of the treated side are hypergeometric when the
sides do not differ, and their sum over the strata is the sum of independent variables.  Because
units are exchanged only within their stratum, strata that differ from each other do no harm.

Source: Fisher 1935, "The logic of inductive inference"; Mantel and Haenszel 1959; exact conditional
distribution of the sum: Gart 1970.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Counts:
    """Units of both sides in one stratum, and how many of each stand out."""

    treated: int
    treated_out: int
    control: int
    control_out: int


def stratified_tail(strata: Sequence[Counts]) -> float:
    """Probability of as many treated units that stand out, or more, if the sides are alike.

    1.0 without strata.
    """
    pmf: NDArray[np.float64] = np.ones(1)
    least = 0
    for stratum in strata:
        start, mass = _hypergeometric(
            stratum.treated, stratum.control, stratum.treated_out + stratum.control_out
        )
        least += start
        pmf = np.convolve(pmf, mass)
    observed = sum(stratum.treated_out for stratum in strata)
    return float(min(1.0, pmf[max(0, observed - least) :].sum()))


def binomial_tail(successes: int, n: int, probability: float) -> float:
    """P(X ≥ successes) of a binomial variable."""
    if successes <= 0:
        return 1.0
    if not 0 < probability < 1:
        return float(probability >= 1)
    k = np.arange(successes, n + 1)
    if not len(k):
        return 0.0
    logs = [_log_choose(n, int(each)) for each in k]
    terms = np.array(logs) + k * math.log(probability) + (n - k) * math.log1p(-probability)
    return float(min(1.0, np.exp(terms).sum()))


def _hypergeometric(
    treated: int, control: int, standing_out: int
) -> tuple[int, NDArray[np.float64]]:
    """The smallest possible count on the treated side, and the masses from there on."""
    least = max(0, standing_out - control)
    most = min(treated, standing_out)
    total = _log_choose(treated + control, standing_out)
    logs = [
        _log_choose(treated, k) + _log_choose(control, standing_out - k) - total
        for k in range(least, most + 1)
    ]
    return least, np.exp(np.array(logs))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
