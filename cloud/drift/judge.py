"""Is this window unlike its reference?  Pure statistics, no database.

Fleet: the windows of all profiles are judged together.  Each profile's window is compared with its
own reference (another variant answers with other scores), and the sum of the T² with the sum's null
distribution.  Devices: each by itself, the whole list corrected for its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cloud.drift.settings import DriftSettings
from edge_agent.drift import NAMES, Reference, Summary, hotelling, null_statistics

Rows = NDArray[np.float64]
"""Signals of samples, [n, 12], newest first."""

_DEVICE_SIZES = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""A device's window is cut to one of these, so that few thresholds serve a whole fleet exactly."""

_EMPIRICAL_TAIL = 10
"""Draws beyond a statistic from which on their count is its p-value."""


class VersionReference:
    """The reference of one bundle, with its null distributions as far as they were asked for.

    Args:
        key: digest of the bundle.
    """

    def __init__(self, key: str, reference: Reference) -> None:
        self.key = key
        self.reference = reference
        self._null = lru_cache(maxsize=64)(self._draw)

    def null(self, n: int, draws: int, seed: int) -> Rows:
        """T² of `draws` windows of `n` samples without drift."""
        return self._null(n, draws, seed)

    def _draw(self, n: int, draws: int, seed: int) -> Rows:
        return null_statistics(self.reference.signals, n, draws, seed)


@dataclass(frozen=True, slots=True)
class WindowVerdict:
    """T² of a window, what it may be at most, and how likely it is without drift.

    Attributes:
        moved: the signals whose mean moved furthest, with the shift in standard errors.
    """

    statistic: float
    threshold: float
    p_value: float
    n: int
    moved: Mapping[str, float]


def judge_fleet(
    windows: Sequence[tuple[VersionReference, Rows]], settings: DriftSettings
) -> WindowVerdict:
    """Judge the windows of all profiles as one; there is at least one, none of them empty."""
    null: Rows = np.zeros(settings.draws)
    statistic = 0.0
    total = 0
    moved: dict[str, float] = {}
    for index, (reference, rows) in enumerate(windows):
        null = null + reference.null(len(rows), settings.draws, settings.seed + index)
        statistic += _statistic(reference, rows)
        total += len(rows)
        for name, shift in _moved(reference, rows).items():
            if abs(shift) > abs(moved.get(name, 0.0)):
                moved[name] = shift
    threshold = float(np.quantile(null, 1 - settings.false_alarm, method="higher"))
    return WindowVerdict(statistic, threshold, p_value(statistic, null), total, moved)


def judge_devices(
    windows: Mapping[str, tuple[VersionReference, Rows]], settings: DriftSettings
) -> dict[str, WindowVerdict]:
    """Judge devices one by one; a device drifts where its statistic exceeds its threshold.

    The threshold of each is that of Benjamini and Hochberg over all, at the level
    `device_false_discovery`, so it depends on how many devices alarm.
    Source: Y. Benjamini, Y. Hochberg, J. R. Statist. Soc. B 57 (1995).
    """
    judged: dict[str, tuple[float, float, Rows, int, dict[str, float]]] = {}
    for device, (reference, rows) in windows.items():
        size = max((size for size in _DEVICE_SIZES if size <= len(rows)), default=len(rows))
        cut = rows[:size]
        null = reference.null(size, settings.draws, settings.seed)
        statistic = _statistic(reference, cut)
        moved = _moved(reference, cut)
        judged[device] = (statistic, p_value(statistic, null), null, size, moved)
    level = false_discovery_level(
        [verdict[1] for verdict in judged.values()], settings.device_false_discovery
    )
    return {
        device: WindowVerdict(statistic, quantile(null, level), p, size, moved)
        for device, (statistic, p, null, size, moved) in judged.items()
    }


def false_discovery_level(p_values: Sequence[float], rate: float) -> float:
    """Largest p-value that Benjamini and Hochberg reject; `rate`/m where they reject none."""
    count = len(p_values)
    level = rate / max(1, count)
    for rank, value in enumerate(sorted(p_values), start=1):
        if value <= rank * rate / count:
            level = rank * rate / count
    return level


def p_value(statistic: float, null: Rows) -> float:
    """Probability of a statistic at least this large without drift.

    Counted among the draws where enough lie beyond it, else from the tail of `_tail`.
    """
    beyond = int(np.count_nonzero(null >= statistic))
    if beyond >= _EMPIRICAL_TAIL:
        return beyond / len(null)
    mean, spread = _tail(null)
    fitted = 1 - NormalDist().cdf((math.cbrt(max(statistic, 0.0)) - mean) / spread)
    return min(fitted, _EMPIRICAL_TAIL / len(null))


def quantile(null: Rows, level: float) -> float:
    """The statistic that is exceeded with probability `level` without drift."""
    if level * len(null) >= _EMPIRICAL_TAIL:
        return float(np.quantile(null, 1 - level, method="higher"))
    mean, spread = _tail(null)
    fitted = (mean + spread * NormalDist().inv_cdf(1 - level)) ** 3
    return max(float(fitted), float(np.quantile(null, 1 - _EMPIRICAL_TAIL / len(null))))


def _tail(null: Rows) -> tuple[float, float]:
    """Mean and spread of the cube roots of the draws, which are close to normal.

    Source: E. B. Wilson, M. M. Hilferty, The distribution of chi-square, PNAS 17 (1931).
    """
    roots = np.cbrt(np.maximum(null, 0.0))
    return float(roots.mean()), max(float(roots.std()), 1e-12)


def _statistic(reference: VersionReference, rows: Rows) -> float:
    return hotelling(_summary(rows), reference.reference.summary)


def _moved(reference: VersionReference, rows: Rows, most: int = 3) -> dict[str, float]:
    summary = reference.reference.summary
    spread = np.sqrt(np.maximum(np.diag(summary.cov), 1e-300))
    shift = (rows.mean(axis=0) - summary.mean) / spread * math.sqrt(len(rows))
    shift = np.where(np.diag(summary.cov) > 0, shift, 0.0)
    furthest = np.argsort(-np.abs(shift))[:most]
    return {NAMES[int(index)]: round(float(shift[index]), 2) for index in furthest}


def _summary(rows: Rows) -> Summary:
    summary = Summary()
    summary.add(rows)
    return summary
