"""What a variant will take on a profile that nobody has measured it on, and how sure that is.

A local latency is scaled by the figures of both profiles (clock, threads, width of the arithmetic),
and corrected by what devices of the profile took: y = ln(measured / scaled) of every result.

    y = p + c + e     p: the profile, N(0, 0.7²);  c: the runtime and precision on it, N(0, 0.35²);
                      e: the variant, N(0, s²)

The posterior of p + c is exact (normal, conjugate): a cell without results gets its profile's
ratio, a profile without results gets the figures alone with the wide bounds that they deserve, and
every result narrows both.  s is estimated with a prior worth `_PRIOR_RESULTS` results at 0.15.

Pure: nothing is measured, read or stored here.

Source: A. Gelman et al., Bayesian Data Analysis, 3rd edition, section 15.1 (normal hierarchical
linear regression), and 3.3 for the scaled inverse chi-squared prior of s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from edge_agent.measure import Measurement, Verdict
from optimizer.profiles import HardwareProfile

PROFILE_SD: Final = 0.7
"""Of ln(measured / scaled) where nothing was measured: figures are good to a factor of four."""
CELL_SD: Final = 0.35
RESIDUAL_SD: Final = 0.15
_PRIOR_RESULTS: Final = 4.0
_Z: Final = 1.96
"""Bounds hold with 95 % confidence."""

_DEFAULT_CLOCK_GHZ: Final = 2.5
_THREAD_EFFICIENCY: Final = 0.8
_ASSUMED_LANES: Final = 4.0
_LANES: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    # multiply-adds per cycle and core, halved where an instruction is rarely fed at full rate
    "fp32": (("avx512f", 32.0), ("avx2", 16.0), ("asimd", 8.0)),
    "fp16": (("avx512_fp16", 64.0), ("asimdhp", 16.0), ("avx512f", 32.0), ("avx2", 16.0),
             ("asimd", 8.0)),
    "bf16": (("amx_bf16", 128.0), ("avx512_bf16", 48.0), ("bf16", 16.0), ("avx512f", 32.0),
             ("avx2", 16.0), ("asimd", 8.0)),
    "int8": (("amx_int8", 256.0), ("avx512_vnni", 96.0), ("avx_vnni", 48.0), ("i8mm", 64.0),
             ("asimddp", 32.0), ("avx512f", 48.0), ("avx2", 24.0), ("asimd", 12.0)),
}  # fmt: skip
"""By CPU flag, the widest first.

Source: Intel 64 and IA-32 Architectures Optimization Reference Manual (ports and vector widths),
Arm Cortex-A72 and Neoverse software optimization guides; rounded, for devices correct them."""


@dataclass(frozen=True, slots=True)
class Point:
    """A device's result beside what figures alone foretold; latencies in ms."""

    profile: str
    runtime: str
    precision: str
    scaled_ms: float
    measured_ms: float

    @property
    def log_ratio(self) -> float:
        return math.log(self.measured_ms / self.scaled_ms)


