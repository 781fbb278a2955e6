"""The picture of a profile's candidates: metric over latency, the budget as the shaded region.

Drawn as SVG with text left as text; numbers in the marks are those of the report's table.  Colours
are mid-tones that stand on a light and on a dark page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from optimizer.budget import Budget, MetricName
from optimizer.task import Candidate

_COLOURS: Final = {"onnxruntime": "#2f6fde", "openvino": "#8a4fd3", "tensorrt": "#1f9d6b"}
_RUNTIME_NAMES: Final = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
}
_INK: Final = "#7a8599"
_GOOD: Final = "#1f9d6b"
_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "skerry",
    "font.size": 10,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
}


def frontier_svg(
    candidates: Sequence[Candidate], budget: Budget, primary: MetricName, floor: float | None
) -> str:
    """An `<svg>` element, or an empty text where no candidate was both evaluated and timed.

    Args:
        candidates: of one profile; the mark's number is the position, from 1.
        floor: smallest value of the primary metric that the budget allows, 0..1.
    """
    points = [
        (number, candidate, candidate.latency_ms, candidate.accuracy.metric(primary) * 100)
        for number, candidate in enumerate(candidates, start=1)
        if candidate.accuracy is not None and candidate.latency_ms is not None
    ]
    if not points:
        return ""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.6, 3.7), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=_INK, alpha=0.16, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xscale("log")
        _set_limits(
            axes,
            [x for _, _, x, _ in points] + ([budget.latency_ms] if budget.latency_ms else []),
            [y for _, _, _, y in points] + ([floor * 100] if floor is not None else []),
        )
        _draw_budget(axes, budget, floor)
        _draw_frontier(axes, [(x, y) for _, c, x, y in points if c.on_frontier])
        for number, candidate, x, y in points:
            _draw_mark(axes, number, candidate, x, y)
        _draw_legend(axes, [candidate for _, candidate, _, _ in points])
        axes.set_xlabel(f"latency p{budget.percentile * 100:g}, ms (log)")
        axes.set_ylabel(f"{primary.replace('_', '-')}, %")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _set_limits(axes: mpl.axes.Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    axes.set_xlim(min(xs) / 1.5, max(xs) * 1.5)
    spread = max(max(ys) - min(ys), 1.0)
    axes.set_ylim(min(ys) - 0.18 * spread, min(100.5, max(ys) + 0.25 * spread))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_budget(axes: mpl.axes.Axes, budget: Budget, floor: float | None) -> None:
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    edge = budget.latency_ms if budget.latency_ms is not None else right
    base = floor * 100 if floor is not None else bottom
    axes.fill_between([left, edge], base, top, color=_GOOD, alpha=0.09, linewidth=0)
    if budget.latency_ms is not None:
        axes.plot([edge, edge], [base, top], color=_GOOD, linewidth=1.1, linestyle=(0, (5, 3)))
    if floor is not None:
        axes.plot([left, edge], [base, base], color=_GOOD, linewidth=1.1, linestyle=(0, (5, 3)))
    axes.annotate(
        "within budget", (left, top), xytext=(7, -6), textcoords="offset points",
        color=_GOOD, fontsize=9, va="top", ha="left",
    )  # fmt: skip


def _draw_frontier(axes: mpl.axes.Axes, points: Sequence[tuple[float, float]]) -> None:
    ordered = sorted(points)
    if len(ordered) > 1:
        axes.plot(
            *zip(*ordered, strict=True), color=_INK, linewidth=1.2, alpha=0.75, zorder=2,
            drawstyle="steps-post",
        )  # fmt: skip


def _draw_mark(axes: mpl.axes.Axes, number: int, candidate: Candidate, x: float, y: float) -> None:
    colour = _COLOURS.get(candidate.runtime, _INK)
    passed = candidate.verdict == "PASS"
    if candidate.selected:
        axes.scatter([x], [y], s=430, facecolor="none", edgecolor=_GOOD, linewidth=2.2, zorder=3)
    axes.scatter(
        [x],
        [y],
        s=210,
        facecolor=colour if passed else "none",
        edgecolor=colour,
        linewidth=1.4,
        zorder=4,
        alpha=1.0 if passed else 0.8,
    )
    axes.text(
        x, y, str(number), ha="center", va="center_baseline", fontsize=8.5, fontweight="bold",
        color="#ffffff" if passed else colour, zorder=5,
    )  # fmt: skip


def _draw_legend(axes: mpl.axes.Axes, candidates: Sequence[Candidate]) -> None:
    for runtime in sorted({candidate.runtime for candidate in candidates}):
        axes.scatter(
            [], [], s=70, color=_COLOURS.get(runtime, _INK), label=_RUNTIME_NAMES.get(runtime)
        )
    axes.scatter([], [], s=70, facecolor="none", edgecolor=_INK, label="misses the budget")
    axes.scatter([], [], s=90, facecolor="none", edgecolor=_GOOD, linewidth=2, label="chosen")
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, fontsize=8.5,
        handletextpad=0.3, columnspacing=1.4,
    )  # fmt: skip
