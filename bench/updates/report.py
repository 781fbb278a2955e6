"""What a run found, as tables for people and as one JSON object for programs."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Final

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from bench.updates import deltas
from bench.updates.run import Found

TO_REACH: Final[dict[str, tuple[str, float]]] = {
    "delta_ratio_int8": ("≤", 0.15),
    "int8_over_best_alternative": ("<", 1.0),
    "apply_peak_mib": ("≤", 10),
    "pull_share_of_raw": ("≥", 0.6),
    "resume_waste_percent": ("≤", 1),
    "agent_over_idle_mib": ("≤", 20),
}
"""What the headline is held to."""


def reached(key: str, value: float) -> bool | None:
    """Whether a figure is what it should be; None where nothing is asked."""
    if key not in TO_REACH:
        return None
    relation, bound = TO_REACH[key]
    return {"≥": value >= bound, "≤": value <= bound, "<": value < bound}[relation]


def as_json(found: Found, load: float) -> dict[str, JsonValue]:
    """The headline first, then everything it was made of."""
    details: dict[str, JsonValue] = {
        "networks": [asdict(each) for each in found.tuned],
        "deltas": [
            {
                "name": each.name, "kind": each.kind, "raw": each.raw,
                "moved": round(each.moved, 4), "note": each.note,
                "ratios": {tool: _rounded(each.ratio(tool)) for tool in each.costs},
                "seconds": {tool: round(cost.seconds, 2) for tool, cost in each.costs.items()},
            }
            for each in found.compared
        ],
        "apply": None if found.applied is None else asdict(found.applied),
        "line": None if found.rates is None else asdict(found.rates),
        "resume": None if found.resumed is None else asdict(found.resumed),
        "bytes_refresh_first": found.refresh_first_bytes,
        "agent": None if found.updated is None else _agent(found),
        "machine": {
            "cores": os.cpu_count(), "load_per_core": round(load, 2),
            "python": platform.python_version(), "machine": platform.machine(),
        },
    }  # fmt: skip
    return {**found.headline(), **details}


def print_tables(found: Found) -> None:
    console = Console(width=max(110, Console().width))
    if found.compared:
        console.print(_deltas(found))
        for each in found.compared:
            if each.note:
                console.print(f"{each.name}, {each.kind}: {each.note}", markup=False)
        for tuned in found.tuned:
            console.print(
                f"{tuned.name} ({tuned.about}, {tuned.parameters:,} parameters): wrong on new data "
                f"{tuned.error_before:.1%} before, {tuned.error_after:.1%} after",
                markup=False,
            )
    console.print(_headline(found))


def _deltas(found: Found) -> Table:
    tools = (deltas.OURS, *deltas.ALTERNATIVES)
    table = _table("bytes of an update, % of the raw bundle", "network", "kind", "raw KiB",
                   "moved %", *tools, "seconds to make")  # fmt: skip
    for each in found.compared:
        table.add_row(
            each.name, each.kind, f"{each.raw / 1024:,.0f}", f"{100 * each.moved:.1f}",
            *(_percent(each.ratio(tool)) for tool in tools),
            f"{each.costs[deltas.OURS].seconds:.1f}",
        )  # fmt: skip
    for kind in dict.fromkeys(each.kind for each in found.compared):
        ratios = (_percent(found.ratio(kind, tool)) for tool in tools)
        table.add_row("all", kind, "", "", *ratios, "")
    return table


def _headline(found: Found) -> Table:
    table = _table("headline", "figure", "found", "to reach")
    for key, value in found.headline().items():
        relation, bound = TO_REACH.get(key, ("", 0.0))
        mark = {True: "✓", False: "✗", None: ""}[reached(key, value)]
        table.add_row(key, f"{value:,}", f"{relation} {bound:g} {mark}" if relation else "")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < 2 and len(columns) > 3 else "right")
    return table


def _agent(found: Found) -> JsonValue:
    if found.updated is None:
        return None
    return {key: _listed(value) for key, value in asdict(found.updated).items()}


def _listed(value: object) -> JsonValue:
    if isinstance(value, tuple):
        return [round(float(each), 2) for each in value]
    return round(float(str(value)), 2)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"
