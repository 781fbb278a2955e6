"""Groups: named sets of devices, by members or by a query."""

from __future__ import annotations

from urllib.parse import quote

from nicegui import ui
from pydantic import ValidationError

from edge_agent.wire.base import describe
from fleet.client.client import ApiError
from fleet.client.registry_schemas import DeviceGroupIn, DeviceGroupOut
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.query_box import QueryBox
from fleet.console.tables import Column, Row, Rows
from fleet.console.view import View, confirm
from fleet.console.widgets import button, card, empty, page_head


async def page(view: View) -> None:
    lead = view.t("Named sets of devices: members by name, or whoever matches a query now.")
    with page_head(view, view.t("Groups"), lead):
        pass
    live: Live[list[DeviceGroupOut]] = Live(view, view.api.groups)
    _form(view, live)
    with card(view.t("Groups"), body=False):

        async def act(_act: str, name: str) -> None:
            title = view.t("Delete group {name}?", name=name)
            body = view.t("Its devices stay. A group that something asks for is not deleted.")
            if await confirm(view, title, body, view.t("Delete"), danger=True) is not None:
                await view.act(view.api.delete_group(name), view.t("Deleted"))
                await live.refresh()

        table = Rows(
            [
                Column("group", view.t("Group")),
                Column("devices", view.t("Devices"), "sk-right"),
                Column("query", view.t("Query")),
                Column("description", view.t("Description")),
                Column("changed", view.t("Last change"), "sk-nowrap"),
                Column("do", "", "sk-nowrap"),
            ],
            testid="group-row",
        ).on_act(act)
        none = ui.element("div")

        def show(groups: list[DeviceGroupOut]) -> None:
            table.show([_row(view, group) for group in groups])
            table.set_visibility(bool(groups))
            none.clear()
            if not groups:
                with none:
                    empty(
                        "workspaces",
                        view.t("No groups yet"),
                        view.t("Name one above; queries and rollouts can then ask for it."),
                    )

        live.part(show, keep=True)
    await live.start()


def _form(view: View, live: Live[list[DeviceGroupOut]]) -> None:
    with card(view.t("New group")):
        with ui.element("div").classes("sk-form"):
            name = ui.input(view.t("Name"), placeholder="lab")
            name.props("outlined dense data-testid=group-name").classes("sk-field")
            description = ui.input(view.t("Description"))
            description.props("outlined dense").classes("sk-field")
            members = ui.input(view.t("Members, instead of a query"), placeholder="edge-1, edge-2")
            members.props("outlined dense data-testid=group-members").classes("sk-field")
        query = QueryBox(view, testid="group-query")

        async def create() -> None:
            text = query.value
            if text is None:
                return  # the box says why
            try:
                request = DeviceGroupIn(
                    name=(name.value or "").strip(),
                    query=text,
                    description=(description.value or "").strip(),
                    devices=(members.value or "").replace(",", " ").split(),
                )
                made = await view.api.create_group(request)
            except ValidationError as error:
                view.note(describe(error), "negative")
            except ApiError as error:
                view.note(error.message, "negative")
            else:
                devices = view.many(made.devices, "1 device", "{n} devices")
                view.note(f"{made.name}: {devices}")
                for field in (name, description, members):
                    field.set_value("")
                query.clear()
                await live.refresh()

        with ui.element("div").classes("sk-flow"):
            button(view.t("Create"), icon="add", main=True, testid="group-create").on(
                "click", create
            )


def _row(view: View, group: DeviceGroupOut) -> Row:
    asked = quote(f'group("{group.name}")')
    return Row(
        id=group.name,
        cells={
            "group": [tables.link(group.name, f"/?query={asked}")],
            "devices": [tables.text(formats.count(group.devices), "sk-num")],
            "query": [tables.mono(group.query)] if group.query else [],
            "description": [tables.text(group.description)],
            "changed": [tables.ago(group.updated_at)],
            "do": [tables.press("delete", view.t("Delete"), bad=True, testid="group-delete")],
        },
    )
