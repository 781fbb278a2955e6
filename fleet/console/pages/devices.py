"""The fleet: every device, filtered and cut into pages by the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from fleet.client.calls import PAGE_ROWS
from fleet.client.schemas import DeviceOut, DevicePage, Json, Overview
from fleet.console import formats, tables
from fleet.console.live import Live
from fleet.console.query_box import QueryBox
from fleet.console.tables import Cell, Column, Row, Rows
from fleet.console.view import View
from fleet.console.widgets import Tile, button, card, empty, page_head, tiles
from fleet.devices.query import QueryError, parse

_PRESENCE: Final[dict[str, bool | None]] = {"All": None, "Online": True, "Offline": False}
_MAX_TAGS: Final = 4


@dataclass
class _Filter:
    """What the reader looks for; changed by the inputs, read by each poll."""

    search: str = ""
    label: str = ""
    profile: str = ""
    online: bool | None = None
    query: str = ""
    offset: int = 0
    profiles: set[str] = field(default_factory=set)
    """Profiles seen so far; offered as choices."""

    @property
    def any(self) -> bool:
        return bool(self.search or self.labels or self.profile or self.query) or (
            self.online is not None
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Complete KEY=VALUE pairs; one that is still being typed does not count yet."""
        pairs = (part.strip() for part in self.label.replace(";", ",").split(","))
        return tuple(pair for pair in pairs if "=" in pair.strip("="))


@dataclass(frozen=True)
class _Data:
    overview: Overview
    page: DevicePage


async def page(view: View, query: str = "") -> None:
    """
    Args:
        query: what the query box holds at first, as links to a group's devices have it.
    """
    wanted = _Filter(query=query if _parses(query) else "")
    with page_head(view, view.t("Fleet"), view.t("Every device, what it serves, and its health.")):
        add = button(view.t("Add devices"), icon="add", main=True, testid="add-devices")
        add.on_click(lambda: view.go("/enrolment"))

    async def load() -> _Data:
        page = await view.api.devices(
            offset=wanted.offset,
            limit=PAGE_ROWS,
            search=wanted.search.strip(),
            labels=wanted.labels,
            profile=wanted.profile,
            online=wanted.online,
            query=wanted.query,
        )
        return _Data(await view.api.overview(), page)

    live: Live[_Data] = Live(view, load)
    live.part(lambda data: _tiles(view, data.overview), of=lambda data: data.overview)
    with card(body=False):
        offer = _filters(view, wanted, live)
        _query(view, query, wanted, live)
        table = Rows(
            [
                Column("device", view.t("Device")),
                Column("state", view.t("State")),
                Column("profile", view.t("Profile")),
                Column("models", view.t("Models")),
                Column("labels", view.t("Labels")),
                Column("seen", view.t("Last seen"), "sk-nowrap"),
                Column("agent", view.t("Agent")),
            ],
            testid="device-row",
        )
        none = ui.element("div")

        def show(data: _Data) -> None:
            items = data.page.items
            table.show([_row(view, item) for item in items])
            table.set_visibility(bool(items))
            offer({item.profile for item in items})
            none.clear()
            if not items:
                with none:
                    _nothing(view, wanted)

        live.part(show, of=lambda data: data.page, keep=True)
        pager = _Pager(view, wanted, live)
        live.part(lambda data: pager.show(data.page), keep=True)
    await live.start()


def _tiles(view: View, now: Overview) -> None:
    away = now.devices - now.online
    tiles(
        [
            Tile(view.t("Devices"), formats.count(now.devices), testid="devices-total"),
            Tile(
                view.t("Online"),
                formats.count(now.online),
                view.t("{n} offline", n=formats.count(away)) if away else "",
                testid="devices-online",
            ),
            Tile(view.t("Rollouts running"), formats.count(now.rollouts_running)),
            Tile(view.t("Jobs running"), formats.count(now.jobs_running)),
            Tile(view.t("Models drifting"), formats.count(now.drifting), bad=now.drifting > 0),
            Tile(view.t("Samples collected"), formats.count(now.samples)),
        ]
    )


