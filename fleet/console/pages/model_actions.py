"""What a person can do with a version: approve, reject, publish, and start its rollout."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from nicegui import ui

from fleet.client.schemas import ModelDetail, PublishIn, VariantOut
from fleet.console import formats, frontier
from fleet.console.view import View, confirm, heading
from fleet.console.widgets import button

Refresh = Callable[[], Awaitable[None]]

_ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    "candidate": ("reject", "approve"),
    "approved": ("reject", "publish"),
    "published": ("rollout",),
    "champion": ("rollout",),
}
"""State → what it allows, the likely one last."""


def draw(view: View, model: ModelDetail, refresh: Refresh) -> None:
    """The buttons that the version's state allows."""
    for action in _ACTIONS.get(model.state, ()):
        if action == "approve":
            made = button(view.t("Approve"), icon="check", main=True, testid="approve")
            made.on_click(lambda: _approve(view, model, refresh))
        elif action == "reject":
            made = button(view.t("Reject"), danger=True, testid="reject")
            made.on_click(lambda: _reject(view, model, refresh))
        elif action == "publish":
            made = button(view.t("Publish"), icon="verified", main=True, testid="publish")
            made.on_click(lambda: _publish(view, model, refresh))
        else:
            made = button(view.t("Roll out"), icon="rocket_launch", main=True, testid="roll-out")
            path = f"/rollouts/new?model={model.model}&version={model.version}"
            made.on_click(lambda path=path: view.go(path))


async def _approve(view: View, model: ModelDetail, refresh: Refresh) -> None:
    failed = sum(gate.verdict == "fail" for gate in model.gates)
    unsure = sum(gate.verdict == "insufficient" for gate in model.gates)
    body = view.t("It can be published to devices afterwards. The audit keeps your name.")
    if failed:
        body = view.many(
            failed,
            "1 gate failed. Approve against it only with a good reason.",
            "{n} gates failed. Approve against them only with a good reason.",
        )
    elif unsure:
        body = view.many(
            unsure,
            "1 gate lacks data, so the verdict is yours.",
            "{n} gates lack data, so the verdict is yours.",
        )
    elif not model.gates:
        body = view.t("It was not judged by gates.")
    title = view.t("Approve {name}?", name=f"{model.model} v{model.version}")
    reason = await confirm(view, title, body, view.t("Approve"), danger=failed > 0, ask_reason=True)
    if reason is not None:
        work = view.api.approve(model.model, model.version, reason)
        await view.act(work, view.t("Approved"))
        await refresh()


async def _reject(view: View, model: ModelDetail, refresh: Refresh) -> None:
    title = view.t("Reject {name}?", name=f"{model.model} v{model.version}")
    body = view.t("A rejected version stays in the history and cannot be published.")
    reason = await confirm(view, title, body, view.t("Reject"), danger=True, ask_reason=True)
    if reason is not None:
        work = view.api.reject(model.model, model.version, reason)
        await view.act(work, view.t("Rejected"))
        await refresh()


async def _publish(view: View, model: ModelDetail, refresh: Refresh) -> None:
    """Ask which candidate goes to each profile; the optimiser's choice stands at first."""
    profiles = sorted({variant.profile for variant in model.variants if variant.bundle_sha})
    choices: dict[str, ui.select] = {}
    with view.host, ui.dialog() as dialog, ui.element("div").classes("sk-dialog"):
        heading(2, view.t("Publish {name}?", name=f"{model.model} v{model.version}"))
        ui.label(
            view.t("One candidate per profile is signed. Devices get it by a rollout.")
        ).classes("sk-dim")
        for profile in profiles:
            pool = [v for v in model.variants if v.profile == profile and v.bundle_sha]
            options = {variant.id: _option(variant) for variant in pool}
            chosen = next((variant.id for variant in pool if variant.selected), None)
            choice = ui.select(options, value=chosen, label=profile)
            choices[profile] = choice.props("outlined dense options-dense").classes("sk-field")
        with ui.element("div").classes("sk-actions"):
            ui.button(view.t("Cancel"), on_click=lambda: dialog.submit(False)).props(
                "flat no-caps"
            ).classes("sk-plain")
            ui.button(view.t("Publish"), on_click=lambda: dialog.submit(True)).props(
                "unelevated no-caps color=primary data-testid=confirm-yes"
            )
    agreed = await dialog
    selected = {variant.profile: variant.id for variant in model.variants if variant.selected}
    changed = {
        profile: int(choice.value)
        for profile, choice in choices.items()
        if choice.value is not None and choice.value != selected.get(profile)
    }
    dialog.delete()
    if agreed:
        work = view.api.publish(model.model, model.version, PublishIn(variants=changed))
        await view.act(work, view.t("Published"))
        await refresh()


def _option(variant: VariantOut) -> str:
    name, latency = frontier.budgeted(variant) or ("", None)
    quality = formats.figure(formats.pick(variant.accuracy, *frontier.QUALITY), 4)
    return f"{variant.name} · {variant.verdict} · {name} {formats.ms(latency)} · F1 {quality}"
