"""One rollout: its waves, the evidence of each gate, each device's part, and the brakes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from nicegui import ui

from fleet.client.calls import RolloutAction
from fleet.client.rollout_schemas import ExplainOut
from fleet.client.schemas import Json, RolloutDetail
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Row, Rows
from fleet.console.tones import tone_of
from fleet.console.view import Tag, View, confirm
from fleet.console.waves import totals
from fleet.console.widgets import (
    Tile,
    button,
    card,
    chip,
    empty,
    facts,
    moment,
    more,
    page_head,
    tiles,
)

_SHOWN_ASSIGNMENTS: Final = 200
_SHOWN_HELD_UP: Final = 5
_EXPLAIN_EVERY_S: Final = 10.0
"""An explanation costs the control plane more than the state."""


@dataclass(frozen=True)
class _Command:
    """A button: when it is there, and what it asks first."""

    action: RolloutAction
    label: str
    icon: str
    states: frozenset[str]
    question: str = ""
    body: str = ""
    danger: bool = False
    main: bool = False


def _in(words: str) -> frozenset[str]:
    return frozenset(words.split())


_COMMANDS: Final = (
    _Command(
        "rollback",
        "Roll back",
        "undo",
        _in("running paused window_wait halted completed"),
        "Roll back?",
        "Every device that got this version goes back to the release it had, under a new counter.",
        danger=True,
    ),
    _Command(
        "cancel",
        "Cancel",
        "close",
        _in("draft pending_approval scheduled running paused window_wait"),
        "Cancel the rollout?",
        "Devices that have not started are withdrawn; those that have finished keep the version.",
        danger=True,
    ),
    _Command(
        "halt",
        "Halt",
        "front_hand",
        _in("running paused window_wait"),
        "Halt the rollout?",
        "No further device is offered the version. A halted rollout can only be rolled back.",
        danger=True,
    ),
    _Command("pause", "Pause", "pause", _in("running window_wait")),
    _Command("resume", "Resume", "play_arrow", _in("paused"), main=True),
    _Command("approve", "Approve", "check", _in("pending_approval"), main=True),
)


async def page(view: View, rollout_id: str) -> None:
    crumbs = ((view.t("Rollouts"), "/rollouts"),)
    with page_head(view, view.t("Rollout {id}", id=formats.short(rollout_id)), crumbs=crumbs):
        actions = ui.element("div").classes("sk-flow")
    live: Live[RolloutDetail] = Live(view, lambda: view.api.rollout(rollout_id))

    def commands(rollout: RolloutDetail) -> None:
        actions.clear()
        with actions:
            _commands(view, rollout, live.refresh)

    live.part(commands, of=lambda rollout: (rollout.state, rollout.verbs), keep=True)
    live.part(
        lambda rollout: _summary(view, rollout),
        of=lambda rollout: (rollout.state, rollout.reason, rollout.waves),
    )
    live.part(lambda rollout: _waves(view, rollout), of=lambda rollout: rollout.waves)
    why: Live[ExplainOut] = Live(
        view, lambda: view.api.explain_rollout(rollout_id), interval_s=_EXPLAIN_EVERY_S
    )
    why.part(lambda found: _why(view, found))
    with ui.element("div").classes("sk-cols"):
        live.part(lambda rollout: _gates(view, rollout), of=lambda rollout: rollout.gates)
        live.part(lambda rollout: _plan(view, rollout), of=lambda rollout: rollout.plan)
    with card(view.t("Devices"), body=False):
        table = Rows(
            [
                Column("device", view.t("Device")),
                Column("wave", view.t("Wave")),
                Column("phase", view.t("Phase")),
                Column("detail", view.t("Detail")),
                Column("generation", view.t("Generation"), "sk-right"),
                Column("updated", view.t("Last change"), "sk-nowrap"),
            ],
            testid="assignment-row",
        )
        rest = ui.element("div")

        def assignments(rollout: RolloutDetail) -> None:
            table.show(_assignment_rows(view, rollout.assignments))
            table.set_visibility(bool(rollout.assignments))
            rest.clear()
            with rest:
                _rest(view, totals(rollout.waves).devices if rollout.assignments else 0)

        live.part(assignments, of=lambda rollout: rollout.assignments, keep=True)
    await live.start()
    await why.start()


def _why(view: View, found: ExplainOut) -> None:
    with card(view.t("Why it is where it is")):
        Tag("div", found.headline, "sk-wrap").props("data-testid=rollout-why")
        if found.waits_for:
            Tag("div", view.t("Waits for {what}", what=found.waits_for), "sk-dim sk-wrap")
        for line in found.lines:
            Tag("div", line, "sk-dim sk-wrap")
        for held in found.held_up[:_SHOWN_HELD_UP]:
            Tag("div", f"{held.device}: {held.phase}, {held.reason}", "sk-faint sk-wrap")


def _commands(view: View, rollout: RolloutDetail, refresh: Callable[[], Awaitable[None]]) -> None:
    async def run(command: _Command) -> None:
        if command.question:
            agreed = await confirm(
                view,
                view.t(command.question),
                view.t(command.body),
                view.t(command.label),
                danger=command.danger,
            )
            if agreed is None:
                return
        work = view.api.steer_rollout(rollout.id, command.action)
        await view.act(work, view.t("Accepted: {action}", action=view.t(command.label)))
        await refresh()

    chip(view, rollout.state, testid="rollout-state")
    for command in _COMMANDS:
        if rollout.state.lower() in command.states:
            made = button(
                view.t(command.label),
                icon=command.icon,
                main=command.main,
                danger=command.danger,
                testid=f"rollout-{command.action}",
            )
            refusal = rollout.verbs.get(command.action, "")
            if refusal:
                made.disable()
                made.tooltip(refusal)
                if command.main:
                    Tag("span", refusal, "sk-dim").props(
                        f"data-testid=rollout-{command.action}-refused"
                    )
            made.on_click(lambda command=command: run(command))


def _summary(view: View, rollout: RolloutDetail) -> None:
    with ui.element("div").classes("sk-line"):
        ui.link(f"{rollout.model} v{rollout.version}", f"/models/{rollout.model}/{rollout.version}")
        Tag("span", view.t("by {name}", name=rollout.created_by), "sk-dim")
        moment(rollout.created_at, css="sk-faint")
    if rollout.reason:
        tone = tone_of(rollout.state)
        css = {"bad": "", "ok": " sk-banner--ok"}.get(tone, " sk-banner--warn")
        with ui.element("div").classes("sk-banner" + css).props("data-testid=rollout-reason"):
            ui.icon("info")
            Tag("span", rollout.reason, "sk-wrap")
    sums = totals(rollout.waves)
    tiles(
        [
            Tile(view.t("Devices"), formats.count(sums.devices)),
            Tile(view.t("Healthy"), formats.count(sums.healthy), testid="rollout-healthy"),
            Tile(view.t("Failed"), formats.count(sums.failed), bad=sums.failed > 0),
            Tile(view.t("Under way"), formats.count(sums.under_way)),
        ]
    )


def _waves(view: View, rollout: RolloutDetail) -> None:
    with ui.element("div").classes("sk-waves"):
        for wave in rollout.waves:
            _wave(view, wave)


def _wave(view: View, wave: Json) -> None:
    state = str(wave.get("state", ""))
    sums = totals([wave])
    with ui.element("article").classes(f"sk-wave sk-wave--{tone_of(state)}") as box:
        box.props["data-testid"] = "wave"
        with ui.element("div").classes("sk-line"):
            Tag("strong", view.t("Wave {n}", n=int(formats.pick(wave, "index") or 0) + 1))
            if wave.get("what"):
                Tag("span", str(wave["what"]), "sk-dim")
            chip(view, state, testid="wave-state")
        with ui.element("div").classes("sk-meter"):
            for tone, share in sums.shares:
                ui.element("i").classes(tone or "").style(f"width: {100 * share:.1f}%")
        with ui.element("div").classes("sk-legend"):
            Tag("span", view.many(sums.devices, "1 device", "{n} devices"))
            Tag("span", view.t("{n} healthy", n=formats.count(sums.healthy)))
            if sums.failed:
                Tag("span", view.t("{n} failed", n=formats.count(sums.failed)), "sk-sub--bad")
        if wave.get("reason"):
            Tag("div", str(wave["reason"]), "sk-dim sk-wrap")


def _gates(view: View, rollout: RolloutDetail) -> None:
    with card(view.t("Gates"), view.t("what each wave was held to, with the figures")):
        if not rollout.gates:
            empty(
                "rule",
                view.t("No verdict yet"),
                view.t("A wave is judged when its devices have settled and soaked."),
            )
        for gate in rollout.gates:
            with ui.element("div").classes("sk-case").props("data-testid=rollout-gate"):
                with ui.element("div").classes("sk-line"):
                    chip(view, gate.verdict, testid="gate-verdict")
                    Tag("strong", gate.gate.replace("_", " "))
                    moment(gate.at, css="sk-faint")
                Tag("div", gate.reason, "sk-dim sk-wrap")
                if gate.evidence:
                    more(view.t("Evidence"), gate.evidence)


def _plan(view: View, rollout: RolloutDetail) -> None:
    with card(view.t("Plan")):
        shown = [
            formats.named(name, value)
            for name, value in rollout.plan.items()
            if value not in (None, "", [], {})
            and not isinstance(value, list)
            and name not in ("model", "version", "releases")
        ]
        facts(shown)
        more(view.t("Whole plan as JSON"), rollout.plan)


def _rest(view: View, number: int) -> None:
    if not number:
        empty(
            "devices",
            view.t("No device yet"),
            view.t("Devices are listed once their wave is offered."),
        )
    elif number > _SHOWN_ASSIGNMENTS:
        with ui.element("div").classes("sk-pager"):
            ui.label(
                view.t(
                    "the {shown} that need a look first, of {total}",
                    shown=_SHOWN_ASSIGNMENTS,
                    total=formats.count(number),
                )
            )


_FIRST: Final = {"bad": 0, "warn": 1, "info": 2, "mute": 3, "ok": 4}


def _assignment_rows(view: View, assignments: list[Json]) -> list[Row]:
    """Those that need a look first; at most as many as a browser likes."""
    ranked = sorted(
        assignments,
        key=lambda row: (
            _FIRST[tone_of(str(row.get("phase", "")))],
            int(formats.pick(row, "wave") or 0),
            str(row.get("device", "")),
        ),
    )
    return [_assignment_row(view, row) for row in ranked[:_SHOWN_ASSIGNMENTS]]


def _assignment_row(view: View, row: Json) -> Row:
    device, phase = str(row.get("device", "")), str(row.get("phase", ""))
    bad = tone_of(phase) == "bad"
    reason, detail = str(row.get("reason") or ""), str(row.get("detail") or "")
    return Row(
        id=device,
        cells={
            "device": [tables.main(device, f"/devices/{device}")],
            "wave": [tables.text(str(int(formats.pick(row, "wave") or 0) + 1), "sk-num")],
            "phase": [tables.chip(view, phase, testid="assignment-phase")],
            "detail": [
                *([tables.text(reason)] if reason else []),
                *([tables.sub(detail, bad=bad)] if detail else []),
            ],
            "generation": [tables.text(str(row.get("generation", "")))],
            "updated": [tables.ago(formats.pick(row, "updated_at") or 0.0)],
        },
        link=True,
        bad=bad,
        data={"phase": phase.lower()},
    )
