"""Results as plain text for a person at a device.  Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Final

from edge_agent.measure.comparison import Comparison
from edge_agent.measure.peak import QpsSearch
from edge_agent.measure.results import Measurement

_WIDTH: Final = 100
_BAR: Final = 40
_MOST_ROWS: Final = 12

Rows = list[tuple[str, str]]


def measurement(result: Measurement) -> str:
    """Verdict, figures and where they come from."""
    rows: Rows = [("scenario", _scenario(result))]
    rows += [("verdict", f"{result.verdict}: {result.reason}")]
    each = "batch" if result.batch > 1 else "query"
    rows += [
        ("queries", f"{result.queries} in {result.duration_s:.1f} s, {result.qps:.1f} a second"),
        (
            f"ms per {each}",
            f"p50 {result.p50_ms:.3f}, p90 {result.p90_ms:.3f}, p95 {result.p95_ms:.3f}, "
            f"p99 {result.p99_ms:.3f}, mean {result.mean_ms:.3f}",
        ),
    ]
    if result.scenario != "offline":
        name = f"p{result.percentile * 100:g}"
        bound = result.upper_bound_ms
        said = "unknown from so few queries" if bound is None else f"below {bound:.3f} ms"
        rows.append((name, f"{said} with 99 % confidence"))
    rows.append(("disturbance", _disturbance(result)))
    rows += _provenance(result.provenance)
    text = _aligned(rows)
    bars = _bars(result.histogram)
    return f"{text}\n\n{bars}" if bars else text


def search(result: QpsSearch) -> str:
    """The highest rate, and every rate that was tried."""
    rate = "none" if result.highest_qps is None else f"{result.highest_qps:.4g} queries/s"
    failed = result.lowest_failed_qps
    rows: Rows = [
        ("verdict", f"{result.verdict}: {result.reason}"),
        ("highest rate", rate),
        ("lowest failed", "none" if failed is None else f"{failed:.4g} queries/s"),
        ("throughput", f"{result.capacity_qps:.4g} queries/s without a limit"),
        (
            "search",
            f"{len(result.probes)} rates in {result.duration_s:.1f} s{_quick(result.quick)}",
        ),
        *_provenance(result.provenance),
    ]
    probes = [
        f"{probe.qps:>12.4g} {probe.verdict:<13} {probe.queries:>8} {probe.p99_ms:>10.3f}"
        for probe in result.probes
    ]
    if not probes:
        return _aligned(rows)
    head = f"{'queries/s':>12} {'verdict':<13} {'queries':>8} {'p99 ms':>10}"
    return "\n".join([_aligned(rows), "", head, *probes])


def comparison(result: Comparison) -> str:
    """Which is faster, by how much, and how sure that is."""
    if result.faster:
        said = "the candidate is faster"
    elif result.slower:
        said = "the candidate is slower"
    else:
        said = "neither is surely faster"
    rows: Rows = [
        ("verdict", f"{said}{_quick(result.quick)}"),
        (
            "speedup",
            f"{result.speedup:.3f}×, with 99 % confidence "
            f"between {result.low:.3f}× and {result.high:.3f}×",
        ),
        ("pairs", str(result.pairs)),
        (
            "p50 ms",
            f"baseline {result.baseline_p50_ms:.3f}, candidate {result.candidate_p50_ms:.3f}",
        ),
    ]
    if result.disturbed:
        rows.append(("note", result.disturbed))
    return _aligned(rows + _provenance(result.provenance))


def _scenario(result: Measurement) -> str:
    parts: list[str] = [result.scenario]
    if result.target_qps is not None:
        parts.append(f"{result.target_qps:g} queries/s")
    if result.concurrency > 1:
        parts.append(f"{result.concurrency} at a time")
    if result.batch > 1:
        parts.append(f"batches of {result.batch}")
    return ", ".join(parts) + _quick(result.quick)


def _quick(quick: bool) -> str:
    return " (quick: good to choose by, not to publish)" if quick else ""


def _disturbance(result: Measurement) -> str:
    return (
        f"canary at {result.canary_ratio:.2f}× its fastest, waited {result.waited_share:.1%}, "
        f"others used {result.neighbours_share:.1%}, load {result.load_per_core:.2f} per core"
    )


def _provenance(provenance: Mapping[str, str]) -> Rows:
    return [(key.replace("_", " "), value) for key, value in provenance.items()]


def _aligned(rows: Rows) -> str:
    """Two columns; what is long goes on below itself."""
    width = max(len(name) for name, _ in rows) + 2
    lines: list[str] = []
    for name, value in rows:
        wrapped = textwrap.wrap(value, _WIDTH - width) or [""]
        lines.append(f"{name:<{width}}{wrapped[0]}")
        lines += [" " * width + line for line in wrapped[1:]]
    return "\n".join(lines)


def _bars(histogram: Sequence[tuple[float, int]]) -> str:
    """A bar per bin, neighbouring bins joined so that they fit on a screen."""
    together = -(-len(histogram) // _MOST_ROWS)
    joined = [
        (histogram[min(at + together, len(histogram)) - 1][0], sum(
            count for _, count in histogram[at : at + together]
        ))
        for at in range(0, len(histogram), max(together, 1))
    ]  # fmt: skip
    most = max((count for _, count in joined), default=0)
    return "\n".join(
        f"≤ {edge:>9.3f} ms {count:>8}  {'█' * round(_BAR * count / most)}".rstrip()
        for edge, count in joined
    )
