"""One device: its twin, its figures, what happened to it, and what it is made of."""

from __future__ import annotations

from typing import Final

from nicegui import ui

from fleet.client.schemas import DeviceDetail, Json
from fleet.console import charts, formats, tables
from fleet.console.live import Live
from fleet.console.pages import device_commands
from fleet.console.tables import Column, Row, Rows
from fleet.console.tones import tone_of
from fleet.console.view import Tag, View, confirm
from fleet.console.widgets import (
    button,
    card,
    chip,
    empty,
    facts,
    flow,
    moment,
    more,
    page_head,
    step,
    steps,
    tag,
)

_IDENTITY_ALARMS: Final = {
    "device.identity_cloned": "device-cloned",
    "device.profile_differs": "device-profile-differs",
    "device.renewal_contested": "device-renewal-contested",
}
"""Alarms over who a device is, and the names of their chips."""


async def page(view: View, device_id: str) -> None:
    served: list[str] = []

    async def load() -> DeviceDetail:
        device = await view.api.device(device_id)
        served[:] = sorted(device.models)
        return device

    live: Live[DeviceDetail] = Live(view, load)
    with page_head(view, device_id, crumbs=((view.t("Fleet"), "/"),)):
        _revoke_button(view, device_id, live)
    live.part(
        lambda device: _head(view, device),
        of=lambda device: (
            device.online,
            device.revoked,
            device.revoked_reason,
            device.labels,
            device.last_seen,
            device.alarms,
        ),
    )
    live.part(
        lambda device: _twin(view, device),
        of=lambda device: (device.desired, device.reported, device.models),
    )
    with ui.element("div").classes("sk-cols sk-cols--wide"):
        live.part(lambda device: _metrics(view, device.metrics), of=lambda device: device.metrics)
        live.part(lambda device: _history(view, device), of=lambda device: device.history)
    live.part(
        lambda device: _inventory(view, device),
        of=lambda device: (device.inventory, device.profile_gaps, device.certificate_expires_at),
    )
    await live.start()
    if not live.missing:
        await device_commands.section(view, device_id, lambda: served)


def _revoke_button(view: View, device_id: str, live: Live[DeviceDetail]) -> None:
    async def revoke() -> None:
        reason = await confirm(
            view,
            view.t("Revoke the device?"),
            view.t("Its connection ends within seconds. It comes back by a claim made for it."),
            view.t("Revoke"),
            danger=True,
            ask_reason=True,
        )
        if reason is not None:
            await view.act(view.api.revoke_device(device_id, reason), view.t("Revoked"))
            await live.refresh()

    button(view.t("Revoke"), icon="block", danger=True, testid="device-revoke").on_click(revoke)


def _head(view: View, device: DeviceDetail) -> None:
    state = "revoked" if device.revoked else "online" if device.online else "offline"
    with flow():
        chip(view, state, testid="device-state")
        if device.revoked and device.revoked_reason:
            Tag("span", device.revoked_reason, "sk-dim").props("data-testid=device-revoked-reason")
        raised = {str(alarm.get("action")) for alarm in device.alarms}
        for action, testid in _IDENTITY_ALARMS.items():
            if action in raised:
                chip(view, action.removeprefix("device."), testid=testid)
        tag(device.profile)
        for key, value in sorted(device.labels.items()):
            tag(f"{key}={value}")
        with ui.element("span").classes("sk-faint"):
            Tag("span", view.t("Last seen"))
            ui.html("&nbsp;", sanitize=False, tag="span")
            moment(device.last_seen)


def _twin(view: View, device: DeviceDetail) -> None:
    desired: dict[str, Json] = device.desired.get("models") or {}
    reported: dict[str, Json] = device.models or device.reported.get("models") or {}
    note = view.t("what the control plane wants, and what the device says it serves")
    with card(view.t("Twin"), note, body=False):
        names = sorted(desired.keys() | reported.keys())
        if not names:
            empty(
                "sync",
                view.t("Nothing assigned yet"),
                view.t("The champion of its profile is assigned once there is one."),
            )
            return
        Rows(
            [
                Column("model", view.t("Model")),
                Column("desired", view.t("Desired")),
                Column("reported", view.t("Reported")),
                Column("state", view.t("State")),
                Column("variant", view.t("Variant")),
                Column("sha", view.t("Digest")),
            ],
            testid="twin-row",
        ).show([_twin_row(view, name, desired.get(name), reported.get(name)) for name in names])
        with ui.element("div").classes("sk-body"):
            more(view.t("Desired and reported as JSON"), {
                "desired": device.desired, "reported": device.reported,
            })  # fmt: skip


