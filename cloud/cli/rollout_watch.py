"""A rollout as it goes on, in a terminal: a table that is drawn anew; elsewhere a line a change."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cloud.cli.output import as_json, console
from fleet.client.client import Client
from fleet.client.rollout_schemas import ExplainOut
from fleet.client.schemas import Json, RolloutDetail
from fleet.rollouts.explain import span

POLL_S: Final = 1.0
EXPLAIN_EVERY: Final = 5
"""Looks between two questions why; the answer costs the control plane more than the state."""

ENDED: Final = frozenset({"COMPLETED", "CANCELLED", "HALTED", "ROLLED_BACK"})
NEEDS_A_PERSON: Final = frozenset({"PAUSED", "PENDING_APPROVAL"})

_STYLES: Final = {
    "COMPLETED": "green", "PASSED": "green", "FAILED": "red", "HALTED": "red",
    "ROLLED_BACK": "red", "ROLLING_BACK": "yellow", "INCONCLUSIVE": "yellow", "PAUSED": "yellow",
    "PENDING_APPROVAL": "yellow", "WINDOW_WAIT": "yellow", "PENDING": "dim", "CANCELLED": "dim",
}  # fmt: skip
_SHOWN_HELD_UP: Final = 5


def watch(
    api: Client,
    rollout_id: str,
    *,
    json: bool,
    stop_when_needed: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> RolloutDetail:
    """Follow until the rollout ends, or, when asked to, until it needs a person."""
    stops = ENDED | (NEEDS_A_PERSON if stop_when_needed else frozenset())
    if json or not console.is_terminal:
        return _lines(api, rollout_id, stops, json, sleep)
    looks = 0
    why = api.explain_rollout(rollout_id)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            detail = api.rollout(rollout_id)
            if looks % EXPLAIN_EVERY == 0 or detail.state != why.state:
                why = api.explain_rollout(rollout_id)
            live.update(picture(detail, why, time.time()), refresh=True)
            if detail.state in stops:
                return detail
            looks += 1
            sleep(POLL_S)


def _lines(
    api: Client,
    rollout_id: str,
    stops: frozenset[str],
    json: bool,
    sleep: Callable[[float], None],
) -> RolloutDetail:
    seen = ""
    while True:
        detail = api.rollout(rollout_id)
        line = f"{detail.state}: " + ", ".join(
            f"wave {w['index'] + 1} {w['state']} ({w['healthy']}/{w['devices']} healthy, "
            f"{w['failed']} failed)"
            for w in detail.waves
        )
        if line != seen:
            if json:
                as_json(detail)
            else:
                console.print(line, markup=False)
            seen = line
        if detail.state in stops:
            return detail
        sleep(POLL_S)


def picture(detail: RolloutDetail, why: ExplainOut, now: float) -> RenderableType:
    """What a terminal shows of a rollout."""
    head = Text.assemble(
        (f"{detail.model}:{detail.version}", "bold"),
        f"  {detail.id}  ",
        (detail.state, _STYLES.get(detail.state, "cyan")),
    )
    waves = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("wave", "size", "state", "", "healthy", "failed", "phases", "left"):
        waves.add_column(name, no_wrap=name not in ("size", "phases"))
    for wave in detail.waves:
        waves.add_row(*_wave(detail, wave, now))
    said: list[RenderableType] = [head, Text(why.headline), waves]
    if why.waits_for:
        said.append(Text(f"waits for {why.waits_for}", style="dim"))
    said += [
        Text(f"  {held.device}  {held.phase} {span(held.for_s)}  {held.reason}", style="dim")
        for held in why.held_up[:_SHOWN_HELD_UP]
    ]
    rest = why.held_up_total - min(len(why.held_up), _SHOWN_HELD_UP)
    if rest > 0:
        said.append(Text(f"  and {rest} more", style="dim"))
    return Group(*said)


def _wave(detail: RolloutDetail, wave: Json, now: float) -> tuple[RenderableType, ...]:
    state = str(wave["state"])
    counted = sorted((wave.get("phases") or {}).items())
    phases = {name: n for name, n in counted if n and name != "healthy"}
    return (
        str(wave["index"] + 1),
        Text(str(wave.get("what") or "")),
        Text(state, style=_STYLES.get(state, "cyan")),
        ProgressBar(
            total=max(1, wave["devices"]),
            completed=wave["healthy"] + wave["failed"],
            width=20,
            complete_style="red" if wave["failed"] else "green",
            finished_style="red" if wave["failed"] else "green",
        ),
        f"{wave['healthy']}/{wave['devices']}",
        Text(str(wave["failed"]), style="red" if wave["failed"] else "dim"),
        Text(", ".join(f"{n} {name}" for name, n in phases.items()), style="dim"),
        _left(detail, wave, now),
    )


def _left(detail: RolloutDetail, wave: Json, now: float) -> str:
    if wave["state"] != "SOAKING" or detail.state != "RUNNING" or not wave.get("settled_at"):
        return ""
    left_s = wave["settled_at"] + wave["soak_s"] - now
    return f"soaks {span(left_s)}" if left_s > 0 else "is judged"
