"""The pictures, as options of Apache ECharts.  Pure: data in, options out, nothing is drawn here.

Times are shown in the reader's zone.  Names come from projects and devices, so they are escaped
wherever a tooltip would read them as HTML.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, Final

from fleet.client.schemas import DriftOut, Json, VariantOut
from fleet.console import formats

Options = dict[str, Any]
Words = Callable[[str], str]
"""Translates the few words of a picture."""

_SERIES: Final = ("#17697a", "#b86b1f", "#5b5fa8", "#7a8f2a", "#a5303a", "#4b7fb0")
_VERDICT: Final = {"ok": "#3f9a70", "drift": "#c0392f", "insufficient": "#9aa9ae"}
_INK: Final = "#4b5f68"
_LINE: Final = "#e0e6e5"
_FONT: Final = '"Roboto", "Noto Sans KR", "Noto Sans CJK KR", sans-serif'


def _base() -> Options:
    return {
        "animation": False,
        "textStyle": {"fontFamily": _FONT, "color": _INK},
        "color": list(_SERIES),
        "grid": {"left": 12, "right": 20, "top": 62, "bottom": 6, "containLabel": True},
        "legend": {
            "top": 4,
            "left": 4,
            "type": "scroll",
            "itemWidth": 14,
            "itemHeight": 8,
            "textStyle": {"color": _INK},
        },
        "tooltip": {
            "confine": True,
            "borderColor": _LINE,
            "padding": [8, 12],
            "textStyle": {"color": "#16262d", "fontSize": 13},
        },
    }


def _axis(kind: str, name: str, **more: object) -> Options:
    return {
        "type": kind,
        "name": name,
        "nameLocation": "middle",
        "nameGap": 30,
        "nameTextStyle": {"color": "#768891"},
        "axisLine": {"lineStyle": {"color": "#b9c6c7"}},
        "axisTick": {"show": False},
        "axisLabel": {"color": "#768891", "hideOverlap": True},
        "splitLine": {"lineStyle": {"color": "#edf1f0"}},
        **more,
    }


def _upright(kind: str, name: str, **more: object) -> Options:
    """A vertical axis; its name stands level above it, which reads easier than turned text."""
    place = {"nameLocation": "end", "nameGap": 14, "nameTextStyle": {"color": "#768891"}}
    return {**_axis(kind, name), **place, "axisLine": {"show": False}, **more}


def _time_axis() -> Options:
    return _axis("time", "", splitLine={"show": False})


def _wide(values: Sequence[float]) -> bool:
    """Whether `values` span so much that only a logarithmic axis shows them all."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 40


# ── frontier ─────────────────────────────────────────────────────────────────────────────────────

LATENCY: Final = ("p99_ms", "p95_ms", "p90_ms", "p50_ms")
QUALITY: Final = ("macro_f1", "accuracy", "balanced_accuracy")


def _point(variant: VariantOut) -> tuple[float, float] | None:
    latency = formats.pick(variant.measurement, *LATENCY)
    quality = formats.pick(variant.accuracy, *QUALITY)
    return None if latency is None or quality is None else (latency, quality)


