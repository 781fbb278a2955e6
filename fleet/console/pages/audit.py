"""The audit: who did what, each entry chained to the one before by its hash."""

from __future__ import annotations

from dataclasses import dataclass

from nicegui import ui

from fleet.client.calls import PAGE_ROWS
from fleet.client.schemas import AuditOut
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.tables import Column, Row, Rows
from fleet.console.view import View
from fleet.console.widgets import card, empty, page_head


@dataclass
class _Place:
    offset: int = 0


async def page(view: View) -> None:
    lead = view.t("Who did what and when. Entries are only ever added, and each seals the last.")
    with page_head(view, view.t("Audit"), lead):
        pass
    place = _Place()
    live: Live[list[AuditOut]] = Live(
        view, lambda: view.api.audit(offset=place.offset, limit=PAGE_ROWS), interval_s=4.0
    )

    async def turn(step: int) -> None:
        place.offset = max(0, place.offset + step * PAGE_ROWS)
        await live.refresh()

    with card(body=False):
        table = Rows(
            [
                Column("at", view.t("When"), "sk-nowrap"),
                Column("actor", view.t("Who")),
                Column("action", view.t("Action")),
                Column("subject", view.t("Subject")),
                Column("detail", view.t("Detail")),
                Column("seal", view.t("Seal")),
            ],
            testid="audit-row",
        )
        none = ui.element("div")
        with ui.element("div").classes("sk-pager"):
            newer = ui.button(view.t("Newer"), icon="chevron_left", on_click=lambda: turn(-1))
            older = ui.button(view.t("Older"), on_click=lambda: turn(1))
            newer.props("flat dense no-caps color=secondary data-testid=audit-newer")
            older.props("flat dense no-caps color=secondary icon-right=chevron_right")
            older.props("data-testid=audit-older")

        def show(entries: list[AuditOut]) -> None:
            table.show([_row(entry) for entry in entries])
            table.set_visibility(bool(entries))
            newer.set_enabled(place.offset > 0)
            older.set_enabled(len(entries) == PAGE_ROWS)
            none.clear()
            if not entries:
                with none:
                    empty(
                        "receipt_long",
                        view.t("No entries here"),
                        view.t("Every command and every enrolment adds one."),
                    )

        live.part(show, of=lambda entries: (place.offset, entries), keep=True)
    await live.start()


def _row(entry: AuditOut) -> Row:
    return Row(
        id=str(entry.id),
        cells={
            "at": [tables.clock(entry.at)],
            "actor": [tables.text(entry.actor)],
            "action": [tables.mono(entry.action)],
            "subject": [tables.text(formats.short(entry.subject), title=entry.subject)],
            "detail": [tables.sub(formats.compact(entry.detail))] if entry.detail else [],
            "seal": [tables.mono(entry.sha256[:10], entry.sha256)],
        },
    )
