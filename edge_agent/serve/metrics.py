"""Serving figures: counters and a latency histogram per model version.

The histogram has eight buckets per doubling, so a percentile reads at most 9 % high; it is exact in
its counts, constant in memory, and two snapshots subtract to a window.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_PER_OCTAVE: Final = 8
_OCTAVES: Final = 27  # 1 µs to 134 s
_BUCKETS: Final = _PER_OCTAVE * _OCTAVES + 1

_EXPOSED_US: Final = tuple(2**k for k in range(4, 24, 1))
"""Bucket limits in the Prometheus text: 16 µs to 8.4 s, by doubling."""


@dataclass(frozen=True, slots=True)
class MetricsWindow:
    """Figures of one model version since the same reader last asked.

    Attributes:
        requests: predictions, rejects and errors together.
        errors: the pipeline's own failures.
        rejects: requests refused by a checker.
        p50_us, p99_us: latency from acceptance to answer; 0 without predictions.
    """

    version: int
    window_s: float
    requests: int
    errors: int
    rejects: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of all counts at one time (seconds on the caller's clock)."""

    at: float
    errors: int
    rejects: int
    sum_us: float
    buckets: tuple[int, ...]


class ModelMetrics:
    """Counts of one model version.  Safe from several threads."""

    def __init__(self, at: float) -> None:
        self._lock = threading.Lock()
        self._errors = 0
        self._rejects = 0
        self._sum_us = 0.0
        self._buckets = [0] * _BUCKETS
        self._start = Snapshot(at, 0, 0, 0.0, tuple(self._buckets))
        self._readers: dict[str, Snapshot] = {}

    def predicted(self, latency_us: float) -> None:
        index = bucket_of(latency_us)
        with self._lock:
            self._buckets[index] += 1
            self._sum_us += latency_us

    def failed(self) -> None:
        with self._lock:
            self._errors += 1

    def rejected(self) -> None:
        with self._lock:
            self._rejects += 1

    def snapshot(self, at: float) -> Snapshot:
        with self._lock:
            return Snapshot(at, self._errors, self._rejects, self._sum_us, tuple(self._buckets))

    def window(self, reader: str, version: int, at: float) -> MetricsWindow:
        """Figures since `reader` asked last, or since the version was installed."""
        now = self.snapshot(at)
        before = self._readers.get(reader, self._start)
        self._readers[reader] = now
        buckets = [b - a for a, b in zip(before.buckets, now.buckets, strict=True)]
        errors, rejects = now.errors - before.errors, now.rejects - before.rejects
        return MetricsWindow(
            version=version,
            window_s=max(now.at - before.at, 0.0),
            requests=sum(buckets) + errors + rejects,
            errors=errors,
            rejects=rejects,
            p50_us=percentile_us(buckets, 0.50),
            p99_us=percentile_us(buckets, 0.99),
        )


def bucket_of(latency_us: float) -> int:
    """Index of the bucket whose upper edge is the first at or above `latency_us`."""
    if latency_us <= 1.0:
        return 0
    return min(math.ceil(math.log2(latency_us) * _PER_OCTAVE - 1e-9), _BUCKETS - 1)


def edge_us(index: int) -> float:
    """Upper edge of a bucket."""
    return float(2.0 ** (index / _PER_OCTAVE))


def percentile_us(buckets: Sequence[int], fraction: float) -> float:
    """Upper edge of the bucket that holds the percentile; 0 when all are empty."""
    rank = math.ceil(fraction * sum(buckets) - 1e-9)
    if rank < 1:
        return 0.0
    seen = 0
    for index, count in enumerate(buckets):
        seen += count
        if seen >= rank:
            return edge_us(index)
    return edge_us(_BUCKETS - 1)


def prometheus(models: Iterable[tuple[str, int, Snapshot]]) -> str:
    """The text format of Prometheus for (model, version, snapshot) triples.

    Source: prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4.
    """
    counters: list[str] = []
    histograms: list[str] = []
    for model, version, snapshot in models:
        labels = f'model="{model}",version="{version}"'
        predictions = sum(snapshot.buckets)
        for outcome, count in (
            ("predicted", predictions),
            ("rejected", snapshot.rejects),
            ("failed", snapshot.errors),
        ):
            counters.append(f'skerry_requests_total{{{labels},outcome="{outcome}"}} {count}')
        cumulative, position = 0, 0
        for limit_us in _EXPOSED_US:
            end = bucket_of(limit_us)
            cumulative += sum(snapshot.buckets[position : end + 1])
            position = end + 1
            histograms.append(
                f'skerry_latency_seconds_bucket{{{labels},le="{limit_us / 1e6:g}"}} {cumulative}'
            )
        histograms.append(f'skerry_latency_seconds_bucket{{{labels},le="+Inf"}} {predictions}')
        histograms.append(f"skerry_latency_seconds_sum{{{labels}}} {snapshot.sum_us / 1e6:.6f}")
        histograms.append(f"skerry_latency_seconds_count{{{labels}}} {predictions}")
    lines = [
        "# HELP skerry_requests_total Inference requests by outcome.",
        "# TYPE skerry_requests_total counter",
        *counters,
        "# HELP skerry_latency_seconds From acceptance of a request to its answer.",
        "# TYPE skerry_latency_seconds histogram",
        *histograms,
    ]
    return "\n".join(lines) + "\n"