def _pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both: latency down, accuracy up.  Fastest first."""
    best: list[tuple[float, float]] = []
    for latency, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or quality > best[-1][1]:
            best.append((latency, quality))
    return best


def frontier(variants: Sequence[VariantOut], words: Words) -> Options | None:
    """Latency against accuracy, a colour per profile; None where nothing was measured.

    Filled: within the budget.  Hollow: not.  Large with its name: the one that was selected.
    """
    drawn = [(variant, point) for variant in variants if (point := _point(variant)) is not None]
    if not drawn:
        return None
    options = _base()
    series: list[Options] = []
    profiles = sorted({variant.profile for variant, _ in drawn})
    for index, profile in enumerate(profiles):
        colour = _SERIES[index % len(_SERIES)]
        mine = [(variant, point) for variant, point in drawn if variant.profile == profile]
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
                "data": [list(point) for point in _pareto([point for _, point in mine])],
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
        "xAxis": _axis(
            "log" if _wide(latencies) else "value",
            words("Latency p99, ms"),
            scale=True,
            max=float(f"{1.08 * max(latencies):.2g}"),
        ),
        "yAxis": _upright("value", words("Accuracy (macro F1)"), scale=True),
    }
    options["tooltip"]["trigger"] = "item"
    options["grid"] |= {"bottom": 30, "right": 36}
    return options


def _budgets(limits: Sequence[float], colour: str, words: Words) -> Options:
    """The latency budgets as upright lines."""
    return {
        "silent": True,
        "symbol": "none",
        "lineStyle": {"color": colour, "type": "dotted", "width": 1.5},
        "label": {"formatter": words("budget"), "color": colour, "fontSize": 11},
        "data": [{"xAxis": limit} for limit in limits],
    }


def _dot(variant: VariantOut, point: tuple[float, float], colour: str, words: Words) -> Options:
    passed = variant.verdict == "PASS"
    lines = [
        f"<b>{html.escape(variant.name)}</b> · {html.escape(variant.profile)}",
        f"{words('Latency p99, ms')}: {formats.figure(point[0])}",
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


# ── drift ────────────────────────────────────────────────────────────────────────────────────────


def drift(reports: Sequence[DriftOut], words: Words) -> Options | None:
    """The statistic against its threshold over time, of one scope; None without reports."""
    ordered = sorted(reports, key=lambda report: report.at)
    if not ordered:
        return None
    options = _base()
    # without a threshold there was too little to calibrate one
    levels = [report for report in ordered if report.threshold > 0]
    heights = [value for report in ordered for value in (report.statistic, report.threshold)]
    logarithmic = _wide([value for value in heights if value > 0])
    options |= {
        "xAxis": _time_axis(),
        "yAxis": _upright("log" if logarithmic else "value", words("Hotelling T²")),
        "series": [
            {
                "type": "line",
                "name": words("Statistic"),
                "symbol": "circle",
                "symbolSize": 9,
                "lineStyle": {"width": 2},
                "data": [
                    _reading(report, words)
                    for report in ordered
                    if report.statistic > 0 or not logarithmic
                ],
                "z": 3,
            },
            {
                "type": "line",
                "name": words("Threshold"),
                "step": "middle",
                "symbol": "none",
                "lineStyle": {"width": 1.5, "type": "dashed", "color": "#a5303a"},
                "itemStyle": {"color": "#a5303a"},
                "areaStyle": {"color": "#22704c", "opacity": 0.06, "origin": "start"},
                "tooltip": {"show": False},
                "data": [[report.at * 1000, report.threshold] for report in levels],
            },
        ],
    }
    options["tooltip"]["trigger"] = "item"
    return options


def _reading(report: DriftOut, words: Words) -> Options:
    line = (
        f"<b>{html.escape(words(report.verdict))}</b><br>"
        f"T² {formats.figure(report.statistic)} · "
        f"{words('Threshold')} {formats.figure(report.threshold)} · n = {report.n}"
    )
    return {
        "value": [report.at * 1000, report.statistic],
        "itemStyle": {"color": _VERDICT[report.verdict], "borderColor": "#fff", "borderWidth": 1},
        "tooltip": {"formatter": line},
    }


# ── a device's figures ───────────────────────────────────────────────────────────────────────────


def latency(metrics: Sequence[Json], words: Words) -> Options | None:
    """p50 and p99 of a device's predictions over its last windows; None without any."""
    windows = [row for row in reversed(metrics) if formats.number(row.get("requests"))]
    if not windows:
        return None
    options = _base()

    def line(name: str, key: str) -> Options:
        return {
            "type": "line",
            "name": name,
            "symbol": "circle",
            "symbolSize": 5,
            "data": [[row["at"] * 1000, (formats.pick(row, key) or 0) / 1000] for row in windows],
        }

    options |= {
        "xAxis": _time_axis(),
        "yAxis": _upright("value", "ms"),
        "series": [line("p50", "latency_p50_us"), line("p99", "latency_p99_us")],
    }
    options["tooltip"]["trigger"] = "axis"
    return options


def traffic(metrics: Sequence[Json], words: Words) -> Options | None:
    """Requests, errors, rejects and corrections per window; None without any."""
    windows = list(reversed(metrics))
    if not windows:
        return None
    options = _base()

    def column(name: str, key: str, colour: str) -> Options:
        return {
            "type": "bar",
            "name": name,
            "stack": "all",
            "barMaxWidth": 14,
            "itemStyle": {"color": colour},
            "data": [[row["at"] * 1000, formats.pick(row, key) or 0] for row in windows],
        }

    options |= {
        "xAxis": _time_axis(),
        "yAxis": _upright("value", words("per window"), minInterval=1),
        "series": [
            column(words("Requests"), "requests", "#8fb8c0"),
            column(words("Corrections"), "corrections", "#d9a33c"),
            column(words("Rejects"), "rejects", "#8a7bb5"),
            column(words("Errors"), "errors", "#cc5560"),
        ],
    }
    options["tooltip"]["trigger"] = "axis"
    return options
