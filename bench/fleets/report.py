"""What a run found, as tables for people and as one JSON object for programs."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from typing import Final

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from bench.fleets.run import Found

TO_REACH: Final[dict[str, tuple[str, float]]] = {
    "ingest_share_of_bare": ("≥", 0.5),
    "cost_exponent": ("≤", 1.1),
    "api_p95_ms_at_10k": ("≤", 50),
    "control_plane_mib_per_1000_devices": ("≤", 10),
}
"""What the headline is held to."""


def reached(key: str, value: float) -> bool | None:
    """Whether a figure is what it should be; None where nothing is asked."""
    if key not in TO_REACH:
        return None
    relation, bound = TO_REACH[key]
    return value >= bound if relation == "≥" else value <= bound


def as_json(found: Found, load: float) -> dict[str, JsonValue]:
    """The headline first, then everything it was made of."""
    details: dict[str, JsonValue] = {
        "connected": None if found.connected is None else asdict(found.connected),
        "ingest": None if found.ingested is None else asdict(found.ingested),
        "api": None if found.asked is None else asdict(found.asked),
        "rollouts": [asdict(each) for each in found.rollouts],
        "gateway": None if found.held is None else asdict(found.held),
        "machine": {
            "cores": os.cpu_count(), "load_per_core": round(load, 2),
            "python": platform.python_version(), "machine": platform.machine(),
        },
    }  # fmt: skip
    return {**found.headline(), **details}


def print_tables(found: Found) -> None:
    console = Console(width=max(110, Console().width))
    if found.rollouts:
        table = _table("rollouts", "devices", "ended as", "seconds", "CPU s", "CPU ms a device")
        for each in found.rollouts:
            table.add_row(
                f"{each.devices:,}", each.state, f"{each.seconds:.1f}", f"{each.cpu_s:.1f}",
                f"{1000 * each.cpu_s / each.devices:.2f}",
            )  # fmt: skip
        console.print(table)
    if found.connected is not None:
        each = found.connected
        console.print(
            f"{each.devices:,} devices online {each.online_s:.1f} s after the first attempt; the "
            f"control plane takes {each.control_plane_mib:.0f} MiB, the simulator "
            f"{each.simulator_kib:.1f} KiB a device"
        )
    if found.held is not None:
        held = found.held
        console.print(
            f"{held.devices:,} devices behind {held.gateways} gateways: online after "
            f"{held.online_s:.0f} s, {held.applied:,} reports applied in {held.held_s:.0f} s; a "
            f"thousand take {held.broker_mib_per_1000:.2f} MiB of the broker and "
            f"{held.control_plane_mib_per_1000:.2f} MiB of the control plane"
        )
    table = _table("headline", "figure", "found", "to reach")
    for key, value in found.headline().items():
        relation, bound = TO_REACH.get(key, ("", 0.0))
        mark = {True: "✓", False: "✗", None: ""}[reached(key, value)]
        table.add_row(key, f"{value:,}", f"{relation} {bound:g} {mark}" if relation else "")
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    return table