@dataclass(frozen=True, slots=True)
class Prediction:
    """A latency that was not measured.

    Attributes:
        low_ms, high_ms: it lies between with 95 % confidence.
        of_cell, of_profile: results that corrected it, of the same runtime and precision on the
            profile, and of the profile in all.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    of_cell: int
    of_profile: int

    @property
    def text(self) -> str:
        """One line for a person."""
        known = (
            f"by {self.of_profile} results of the profile, {self.of_cell} of its kind"
            if self.of_profile
            else "by the profile's figures alone"
        )
        return (
            f"predicted: {self.latency_ms:.3g} ms, 95 % within {self.low_ms:.3g}"
            f"…{self.high_ms:.3g} ms, {known}"
        )


class Predictor:
    """Corrects scaled latencies by results; immutable."""

    def __init__(self, points: Sequence[Point] = ()) -> None:
        """
        Args:
            points: results of devices, of any profiles; those that are not positive count nothing.
        """
        self._points = [point for point in points if point.scaled_ms > 0 and point.measured_ms > 0]

    def count(self, profile: str) -> int:
        """Results of a profile."""
        return sum(point.profile == profile for point in self._points)

    def predict(self, profile: str, runtime: str, precision: str, scaled_ms: float) -> Prediction:
        """The latency of a variant on a profile.

        Args:
            scaled_ms: from `scale`.

        Raises:
            ValueError: `scaled_ms` is not positive.
        """
        if not (scaled_ms > 0 and math.isfinite(scaled_ms)):
            raise ValueError(f"a latency is positive, not {scaled_ms}")
        points = [point for point in self._points if point.profile == profile]
        mean, variance = _posterior(points, (runtime, precision))
        spread = _Z * math.sqrt(variance)
        return Prediction(
            latency_ms=scaled_ms * math.exp(mean),
            low_ms=scaled_ms * math.exp(mean - spread),
            high_ms=scaled_ms * math.exp(mean + spread),
            of_cell=sum((p.runtime, p.precision) == (runtime, precision) for p in points),
            of_profile=len(points),
        )


def scale(
    latency_ms: float, precision: str, here: HardwareProfile, there: HardwareProfile
) -> float:
    """A latency that was measured on `here`, by the figures of both profiles, on `there`; in ms."""
    return latency_ms * _speed(here, precision) / _speed(there, precision)


def predicted_measurement(measured: Measurement, prediction: Prediction) -> Measurement:
    """What was measured elsewhere, scaled so that its median is the predicted one.

    The verdict is sure only where the prediction's bounds leave no doubt.
    """
    factor = prediction.latency_ms / measured.p50_ms
    latency = {
        name: getattr(measured, name) * factor
        for name in ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms")
    }
    bound = measured.upper_bound_ms
    verdict, reason = _verdict(measured, prediction)
    return measured.model_copy(
        update={
            **latency,
            "upper_bound_ms": None if bound is None else bound * factor,
            "qps": measured.qps / factor,
            "duration_s": measured.duration_s * factor,
            "over_limit": 0,
            "histogram": tuple((edge * factor, count) for edge, count in measured.histogram),
            "verdict": verdict,
            "reason": f"{reason}; {prediction.text}",
            "provenance": {**measured.provenance, "predicted": prediction.text},
        }
    )


def _verdict(measured: Measurement, prediction: Prediction) -> tuple[Verdict, str]:
    name = f"p{measured.percentile * 100:g}"
    limit = measured.target_latency_ms
    if measured.verdict == "INVALID":
        return "INVALID", measured.reason
    if limit is None:
        return "PASS", f"{name} predicted; no limit was given"
    tail = (_tail_ms(measured) or measured.p99_ms) / measured.p50_ms
    if prediction.high_ms * tail <= limit:
        return "PASS", f"{name} holds by all that is known"
    if prediction.low_ms * tail > limit:
        return "FAIL", f"{name} does not hold by all that is known"
    return "INCONCLUSIVE", f"{name} may hold or not: the limit of {limit:g} ms is within the bounds"


def _tail_ms(measured: Measurement) -> float | None:
    known = {
        0.5: measured.p50_ms,
        0.9: measured.p90_ms,
        0.95: measured.p95_ms,
        0.99: measured.p99_ms,
    }
    return known.get(measured.percentile, measured.upper_bound_ms)


def _posterior(points: Sequence[Point], cell: tuple[str, str]) -> tuple[float, float]:
    """Mean and variance of y of one more variant of `cell`."""
    cells = sorted({(point.runtime, point.precision) for point in points} | {cell})
    columns = {each: 1 + index for index, each in enumerate(cells)}
    design = np.zeros((len(points), 1 + len(cells)))
    design[:, 0] = 1.0
    for row, point in enumerate(points):
        design[row, columns[point.runtime, point.precision]] = 1.0
    y = np.array([point.log_ratio for point in points])
    prior = np.diag([PROFILE_SD**-2, *[CELL_SD**-2] * len(cells)])
    asked = np.zeros(1 + len(cells))
    asked[0] = asked[columns[cell]] = 1.0
    variance = RESIDUAL_SD**2
    for _ in range(2):  # the residuals need a fit, and the fit their variance
        covariance = np.linalg.inv(prior + design.T @ design / variance)
        effects = covariance @ (design.T @ y) / variance
        squares = float(np.sum((y - design @ effects) ** 2))
        variance = (_PRIOR_RESULTS * RESIDUAL_SD**2 + squares) / (_PRIOR_RESULTS + len(points))
    return float(asked @ effects), float(asked @ covariance @ asked) + variance


def _speed(profile: HardwareProfile, precision: str) -> float:
    """Multiply-adds a second that the profile's arithmetic is good for, in any unit."""
    clock = profile.clock_ghz.value if profile.clock_ghz else _DEFAULT_CLOCK_GHZ
    lanes = next(
        (width for flag, width in _LANES.get(precision, _LANES["fp32"]) if flag in profile.flags),
        _ASSUMED_LANES,
    )
    threads = profile.model_threads
    return clock * lanes * (1 + (threads - 1) * _THREAD_EFFICIENCY)