def _twin_row(view: View, name: str, desired: Json | None, reported: Json | None) -> Row:
    wanted = desired or {}
    has = reported or {}
    in_step = bool(desired) and wanted.get("counter") == has.get("counter")
    twin = "in_step" if in_step else "catching_up" if desired else "unknown"
    target = str(wanted.get("target", ""))
    detail = str(has.get("detail", ""))
    state = [tables.chip(view, twin, testid="twin-state")]
    if has.get("phase") and has["phase"] != "healthy":
        state.append(tables.chip(view, str(has["phase"])))
    if detail:
        state.append(tables.sub(detail))
    return Row(
        id=name,
        cells={
            "model": [tables.text(name)],
            "desired": [
                tables.text(f"v{wanted.get('version', '?')}"),
                tables.sub(f"{target} · {view.t('generation')} {wanted.get('generation', '?')}"),
            ]
            if desired
            else [tables.text(formats.NONE)],
            "reported": [
                tables.text(f"v{has.get('version', '?')}"),
                tables.sub(f"{view.t('counter')} {has.get('counter', '?')}"),
            ]
            if reported
            else [tables.text(formats.NONE)],
            "state": state,
            "variant": [tables.text(str(has.get("variant", "")) or formats.NONE)],
            "sha": [
                tables.mono(formats.short(str(has.get("sha256", ""))), str(has.get("sha256", "")))
            ],
        },
    )


def _metrics(view: View, metrics: list[Json]) -> None:
    with card(view.t("Latency"), view.t("as the device's clients see it, p50 and p99")):
        options = charts.latency(metrics, view.t)
        if options is None:
            empty(
                "show_chart",
                view.t("No figures yet"),
                view.t("They come with the first minute of traffic on the device."),
            )
        else:
            ui.echart(options, renderer="svg").classes("sk-chart sk-chart--low")
    traffic = charts.traffic(metrics, view.t)
    if traffic is not None:
        with card(view.t("Requests")):
            ui.echart(traffic, renderer="svg").classes("sk-chart sk-chart--low")


def _history(view: View, device: DeviceDetail) -> None:
    with card(view.t("History"), view.t("updates, newest first")):
        if not device.history:
            empty(
                "history",
                view.t("No updates yet"),
                view.t("Each step of an update is listed here as the device reports it."),
            )
            return
        with steps():
            for event in device.history[:20]:
                _event(view, event)
        if len(device.history) > 20:
            more(view.t("All {n} steps", n=len(device.history)), device.history)


def _event(view: View, event: Json) -> None:
    phase = str(event.get("phase", ""))
    with step(tone_of(phase)):
        with ui.element("div").classes("sk-line"):
            chip(view, phase, testid="history-phase")
            Tag("span", f"{event.get('model', '')} v{event.get('version', '?')}")
            moment(float(event.get("at", 0)), css="sk-faint")
        reason = " · ".join(str(event[key]) for key in ("reason", "detail") if event.get(key))
        if reason:
            Tag("div", reason, "sk-dim sk-wrap")


def _inventory(view: View, device: DeviceDetail) -> None:
    found = device.inventory
    runtimes: dict[str, str] = found.get("runtimes") or {}
    memory = formats.pick(found, "memory_mib")
    disk = formats.pick(found, "disk_free_mib")
    mebibyte = 1024 * 1024
    flags = " ".join(found.get("cpu_flags") or ())
    with card(view.t("Inventory"), view.t("found by the device itself")):
        if not found:
            empty("memory", view.t("No inventory yet"), view.t("It comes with enrolment."))
        else:
            facts(
                [
                    (view.t("Machine"), f"{found.get('machine', '')} · {found.get('system', '')}"),
                    (view.t("Board"), str(found.get("board") or "")),
                    (view.t("Accelerators"), ", ".join(found.get("accelerators") or ())),
                    (view.t("Cores"), str(found.get("cores", ""))),
                    (view.t("Memory"), formats.size(memory * mebibyte) if memory else ""),
                    (view.t("Free disk"), formats.size(disk * mebibyte) if disk else ""),
                    (view.t("CPU flags"), flags),
                    (
                        view.t("Runtimes"),
                        ", ".join(f"{name} {version}" for name, version in runtimes.items()),
                    ),
                    (view.t("Python"), str(found.get("python", ""))),
                    (view.t("Agent"), device.agent_version),
                    (view.t("Lacks for its profile"), ", ".join(device.profile_gaps)),
                ],
                mono=(view.t("CPU flags"),),
            )
        with ui.element("div").classes("sk-line sk-faint"):
            Tag("span", view.t("Enrolled"))
            moment(device.enrolled_at, "clock")
            Tag("span", "·")
            Tag("span", view.t("Certificate valid until"))
            moment(device.certificate_expires_at, "clock")