def _filters(view: View, wanted: _Filter, live: Live[_Data]) -> Callable[[set[str]], None]:
    """The inputs.  Returns a function that offers further profiles."""

    async def again() -> None:
        wanted.offset = 0
        await live.refresh()

    async def search(event: ValueChangeEventArguments[str | None]) -> None:
        wanted.search = event.value or ""
        await again()

    async def label(event: ValueChangeEventArguments[str | None]) -> None:
        before, wanted.label = wanted.labels, event.value or ""
        if wanted.labels != before:
            await again()

    async def profile(event: ValueChangeEventArguments[str | None]) -> None:
        wanted.profile = event.value or ""
        await again()

    async def presence(event: ValueChangeEventArguments[str]) -> None:
        wanted.online = _PRESENCE[event.value]
        await again()

    with ui.element("div").classes("sk-filters"):
        find = ui.input(placeholder=view.t("Search by device or profile"), on_change=search)
        find.props("outlined dense clearable debounce=250 data-testid=search")
        find.classes("sk-field sk-field--grow")
        with find.add_slot("prepend"):
            ui.icon("search")
        labels = ui.input(placeholder=view.t("Label, e.g. site=busan"), on_change=label)
        labels.props("outlined dense clearable debounce=250 data-testid=label").classes("sk-field")
        choice = ui.select([], label=view.t("Profile"), clearable=True, on_change=profile)
        choice.props("outlined dense options-dense data-testid=profile").classes("sk-field")
        names = {key: view.t(key) for key in _PRESENCE}
        toggle = ui.toggle(names, value="All", on_change=presence)
        toggle.props("no-caps dense unelevated padding='4px 12px' data-testid=presence")
        toggle.props("color=white text-color=secondary toggle-color=primary").classes("sk-seg")

    def offer(profiles: set[str]) -> None:
        if not profiles <= wanted.profiles:
            wanted.profiles |= profiles
            choice.set_options(sorted(wanted.profiles), value=choice.value)

    return offer


def _query(view: View, first: str, wanted: _Filter, live: Live[_Data]) -> None:
    async def again(text: str) -> None:
        wanted.query, wanted.offset = text, 0
        await live.refresh()

    QueryBox(view, value=first, changed=again, testid="query")


def _parses(text: str) -> bool:
    try:
        parse(text)
    except QueryError:
        return False
    return True


def _row(view: View, device: DeviceOut) -> Row:
    state = "revoked" if device.revoked else "online" if device.online else "offline"
    tags = [tables.tag(f"{key}={value}") for key, value in sorted(device.labels.items())]
    if len(tags) > _MAX_TAGS:
        tags = [*tags[:_MAX_TAGS], tables.text(f"+{len(tags) - _MAX_TAGS}", "sk-faint")]
    return Row(
        id=device.id,
        cells={
            "device": [tables.main(device.id, f"/devices/{device.id}")],
            "state": [tables.chip(view, state, testid="device-state")],
            "profile": [tables.text(device.profile)],
            "models": _models(view, device.models),
            "labels": tags,
            "seen": [tables.ago(device.last_seen)],
            "agent": [tables.text(device.agent_version, "sk-faint")]
            if device.agent_version
            else [],
        },
        link=True,
        data={"state": state},
    )


def _models(view: View, models: dict[str, Json]) -> Cell:
    cell: Cell = []
    for name, state in sorted(models.items()):
        phase = str(state.get("phase", ""))
        cell.append(tables.text(f"{name} v{state.get('version', '?')}", "sk-nowrap"))
        if phase and phase != "healthy":
            cell.append(tables.chip(view, phase))
        if state.get("variant"):
            cell.append(tables.sub(str(state["variant"])))
    return cell


def _nothing(view: View, wanted: _Filter) -> None:
    if wanted.any:
        empty(
            "search_off",
            view.t("No device matches"),
            view.t("Change or clear the search and the filters."),
        )
    else:
        empty(
            "developer_board",
            view.t("No devices yet"),
            view.t("Create a claim under Enrolment, then enrol the first device with it:"),
            code="skerry-agent enrol --dir DIR --claim CLAIM.json\nskerry-agent run --dir DIR",
        )


class _Pager:
    """The place in the list, and the way on and back.

    Its buttons outlive a redraw: one that is replaced between two clicks would lose the second.
    """

    def __init__(self, view: View, wanted: _Filter, live: Live[_Data]) -> None:
        self._view = view
        self._wanted = wanted
        self._live = live
        self._total = 0
        self._bar = ui.element("div").classes("sk-pager")
        with self._bar:
            self._place = ui.label().classes("sk-num").props("data-testid=pager")
            self._back = self._button("chevron_left", -1, "Previous page", "page-previous")
            self._on = self._button("chevron_right", 1, "Next page", "page-next")

    def show(self, page: DevicePage) -> None:
        self._total = page.total
        last = min(page.offset + PAGE_ROWS, page.total)
        self._bar.set_visibility(page.total > PAGE_ROWS or page.offset > 0)
        self._back.set_enabled(page.offset > 0)
        self._on.set_enabled(last < page.total)
        self._place.set_text(
            self._view.t(
                "{first}–{last} of {total}",
                first=formats.count(min(page.offset + 1, page.total)),
                last=formats.count(last),
                total=formats.count(page.total),
            )
        )

    async def _turn(self, step: int) -> None:
        end = max(0, self._total - 1) // PAGE_ROWS * PAGE_ROWS
        self._wanted.offset = min(max(0, self._wanted.offset + step * PAGE_ROWS), end)
        await self._live.refresh()

    def _button(self, icon: str, step: int, name: str, testid: str) -> ui.button:
        made = ui.button(icon=icon, on_click=lambda: self._turn(step))
        made.props("flat dense round color=secondary")
        made.props["aria-label"] = self._view.t(name)
        made.props["data-testid"] = testid
        return made
