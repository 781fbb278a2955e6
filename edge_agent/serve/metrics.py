"""Serving figures: counters and a latency histogram per model version.

The histogram has eight buckets per doubling, so a percentile reads at most 9 % high; it is exact in
its counts, constant in memory, and two snapshots subtract to a window.  Batch sizes, which clients
choose, are counted by powers of two.

Rule: one thread counts, the event loop's; any thread may read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

_PER_OCTAVE: Final = 8
_OCTAVES: Final = 27  # 1 µs to 134 s
_BUCKETS: Final = _PER_OCTAVE * _OCTAVES + 1

_EXPOSED_US: Final = tuple(2**k for k in range(4, 24, 1))
"""Bucket limits in the Prometheus text: 16 µs to 8.4 s, by doubling."""

_EXPOSED_ITEMS: Final = tuple(2**k for k in range(0, 8, 1))
"""Bucket limits of batch sizes in the Prometheus text."""


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
    """A copy of all counts at one time (seconds on the caller's clock).

    Attributes:
        errors: the pipeline's own failures.
        rejected: requests refused by a checker, by its reason.
        shed: requests that would not have been answered in time, or were not; by "overloaded" and
            "expired".
        batches: batches that ran, by the power of two that their items do not exceed.
        items: of all batches.
        waiting: requests that have not begun to run.
    """

    at: float
    errors: int
    rejected: Mapping[str, int]
    sum_us: float
    buckets: tuple[int, ...]
    shed: Mapping[str, int] = field(default_factory=dict)
    batches: Mapping[int, int] = field(default_factory=dict)
    items: int = 0
    waiting: int = 0

    @property
    def predictions(self) -> int:
        return sum(self.buckets)

    @property
    def rejects(self) -> int:
        return sum(self.rejected.values())


class ModelMetrics:
    """Counts of one model version."""

    MAX_REASONS: Final = 64
    """Reasons counted apart; a checker that makes up more has the rest counted together."""

    def __init__(self, at: float) -> None:
        self._errors = 0
        self._rejected: Counter[str] = Counter()
        self._shed: Counter[str] = Counter()
        self._batches: Counter[int] = Counter()
        self._items = 0
        self._sum_us = 0.0
        self._buckets = [0] * _BUCKETS
        self._start = Snapshot(at, 0, {}, 0.0, tuple(self._buckets))
        self._readers: dict[str, Snapshot] = {}

    def restart(self, at: float) -> None:
        """Begin the windows of all readers anew at `at`; the counts go on."""
        self._start = self.snapshot(at)
        self._readers = {}

    def predicted(self, latency_us: float) -> None:
        self._buckets[bucket_of(latency_us)] += 1
        self._sum_us += latency_us

    def ran(self, items: int) -> None:
        """Count a batch."""
        self._batches[1 << (items - 1).bit_length()] += 1
        self._items += items

    def failed(self) -> None:
        self._errors += 1

    def rejected(self, reason: str) -> None:
        known = reason in self._rejected or len(self._rejected) < self.MAX_REASONS
        self._rejected[reason if known else "other"] += 1

    def shed(self, kind: str) -> None:
        """Count a request that was refused for want of time: "overloaded" or "expired"."""
        self._shed[kind] += 1

    def snapshot(self, at: float, waiting: int = 0) -> Snapshot:
        return Snapshot(
            at,
            self._errors,
            dict(self._rejected),
            self._sum_us,
            tuple(self._buckets),
            dict(self._shed),
            dict(self._batches),
            self._items,
            waiting,
        )

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
    index = math.ceil(math.log2(latency_us) * _PER_OCTAVE - 1e-9)
    return index if index < _BUCKETS else _BUCKETS - 1


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


def prometheus(
    models: Iterable[tuple[str, int, Snapshot]], errors: Mapping[str, int] | None = None
) -> str:
    """The text format of Prometheus for (model, version, snapshot) triples.

    Args:
        errors: requests that were not answered with a prediction, by the kind of error.

    Source: prometheus.io/docs/instrumenting/exposition_formats, text format 0.0.4.
    """
    text = _Exposition()
    for model, version, snapshot in models:
        labels = f'model="{escaped(model)}",version="{version}"'
        for outcome, count in (
            ("predicted", snapshot.predictions),
            ("rejected", snapshot.rejects),
            ("failed", snapshot.errors),
            ("overloaded", snapshot.shed.get("overloaded", 0)),
            ("expired", snapshot.shed.get("expired", 0)),
        ):
            text.add("skerry_requests_total", f'{labels},outcome="{outcome}"', count)
        for reason, count in sorted(snapshot.rejected.items()):
            text.add("skerry_rejected_total", f'{labels},reason="{escaped(reason)}"', count)
        text.add("skerry_waiting_requests", labels, snapshot.waiting)
        _latencies(text, labels, snapshot)
        _batch_sizes(text, labels, snapshot)
    for kind, count in sorted((errors or {}).items()):
        text.add("skerry_errors_total", f'type="{escaped(kind)}"', count)
    return text.render()


def escaped(value: str) -> str:
    """A label's value between its quotes."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_FAMILIES: Final = {
    "skerry_requests_total": ("counter", "Inference requests by outcome."),
    "skerry_rejected_total": ("counter", "Requests refused by a checker, by its reason."),
    "skerry_errors_total": ("counter", "Requests that got no prediction, by the kind of error."),
    "skerry_waiting_requests": ("gauge", "Requests that have not begun to run."),
    "skerry_latency_seconds": ("histogram", "From acceptance of a request to its answer."),
    "skerry_batch_items": ("histogram", "Items of the batches that ran."),
}


class _Exposition:
    """Lines of the text, gathered by family, for a family must stand together."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {family: [] for family in _FAMILIES}

    def add(self, family: str, labels: str, value: float | str, suffix: str = "") -> None:
        self._lines[family].append(f"{family}{suffix}{{{labels}}} {value}")

    def render(self) -> str:
        lines: list[str] = []
        for family, (kind, about) in _FAMILIES.items():
            if self._lines[family] or kind == "counter":
                lines += (f"# HELP {family} {about}", f"# TYPE {family} {kind}")
                lines += self._lines[family]
        return "\n".join(lines) + "\n"


def _latencies(text: _Exposition, labels: str, snapshot: Snapshot) -> None:
    family = "skerry_latency_seconds"
    cumulative, position = 0, 0
    for limit_us in _EXPOSED_US:
        end = bucket_of(limit_us)
        cumulative += sum(snapshot.buckets[position : end + 1])
        position = end + 1
        text.add(family, f'{labels},le="{limit_us / 1e6:g}"', cumulative, "_bucket")
    text.add(family, f'{labels},le="+Inf"', snapshot.predictions, "_bucket")
    text.add(family, labels, f"{snapshot.sum_us / 1e6:.6f}", "_sum")
    text.add(family, labels, snapshot.predictions, "_count")


def _batch_sizes(text: _Exposition, labels: str, snapshot: Snapshot) -> None:
    family = "skerry_batch_items"
    for limit in _EXPOSED_ITEMS:
        count = sum(n for size, n in snapshot.batches.items() if size <= limit)
        text.add(family, f'{labels},le="{limit}"', count, "_bucket")
    total = sum(snapshot.batches.values())
    text.add(family, f'{labels},le="+Inf"', total, "_bucket")
    text.add(family, labels, snapshot.items, "_sum")
    text.add(family, labels, total, "_count")
