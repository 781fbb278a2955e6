"""What a run found, as tables for people and as one JSON object for programs."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Final

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from bench.loads.measure import Figures
from bench.loads.networks import TINY
from bench.loads.requests import Kind
from bench.loads.run import OVERLOADED_MS, USUAL, Found, PeerFound, Settings

TO_REACH: Final[dict[str, tuple[str, float]]] = {
    "rps": ("≥", 25_000),
    "cpu_us_per_request": ("≤", 30),
    "pss_mb": ("≤", 75),
    "idle_cpu_percent": ("≤", 0.3),
    "start_seconds": ("<", 0.5),
    "dropped_on_swap": ("≤", 0),
    **{f"goodput_share_{network.name}": ("≥", 0.9) for network, _ in OVERLOADED_MS},
    **{f"late_admitted_{network.name}": ("≤", 0) for network, _ in OVERLOADED_MS},
}
"""What the headline is held to, on a machine whose bare server does 55k binary requests a second
at 13 µs: a slower machine is read by the ratio to its own bare server."""

RATIOS: Final = {
    "cpu_over_python_servers": 10.0,
    "cpu_over_triton_core": 3.0,
    "memory_over_any": 2.0,
}
"""Least ratios to the peers of the same run: of the Python model servers, of the Triton core, and
of the memory of any."""


def reached(key: str, value: float) -> bool | None:
    """Whether a figure of the headline is what it should be; None where nothing is asked."""
    if key not in TO_REACH:
        return None
    relation, bound = TO_REACH[key]
    return {"≥": value >= bound, "≤": value <= bound, "<": value < bound}[relation]


def ratios(found: Found, compared: list[PeerFound]) -> dict[str, float]:
    """The peers' figures over the agent's, of the nearest peer of each group.

    Processor time is compared for the same kind of request; a group without an answer is left out.
    """
    agent = {kind: found.agent[TINY.name, kind, USUAL] for kind in found.sketch}
    memory = max(figures.pss_mb for figures in agent.values())

    def cpu(peer: PeerFound) -> list[float]:
        return [
            figures.cpu_us_per_request / agent[kind].cpu_us_per_request
            for kind, figures in peer.figures.items()
        ]

    groups = {
        "cpu_over_python_servers": [
            ratio for each in compared if each.peer.python_server for ratio in cpu(each)
        ],
        "cpu_over_fastapi_route": [
            ratio for each in compared if each.peer.pins == "fastapi" for ratio in cpu(each)
        ],
        "cpu_over_triton_core": [
            ratio for each in compared if each.peer.pins == "triton" for ratio in cpu(each)
        ],
        "memory_over_any": [
            figures.pss_mb / memory for each in compared for figures in each.figures.values()
        ],
    }
    return {name: round(min(values), 2) for name, values in groups.items() if values}


def print_tables(found: Found, compared: list[PeerFound], settings: Settings) -> None:
    console = Console(width=max(110, Console().width))
    console.print(_loads(found, settings))
    console.print(_headline(found))
    if compared:
        console.print(_peers(found, compared))
        for each in compared:
            if each.why_not:
                console.print(f"no figures of {each.peer.name}: {each.why_not}", markup=False)
        console.print(_ratios(found, compared))


def _loads(found: Found, settings: Settings) -> Table:
    title = f"closed load by wrk, {settings.seconds} s each"
    table = _table(
        title, "server", "request", "connections", "requests/s", "CPU µs", "p50 µs", "p99 µs",
        "PSS MB", "batch",
    )  # fmt: skip
    for kind, figures in found.sketch.items():
        table.add_row("bare protocol, tiny", kind, str(USUAL), *_cells(figures), "")
    for load, figures in found.agent.items():
        name, kind, connections = load
        batch = found.batch_items.get(load)
        table.add_row(
            f"agent, {name}", kind, str(connections), *_cells(figures),
            "" if batch is None else f"{batch:.1f}",
        )  # fmt: skip
    return table


def _headline(found: Found) -> Table:
    table = _table(
        "headline: tiny network, binary, 8 connections; overload by network",
        "figure",
        "found",
        "to reach",
    )
    for key, value in found.headline().items():
        relation, bound = TO_REACH.get(key, ("", 0.0))
        mark = {True: "✓", False: "✗", None: ""}[reached(key, value)]
        table.add_row(key, f"{value:,}", f"{relation} {bound:,g} {mark}" if relation else "")
    return table


def _peers(found: Found, compared: list[PeerFound]) -> Table:
    table = _table(
        "peers, the same network and load", "server", "request", "requests/s", "CPU µs", "p50 µs",
        "p99 µs", "PSS MB", "processes", "CPU ×", "memory ×",
    )  # fmt: skip
    rows: dict[Kind, Figures] = {kind: found.agent[TINY.name, kind, USUAL] for kind in found.sketch}
    for kind, own in rows.items():
        table.add_row("agent", kind, *_cells(own), "1", "1", "1")
    for each in compared:
        if each.why_not:
            table.add_row(each.peer.name, "none", *["–"] * 8)
        for kind, figures in each.figures.items():
            own = rows[kind]
            table.add_row(
                each.peer.name, kind, *_cells(figures), str(each.processes),
                f"{figures.cpu_us_per_request / own.cpu_us_per_request:.1f}",
                f"{figures.pss_mb / own.pss_mb:.1f}",
            )  # fmt: skip
    return table


def _ratios(found: Found, compared: list[PeerFound]) -> Table:
    table = _table("the nearest peer over the agent", "ratio", "found", "to reach")
    for name, value in ratios(found, compared).items():
        least = RATIOS.get(name)
        mark = "" if least is None else f"≥ {least:g} {'✓' if value >= least else '✗'}"
        table.add_row(name, f"{value:g}", mark)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="left" if name in columns[:2] else "right")
    return table


def _cells(figures: Figures) -> tuple[str, str, str, str, str]:
    return (
        f"{figures.rps:,.0f}",
        f"{figures.cpu_us_per_request:,.1f}",
        f"{figures.p50_us:,.0f}",
        f"{figures.p99_us:,.0f}",
        f"{figures.pss_mb:.1f}",
    )


def as_json(found: Found, compared: list[PeerFound], load_per_core: float) -> dict[str, JsonValue]:
    """The headline's keys, then the details.  Times in the units that the keys name."""
    usual = found.agent[TINY.name, "binary", USUAL]
    floor = found.sketch["binary"]
    said: dict[str, JsonValue] = {**found.headline()}
    said["cpu_over_bare_protocol"] = round(usual.cpu_us_per_request / floor.cpu_us_per_request, 2)
    said["import_seconds"] = round(min(each.import_seconds for each in found.starts), 3)
    said["machine"] = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_per_core_before": round(load_per_core, 2),
    }
    said["costs"] = {name: _rounded(cost) for name, cost in found.costs.items()}
    said["floor"] = {
        "session_run_us": _rounded(found.session_run_us),
        "bare_protocol": {kind: _rounded(asdict(each)) for kind, each in found.sketch.items()},
    }
    said["agent"] = {
        f"{name}_{kind}_{connections}": _rounded(
            asdict(figures) | {"batch_items": found.batch_items.get((name, kind, connections), 0.0)}
        )
        for (name, kind, connections), figures in found.agent.items()
    }
    said["swap"] = {name: _rounded(asdict(each)) for name, each in found.swaps.items()}
    said["overload"] = {
        name: _rounded(asdict(each) | asdict(each.result) | {"result": None})
        for name, each in found.overloads.items()
    }
    if compared:
        said["ratios"] = dict(ratios(found, compared).items())
        said["peers"] = {each.peer.name: _peer_json(each) for each in compared}
    return said


def _peer_json(found: PeerFound) -> JsonValue:
    if found.why_not:
        return {"why_not": found.why_not}
    figures: dict[str, JsonValue] = {
        kind: _rounded(asdict(each)) for kind, each in found.figures.items()
    }
    versions: dict[str, JsonValue] = dict(found.peer.versions().items())
    return {**figures, "processes": found.processes, "versions": versions}


def _rounded(values: dict[str, float] | dict[str, object]) -> JsonValue:
    rounded: dict[str, JsonValue] = {}
    for key, value in values.items():
        if isinstance(value, float):
            rounded[key] = round(value, 3)
        elif isinstance(value, (int, str)):
            rounded[key] = value
    return rounded
