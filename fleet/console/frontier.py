"""The frontier: latency against accuracy of a version's candidates.  Pure, as `charts` is."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final

from fleet.client.schemas import VariantOut
from fleet.console import charts, formats

QUALITY: Final = ("macro_f1", "accuracy", "balanced_accuracy")
_KNOWN: Final = ("p99", "p95", "p90", "p50")

Point = tuple[float, float]
"""Latency in ms, accuracy."""


def budgeted(variant: VariantOut) -> tuple[str, float] | None:
    """The percentile that the variant's budget is about, and its latency there in ms."""
    share = formats.pick(variant.measurement, "percentile") or 0.99
    for name in (f"p{100 * share:g}", *_KNOWN):
        latency = formats.pick(variant.measurement, f"{name}_ms")
        if latency is not None:
            return name, latency
    return None


def _point(variant: VariantOut) -> Point | None:
    latency = budgeted(variant)
    quality = formats.pick(variant.accuracy, *QUALITY)
    return None if latency is None or quality is None else (latency[1], quality)


def _latency_axis(variants: Sequence[VariantOut], words: charts.Words) -> str:
    names = {found[0] for variant in variants if (found := budgeted(variant))}
    return f"{words('Latency')} {'/'.join(sorted(names))}, ms"


def _within(drawn: Sequence[tuple[VariantOut, Point]]) -> list[Point]:
    """Points of the variants that keep the budget."""
    return [point for variant, point in drawn if variant.verdict == "PASS"]


def _pareto(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both: latency down, accuracy up.  Fastest first."""
    best: list[Point] = []
    for latency, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((latency, quality))
    return best


def picture(variants: Sequence[VariantOut], words: charts.Words) -> charts.Options | None:
    """Latency against accuracy, a colour per profile; None where nothing was measured.

    Filled: within the budget.  Hollow: not.  Large with its name: the one that was selected.
    The dashed line joins what no other within the budget beats in both.
    """
    drawn = [(variant, point) for variant in variants if (point := _point(variant)) is not None]
    if not drawn:
        return None
    options = charts.base()
    series: list[charts.Options] = []
    profiles = sorted({variant.profile for variant, _ in drawn})
    for index, profile in enumerate(profiles):
        colour = charts.SERIES[index % len(charts.SERIES)]
        mine = [(variant, point) for variant, point in drawn if variant.profile == profile]
        points = [point for _, point in mine]
        limits = {formats.pick(variant.measurement, "target_latency_ms") for variant, _ in mine}
        series.append(
            {
                "type": "scatter",
                "name": profile,
                "itemStyle": {"color": colour},
                "data": [_dot(variant, point, colour, words) for variant, point in mine],
                "labelLayout": {"hideOverlap": False, "moveOverlap": "shiftY"},
                "markLine": _budgets(sorted(limit for limit in limits if limit), colour, words),
                "z": 3,
            }
        )
        series.append(
            {
                "type": "line",
                "name": profile,
                "data": [list(point) for point in _pareto(_within(mine) or points)],
                "symbol": "none",
                "silent": True,
                "lineStyle": {"color": colour, "width": 1, "type": "dashed", "opacity": 0.6},
            }
        )
    latencies = [point[0] for _, point in drawn]
    latencies += [
        limit for v, _ in drawn if (limit := formats.pick(v.measurement, "target_latency_ms"))
    ]
    options |= {
        "series": series,
        "xAxis": charts.axis(
            "log" if charts.wide(latencies) else "value",
            _latency_axis([variant for variant, _ in drawn], words),
            scale=True,
            max=float(f"{1.08 * max(latencies):.2g}"),
        ),
        "yAxis": charts.upright("value", words("Accuracy (macro F1)"), scale=True),
    }
    options["tooltip"]["trigger"] = "item"
    options["grid"] |= {"bottom": 30, "right": 36}
    return options


def _budgets(limits: Sequence[float], colour: str, words: charts.Words) -> charts.Options:
    """The latency budgets as upright lines."""
    return {
        "silent": True,
        "symbol": "none",
        "lineStyle": {"color": colour, "type": "dotted", "width": 1.5},
        "label": {"formatter": words("budget"), "color": colour, "fontSize": 11},
        "data": [{"xAxis": limit} for limit in limits],
    }


def _dot(variant: VariantOut, point: Point, colour: str, words: charts.Words) -> charts.Options:
    passed = variant.verdict == "PASS"
    lines = [
        f"<b>{html.escape(variant.name)}</b> · {html.escape(variant.profile)}",
        f"{_latency_axis([variant], words)}: {formats.figure(point[0])}",
        f"{words('Accuracy (macro F1)')}: {point[1]:.4f}",
        html.escape(f"{variant.verdict} {variant.reason}".strip()),
    ]
    return {
        "name": variant.name,
        "value": list(point),
        "symbolSize": 17 if variant.selected else 11,
        "itemStyle": {
            "color": colour if passed else "#ffffff",
            "borderColor": "#16262d" if variant.selected else colour,
            "borderWidth": 2,
        },
        "label": {
            "show": variant.selected,
            "formatter": "{b}",
            "position": "top",
            "distance": 7,
            "color": "#16262d",
            "backgroundColor": "rgba(255,255,255,0.85)",
            "padding": [1, 4],
            "borderRadius": 3,
        },
        "tooltip": {"formatter": "<br>".join(lines)},
    }
