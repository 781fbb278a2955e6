"""Hotelling's T² of a window against a reference, and its threshold by null calibration.

T² = n·m/(n+m) · dᵀ S⁻¹ d, with d the difference of the means of a window of n and a reference of m
items and S the reference's covariance.  The reference's, because a window is small and may be
the very thing that is wrong.

No table gives the threshold: signals are not normal and n is whatever arrived.  It is calibrated by
drawing windows of the actual n from the reference itself, so the false-alarm rate is the wished one
for that n.

Source: H. Hotelling, "The Generalization of Student's Ratio", Ann. Math. Statist. 2 (1931).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.drift.errors import TooFewSignals
from edge_agent.drift.signals import SIGNALS
from edge_agent.drift.summary import Summary

MIN_REFERENCE: Final = 4 * SIGNALS
"""Fewer reference items than this give no usable covariance."""

_CUTOFF: Final = 1e-9
"""Directions with less variance than this share of the largest, after scaling, carry nothing."""

_CHUNK_CELLS: Final = 4_000_000
_MIN_DRAWS: Final = 1000
_MAX_DRAWS: Final = 20_000
_DRAWS_IN_TAIL: Final = 20


def hotelling(window: Summary, reference: Summary) -> float:
    """T² of `window` against `reference`; 0 for equal means.

    Raises:
        TooFewSignals: the window is empty or the reference has fewer than `MIN_REFERENCE` items.
    """
    if reference.count < MIN_REFERENCE:
        raise TooFewSignals(f"a reference of {reference.count} items; {MIN_REFERENCE} are needed")
    whitening = _whitening(reference.cov)
    whitened = (window.mean - reference.mean) @ whitening
    weight = window.count * reference.count / (window.count + reference.count)
    return float(weight * (whitened @ whitened))


def null_threshold(
    reference_signals: NDArray[np.float64], n: int, false_alarm: float, seed: int
) -> float:
    """T² that a window of `n` items without drift exceeds with probability `false_alarm`.

    Window and reference are both drawn anew each time, so the reference's own uncertainty counts.

    Args:
        reference_signals: [m, 12].
        false_alarm: in (0, 0.5]; below 0.001 the tail holds few draws.

    Raises:
        TooFewSignals: the reference is too small, or `n` is below 1.
        ValueError: `false_alarm` is out of range.
    """
    if not 0 < false_alarm <= 0.5:
        raise ValueError(f"false_alarm lies in (0, 0.5], not {false_alarm}")
    draws = int(min(max(_MIN_DRAWS, math.ceil(_DRAWS_IN_TAIL / false_alarm)), _MAX_DRAWS))
    statistics = null_statistics(reference_signals, n, draws, seed)
    return float(np.quantile(statistics, 1.0 - false_alarm, method="higher"))


def null_statistics(
    reference_signals: NDArray[np.float64], n: int, draws: int, seed: int
) -> NDArray[np.float64]:
    """T² of `draws` windows of `n` items without drift, [draws]: the null distribution itself.

    For p-values, where many windows are judged together.

    Raises:
        TooFewSignals: the reference is too small, or `n` is below 1.
    """
    rows = reference_signals[np.isfinite(reference_signals).all(axis=1)]
    size = len(rows)
    if size < MIN_REFERENCE or n < 1:
        raise TooFewSignals(f"cannot calibrate n={n} on a reference of {size}")
    full = Summary()
    full.add(rows)
    # Whitened rows have unit covariance: what is inverted per draw is close to the identity.
    whitened = (rows - full.mean) @ _whitening(full.cov)
    generator = np.random.default_rng(seed)
    return np.concatenate(
        [
            _null_statistics(whitened, n, count, generator)
            for count in _chunks(draws, max(1, _CHUNK_CELLS // size))
        ]
    )


def _null_statistics(
    rows: NDArray[np.float64], n: int, draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """T² of `draws` windows of `n` against references of the same size as `rows`, both redrawn."""
    size, width = rows.shape
    even = np.full(size, 1.0 / size)
    windows = generator.multinomial(n, even, size=draws).astype(np.float64)
    references = generator.multinomial(size, even, size=draws).astype(np.float64)
    window_means = windows @ rows / n
    means = references @ rows / size
    squares = (rows[:, :, None] * rows[:, None, :]).reshape(size, width * width)
    second = (references @ squares / size).reshape(draws, width, width)
    covariances = (second - means[:, :, None] * means[:, None, :]) * (size / (size - 1))
    difference = window_means - means
    # A redrawn reference may lack a direction by chance; the ridge is far below its unit variance.
    ridge = 1e-6 * np.eye(width)
    solved = np.linalg.solve(covariances + ridge, difference[:, :, None])[:, :, 0]
    statistics: NDArray[np.float64] = (
        n * size / (n + size) * np.einsum("ij,ij->i", difference, solved)
    )
    return statistics


def _whitening(cov: NDArray[np.float64]) -> NDArray[np.float64]:
    """W [12, k] with Wᵀ S W = 1; directions without variance are left out."""
    spread = np.sqrt(np.clip(np.diag(cov), 0.0, None))
    scale = np.where(spread > 0, 1.0 / np.where(spread > 0, spread, 1.0), 0.0)
    values, vectors = np.linalg.eigh(cov * np.outer(scale, scale))
    kept = values > _CUTOFF * max(float(values.max()), 1e-300)
    whitening: NDArray[np.float64] = scale[:, None] * vectors[:, kept] / np.sqrt(values[kept])
    return whitening


def _chunks(total: int, largest: int) -> list[int]:
    return [min(largest, total - done) for done in range(0, total, largest)]
