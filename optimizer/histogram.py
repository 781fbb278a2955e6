"""The picture of how latencies are spread: the chosen variant against fp32.  Pure."""

from __future__ import annotations

import math
from typing import Final

from edge_agent.measure import Measurement
from optimizer.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, frame, picture, text, upright

HEIGHT: Final = 230

_ROOM: Final = 22
"""Above the tallest bar, for what is written on the lines."""

_FINEST_RATIO: Final = 1.02


def histogram_svg(
    chosen: Measurement, plain: Measurement | None, bound_ms: float | None = None
) -> str:
    """An `<svg>` element, or an empty text where no latencies were kept.

    Args:
        chosen, plain: the runs; heights are shares of requests per equal ratio of latency, so that
            bins of both mean the same.
        bound_ms: a line at the budget's bound, where it is near.
    """
    runs = [(run, kind) for run, kind in ((plain, "plain"), (chosen, "chosen")) if run is not None]
    bars = {kind: bars for run, kind in runs if (bars := _bars(run))}
    if "chosen" not in bars:
        return ""
    low = min(each[0][0] for each in bars.values())
    high = max(each[-1][1] for each in bars.values())
    near = bound_ms is not None and bound_ms < 3 * high
    if near and bound_ms is not None:
        low, high = min(low, bound_ms), max(high, bound_ms)
    x = Scale(low / 1.08, high * 1.08, LEFT, WIDTH - RIGHT, log=True)
    tallest = max(height for each in bars.values() for _, _, height in each)
    y = Scale(0.0, tallest, HEIGHT - BOTTOM, TOP + _ROOM)
    content = frame(x, None, HEIGHT, "latency of a request, ms (log)")
    for kind, each in bars.items():
        content += _area(x, y, each, kind)
    for run, kind in runs:
        if kind in bars:
            at = x(run.p50_ms)
            content += upright(at, TOP + _ROOM, HEIGHT - BOTTOM, f"median {kind}")
    if near and bound_ms is not None:
        content += upright(x(bound_ms), TOP, HEIGHT - BOTTOM, "bound")
        content += text(x(bound_ms) - 6, TOP + 12, f"bound {bound_ms:g} ms", "good end")
    return picture(HEIGHT, "latencies of the chosen variant and of fp32", content)


def _bars(run: Measurement) -> list[tuple[float, float, float]]:
    """Lower edge, upper edge, height of each bin."""
    edges = run.histogram
    total = sum(number for _, number in edges)
    if not total:
        return []
    uppers = [upper for upper, _ in edges]
    ratio = uppers[1] / uppers[0] if len(uppers) > 1 else _FINEST_RATIO
    lowers = [uppers[0] / ratio, *uppers[:-1]]
    return [
        (lower, upper, number / total / max(math.log(upper / lower), 1e-9))
        for lower, (upper, number) in zip(lowers, edges, strict=True)
    ]


def _area(x: Scale, y: Scale, bars: list[tuple[float, float, float]], kind: str) -> str:
    path = f"M{x(bars[0][0]):.1f} {y(0):.1f}"
    for lower, upper, height in bars:
        path += f"V{y(height):.1f}H{x(upper):.1f}" if lower < upper else ""
    return f'<path class="spread {kind}" d="{path}V{y(0):.1f}Z"/>'
