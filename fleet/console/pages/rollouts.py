"""All rollouts, newest first."""

from __future__ import annotations

from nicegui import ui

from fleet.client.rollout_schemas import RolloutPage
from fleet.client.schemas import RolloutOut
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Piece, Row, Rows
from fleet.console.view import View
from fleet.console.waves import totals
from fleet.console.widgets import button, card, empty, page_head


async def page(view: View) -> None:
    lead = view.t("Versions on their way to devices, wave by wave.")
    with page_head(view, view.t("Rollouts"), lead):
        start = button(view.t("Start a rollout"), icon="add", main=True, testid="rollout-new")
        start.on_click(lambda: view.go("/rollouts/new"))
    live: Live[RolloutPage] = Live(view, view.api.rollouts)
    with card(body=False):
        table = Rows(
            [
                Column("what", view.t("Version")),
                Column("state", view.t("State")),
                Column("wave", view.t("Wave"), "sk-nowrap"),
                Column("devices", view.t("Devices")),
                Column("by", view.t("Started by")),
                Column("created", view.t("Created"), "sk-nowrap"),
                Column("updated", view.t("Last change"), "sk-nowrap"),
            ],
            testid="rollout-row",
        )
        none = ui.element("div")

        def show(page: RolloutPage) -> None:
            rollouts = page.items
            table.show([_row(view, rollout) for rollout in rollouts])
            table.set_visibility(bool(rollouts))
            none.clear()
            if not rollouts:
                with none:
                    empty(
                        "rocket_launch",
                        view.t("No rollouts yet"),
                        view.t("Publish a version under Models, then start its rollout here."),
                    )

        live.part(show, keep=True)
    await live.start()


def _row(view: View, rollout: RolloutOut) -> Row:
    state: list[Piece] = [tables.chip(view, rollout.state, testid="rollout-state")]
    if rollout.reason:
        state.append(tables.sub(rollout.reason))
    sums = totals(rollout.waves)
    reached = sum(str(wave.get("state", "")).upper() != "PENDING" for wave in rollout.waves)
    return Row(
        id=rollout.id,
        cells={
            "what": [
                tables.main(f"{rollout.model} v{rollout.version}", f"/rollouts/{rollout.id}"),
                tables.sub(formats.short(rollout.id)),
            ],
            "state": state,
            "wave": [tables.text(f"{reached} / {len(rollout.waves)}", "sk-num")],
            "devices": [
                tables.meter(sums.shares, view.t("healthy, failed and under way")),
                tables.sub(f"{formats.count(sums.healthy)} / {formats.count(sums.devices)}"),
            ],
            "by": [tables.text(rollout.created_by)],
            "created": [tables.ago(rollout.created_at)],
            "updated": [tables.ago(rollout.updated_at)],
        },
        link=True,
        data={"state": rollout.state.lower()},
    )
