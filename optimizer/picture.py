"""The picture of a profile's candidates: metric over latency, the budget as the shaded region.

The area of a mark is the size of the bundle, its colour the runtime; marks that miss the budget are
hollow, predicted ones dashed, and what was looked at briefly is faint.  Numbers in the marks are
those of the report's table; a mark tells its name and figures where the pointer rests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final

from optimizer import figures
from optimizer.budget import Budget
from optimizer.drawing import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, frame, picture, text, upright
from optimizer.task import Candidate, OptimizeResult

HEIGHT: Final = 420

RUNTIMES: Final = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}

_LARGEST, _SMALLEST = 26.0, 6.0
_NUMBERED: Final = 14
"""Marks beyond these carry a number only on the frontier: they would hide each other."""

Placed = tuple[int, Candidate, float, float]
"""Number, candidate, latency in ms, metric in percent."""


def frontier_svg(result: OptimizeResult, profile: str) -> str:
    """An `<svg>` element, or an empty text where no candidate was both evaluated and timed.

    A mark's number is the position among `figures.of_profile`, from 1.
    """
    budget = result.budgets[profile]
    placed = _placed(result, profile)
    if not placed:
        return ""
    floor = figures.floor(result, budget)
    x, y = _scales(placed, budget, floor)
    bottom = HEIGHT - BOTTOM
    label = figures.metric_label(result)
    content = frame(x, y, HEIGHT, f"p{budget.percentile * 100:g} latency, ms (log)", f"{label}, %")
    content += _budget(x, y, budget, floor, bottom)
    content += _frontier(x, y, [item for item in placed if item[1].on_frontier])
    largest = max((c.artifact_kib or 0.0 for _, c, _, _ in placed), default=0.0)
    # Small marks last, so that large ones do not cover them.
    for item in sorted(placed, key=lambda item: -(item[1].artifact_kib or 0.0)):
        content += _mark(x, y, item, largest, label)
    return picture(HEIGHT, f"{label} over latency of {len(placed)} variants", content)


def legend(result: OptimizeResult, profile: str) -> str:
    """What the marks mean, as HTML."""
    shown = [c for _, c, _, _ in _placed(result, profile)]
    items = [
        (f"dot {runtime}", RUNTIMES.get(runtime, runtime))
        for runtime in sorted({c.runtime for c in shown})
    ]
    if any(c.verdict != "PASS" for c in shown):
        items.append(("dot hollow", "misses the budget, or not measured in full"))
    if any(c.predicted for c in shown):
        items.append(("dot dashed", "predicted"))
    if any(c.selected for c in shown):
        items.append(("dot ring", "chosen"))
    items.append(("dot area", "area: size of the bundle"))
    return "".join(f'<span><i class="{kind}"></i>{escape(words)}</span>' for kind, words in items)


def _placed(result: OptimizeResult, profile: str) -> list[Placed]:
    found = []
    for number, candidate in enumerate(figures.of_profile(result, profile), start=1):
        time, quality = figures.tail_ms(candidate), figures.quality(result, candidate)
        if time is not None and time > 0 and quality is not None:
            found.append((number, candidate, time, quality * 100))
    return found


def _scales(placed: Sequence[Placed], budget: Budget, floor: float | None) -> tuple[Scale, Scale]:
    times = [time for _, _, time, _ in placed]
    # A bound far away would squeeze all marks to one side.
    if budget.latency_ms is not None and budget.latency_ms < 8 * max(times):
        times.append(budget.latency_ms)
    values = [value for _, _, _, value in placed]
    if floor is not None and floor * 100 > min(values) - 10:
        values.append(floor * 100)
    spread = max(max(values) - min(values), 0.5)
    low, high = min(values) - 0.14 * spread, min(max(values) + 0.16 * spread, 100.0)
    if high - max(values) < 0.04 * spread:
        high = max(values) + 0.06 * spread  # the mark itself must have room
    return (
        Scale(min(times) / 1.35, max(times) * 1.35, LEFT, WIDTH - RIGHT, log=True),
        Scale(low, high, HEIGHT - BOTTOM, TOP),
    )


def _budget(x: Scale, y: Scale, budget: Budget, floor: float | None, bottom: float) -> str:
    if budget.latency_ms is None and floor is None:
        return ""
    right = x.end if budget.latency_ms is None else x(budget.latency_ms)
    base = bottom if floor is None else y(floor * 100)
    if right <= LEFT or base <= TOP:
        return ""
    region = (
        f'<rect class="within" x="{LEFT}" y="{TOP}" width="{right - LEFT:.1f}" '
        f'height="{base - TOP:.1f}"/>'
    )
    if budget.latency_ms is not None and budget.latency_ms < x.high:
        region += upright(right, TOP, base, "bound")
    if floor is not None and floor * 100 > y.low:
        region += (
            f'<line class="bound" x1="{LEFT}" x2="{right:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>'
        )
    return region + text(LEFT + 8, TOP + 15, "within budget", "good")


def _frontier(x: Scale, y: Scale, placed: Sequence[Placed]) -> str:
    ordered = sorted(placed, key=lambda item: (item[2], item[3]))
    if len(ordered) < 2:
        return ""
    path = f"M{x(ordered[0][2]):.1f} {y(ordered[0][3]):.1f}"
    for _, _, time, value in ordered[1:]:
        path += f"H{x(time):.1f}V{y(value):.1f}"
    return f'<path class="frontier" d="{path}"/>'


def _mark(x: Scale, y: Scale, item: Placed, largest: float, label: str) -> str:
    number, candidate, time, value = item
    share = (candidate.artifact_kib or 0.0) / largest if largest else 0.0
    radius = max(_SMALLEST, _LARGEST * math.sqrt(share))
    at_x, at_y = x(time), y(value)
    kinds = ["mark", candidate.runtime]
    kinds += ["hollow"] if candidate.verdict != "PASS" else []
    kinds += ["dashed"] if candidate.predicted else []
    kinds += ["faint"] if candidate.fidelity != "full" else []
    hint = (
        f"{number} · {candidate.name}: {figures.ms(time)}, {label} {value:.2f} %, "
        f"{figures.kib(candidate.artifact_kib)}, {candidate.verdict}"
        + (", predicted" if candidate.predicted else "")
    )
    drawn = f'<circle class="{" ".join(kinds)}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="{radius:.1f}"/>'
    if candidate.selected:
        drawn += f'<circle class="ring" cx="{at_x:.1f}" cy="{at_y:.1f}" r="{radius + 4:.1f}"/>'
    if number <= _NUMBERED or candidate.on_frontier:
        inside = radius >= 9
        kind = "number inside" if inside and candidate.verdict == "PASS" else "number"
        drawn += (
            text(at_x, at_y + 4, str(number), f"{kind} mid")
            if inside
            else text(at_x, at_y - radius - 4, str(number), f"{kind} mid")
        )
    return f"<g><title>{escape(hint)}</title>{drawn}</g>"
