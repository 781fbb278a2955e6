"""A device's commands: what can be asked of it, and what became of what was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from nicegui import ui

from edge_agent.wire.commands import CommandName
from fleet.client.command_schemas import CommandIn, CommandOut, CommandPage
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Row, Rows
from fleet.console.view import View, confirm, heading
from fleet.console.widgets import button, card, empty, flow

Refresh = Callable[[], Awaitable[None]]

SHOWN: Final = 8
_AT_ONCE: Final[tuple[tuple[CommandName, str, str], ...]] = (
    ("logs", "Fetch the log", "article"),
    ("diagnostics", "Fetch diagnostics", "troubleshoot"),
    ("resend", "Ask for its state again", "sync"),
)
"""Commands that disturb nothing, each with its button and icon."""
_NAMES: Final[dict[str, str]] = {
    "logs": "Log",
    "diagnostics": "Diagnostics",
    "resend": "State again",
    "sampling": "Sampling",
    "restart": "Restart",
}


async def section(view: View, device_id: str, models: Callable[[], list[str]]) -> None:
    """The card, kept up to date while the page is open.

    Args:
        models: names of those that the device serves now.
    """
    live: Live[CommandPage] = Live(view, lambda: view.api.commands(device=device_id, limit=SHOWN))
    with card(view.t("Commands"), view.t("done once, when the device is online"), body=False):
        with ui.element("div").classes("sk-body"), flow():
            _buttons(view, device_id, models, live.refresh)
        live.part(lambda page: _list(view, page, live.refresh))
    await live.start()


def _buttons(view: View, device_id: str, models: Callable[[], list[str]], refresh: Refresh) -> None:
    for name, label, icon in _AT_ONCE:
        made = button(view.t(label), icon=icon, testid=f"command-{name}")
        made.on_click(lambda name=name: _ask(view, device_id, name, {}, refresh))
    made = button(view.t("Change sampling"), icon="tune", testid="command-sampling")
    made.on_click(lambda: _sampling(view, device_id, models(), refresh))
    made = button(
        view.t("Restart the agent"), icon="restart_alt", danger=True, testid="command-restart"
    )
    made.on_click(lambda: _restart(view, device_id, refresh))


async def _ask(
    view: View,
    device_id: str,
    name: CommandName,
    arguments: dict[str, object],
    refresh: Refresh,
    reason: str = "",
) -> None:
    request = CommandIn(name=name, devices=[device_id], arguments=arguments, reason=reason[:300])
    await view.act(view.api.ask_devices(request), view.t("Asked: {name}", name=_name(view, name)))
    await refresh()


async def _restart(view: View, device_id: str, refresh: Refresh) -> None:
    title = view.t("Restart the agent of {name}?", name=device_id)
    body = view.t("It answers no predictions for some seconds. Its versions and its journal stay.")
    reason = await confirm(view, title, body, view.t("Restart"), danger=True, ask_reason=True)
    if reason is not None:
        await _ask(view, device_id, "restart", {}, refresh, reason)


async def _sampling(view: View, device_id: str, models: list[str], refresh: Refresh) -> None:
    if not models:
        view.note(view.t("The device serves no model yet."), "negative")
        return
    with view.host, ui.dialog() as dialog, ui.element("div").classes("sk-dialog"):
        heading(2, view.t("Sample differently for some time"))
        ui.label(
            view.t(
                "It falls back by itself. The model's byte budget and privacy hooks hold all "
                "the same."
            )
        ).classes("sk-dim")
        model = ui.select(models, value=models[0], label=view.t("Model"))
        rate = ui.number(view.t("Share of all inputs, %"), value=100, min=0, max=100)
        minutes = ui.number(view.t("For minutes"), value=60, min=1, max=10_080)
        for field in (model, rate, minutes):
            field.props("outlined dense").classes("sk-field")
        with ui.element("div").classes("sk-actions"):
            ui.button(view.t("Cancel"), on_click=lambda: dialog.submit(False)).props(
                "flat no-caps"
            ).classes("sk-plain")
            ui.button(view.t("Start"), on_click=lambda: dialog.submit(True)).props(
                "unelevated no-caps color=primary data-testid=confirm-yes"
            )
    agreed = await dialog
    arguments: dict[str, object] = {
        "model": model.value,
        "uniform_rate": float(rate.value or 0) / 100,
        "for_s": float(minutes.value or 0) * 60,
    }
    dialog.delete()
    if agreed:
        await _ask(view, device_id, "sampling", arguments, refresh)


def _list(view: View, page: CommandPage, refresh: Refresh) -> None:
    if not page.items:
        empty(
            "terminal",
            view.t("No commands yet"),
            view.t("What is asked of the device is listed here with its answer."),
        )
        return

    async def act(_: str, command_id: str) -> None:
        await view.act(view.api.cancel_command(command_id), view.t("Taken back"))
        await refresh()

    rows = Rows(
        [
            Column("name", view.t("Command")),
            Column("state", view.t("State")),
            Column("asked", view.t("Asked")),
            Column("by", view.t("By")),
            Column("do", ""),
        ],
        testid="command-row",
    )
    rows.show([_row(view, command) for command in page.items])
    rows.on_act(act)


def _row(view: View, command: CommandOut) -> Row:
    state = [tables.chip(view, command.state, testid="command-state")]
    why = command.detail or command.reason
    if why:
        state.append(tables.sub(why, bad=command.state in ("failed", "timed_out")))
    what = []
    if command.attachment:
        size = formats.size(float(command.attachment.get("length", 0)))
        what.append(
            tables.link(
                f"{view.t('Download')} · {size}",
                f"/downloads/commands/{command.id}",
                download=True,
                testid="command-download",
            )
        )
    elif command.state in ("queued", "sent"):
        what.append(tables.press("cancel", view.t("Take back"), testid="command-cancel"))
    return Row(
        id=command.id,
        cells={
            "name": [tables.text(_name(view, command.name))],
            "state": state,
            "asked": [tables.ago(command.created_at)],
            "by": [tables.text(command.created_by)],
            "do": what,
        },
        bad=command.state == "failed",
    )


def _name(view: View, name: str) -> str:
    return view.t(_NAMES.get(name, name))
