"""Pictures over time, and what all pictures share, as options of Apache ECharts.

Pure: data in, options out, nothing is drawn here.  The frontier has a module of its own.

Times are shown in the reader's zone.  Names come from projects and devices, so they are escaped
wherever a tooltip would read them as HTML.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any, Final

from fleet.client.schemas import DriftOut, Json
from fleet.console import formats

Options = dict[str, Any]
Words = Callable[[str], str]
"""Translates the few words of a picture."""

SERIES: Final = ("#17697a", "#b86b1f", "#5b5fa8", "#7a8f2a", "#a5303a", "#4b7fb0")
_VERDICT: Final = {"ok": "#3f9a70", "drift": "#c0392f", "insufficient": "#9aa9ae"}
_INK: Final = "#4b5f68"
_LINE: Final = "#e0e6e5"
_FONT: Final = '"Roboto", "Noto Sans KR", "Noto Sans CJK KR", sans-serif'


def base() -> Options:
    """What all pictures share."""
    return {
        "animation": False,
        "textStyle": {"fontFamily": _FONT, "color": _INK},
        "color": list(SERIES),
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


def axis(kind: str, name: str, **more: object) -> Options:
    """A level axis of ECharts' `kind`."""
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


def upright(kind: str, name: str, **more: object) -> Options:
    """A vertical axis; its name stands level above it, which reads easier than turned text."""
    place = {"nameLocation": "end", "nameGap": 14, "nameTextStyle": {"color": "#768891"}}
    return {**axis(kind, name), **place, "axisLine": {"show": False}, **more}


def _time_axis() -> Options:
    return axis("time", "", splitLine={"show": False})


def wide(values: Sequence[float]) -> bool:
    """Whether `values` span so much that only a logarithmic axis shows them all."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > 40


# ── drift ────────────────────────────────────────────────────────────────────────────────────────


def drift(reports: Sequence[DriftOut], words: Words) -> Options | None:
    """The statistic against its threshold over time, of one scope; None without reports."""
    ordered = sorted(reports, key=lambda report: report.at)
    if not ordered:
        return None
    options = base()
    # without a threshold there was too little to calibrate one
    levels = [report for report in ordered if report.threshold > 0]
    heights = [value for report in ordered for value in (report.statistic, report.threshold)]
    logarithmic = wide([value for value in heights if value > 0])
    options |= {
        "xAxis": _time_axis(),
        "yAxis": upright("log" if logarithmic else "value", words("Hotelling T²")),
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
    options = base()

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
        "yAxis": upright("value", "ms"),
        "series": [line("p50", "latency_p50_us"), line("p99", "latency_p99_us")],
    }
    options["tooltip"]["trigger"] = "axis"
    return options


def traffic(metrics: Sequence[Json], words: Words) -> Options | None:
    """Requests, errors, rejects and corrections per window; None without any."""
    windows = list(reversed(metrics))
    if not windows:
        return None
    options = base()

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
        "yAxis": upright("value", words("per window"), minInterval=1),
        "series": [
            column(words("Requests"), "requests", "#8fb8c0"),
            column(words("Corrections"), "corrections", "#d9a33c"),
            column(words("Rejects"), "rejects", "#8a7bb5"),
            column(words("Errors"), "errors", "#cc5560"),
        ],
    }
    options["tooltip"]["trigger"] = "axis"
    return options
