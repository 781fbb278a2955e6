"""The frame around every page: navigation, language, state of the control plane, and the routes."""

from __future__ import annotations

from typing import Final

from nicegui import ui
from nicegui.element import Element

from fleet.client.client import ApiError, AsyncClient
from fleet.client.schemas import Overview
from fleet.console import formats, plain
from fleet.console.pages import (
    audit,
    device,
    devices,
    drift,
    enrolment,
    groups,
    job,
    jobs,
    model,
    models,
    rollout,
    rollout_form,
    rollouts,
)
from fleet.console.view import Lang, Tag, View

_OVERVIEW_S: Final = 5.0

_NAVIGATION: Final = (
    ("/", "Fleet", "o_developer_board"),
    ("/groups", "Groups", "o_workspaces"),
    ("/models", "Models", "o_category"),
    ("/rollouts", "Rollouts", "o_rocket_launch"),
    ("/drift", "Drift", "o_show_chart"),
    ("/jobs", "Jobs", "o_pending_actions"),
    ("/enrolment", "Enrolment", "o_key"),
    ("/audit", "Audit", "o_receipt_long"),
)

PATHS: Final = (
    "/",
    "/devices/{device_id}",
    "/groups",
    "/models",
    "/models/{name}/{version}",
    "/rollouts",
    "/rollouts/new",
    "/rollouts/{rollout_id}",
    "/drift",
    "/jobs",
    "/jobs/{job_id}",
    "/enrolment",
    "/audit",
)
"""Every page's path, in the form of both routers: the server's and the browser's."""


def draw(api: AsyncClient, lang: Lang) -> None:
    """Build the frame and show the page of the address in it."""
    client = ui.context.client
    client.on_delete(api.close)
    ui.colors(
        primary="#17697a",
        secondary="#4b5f68",
        accent="#5b5fa8",
        dark="#16262d",
        positive="#22704c",
        negative="#a5303a",
        info="#1f5f93",
        warning="#855300",
    )
    ui.add_head_html(f'<script>document.documentElement.lang = "{lang}"</script>')
    view = View(api, lang, ui.element("div"))
    drawer = ui.left_drawer(value=False).props("width=236 breakpoint=1023 show-if-above")
    with drawer:
        links, counts, state = _navigation(view)
    with ui.element("div").classes("sk-top"):
        ui.button(icon="menu", on_click=drawer.toggle).props(
            f'flat round dense color=white aria-label="{view.t("Menu")}" data-testid=menu'
        )
        _brand()
    with ui.element("main").classes("sk-page-host"):
        ui.sub_pages(
            {
                "/": lambda query="": devices.page(view, query),
                "/groups": lambda: groups.page(view),
                "/devices/{device_id}": lambda device_id: device.page(view, device_id),
                "/models": lambda: models.page(view),
                "/models/{name}/{version}": lambda name, version: model.page(view, name, version),
                "/rollouts": lambda: rollouts.page(view),
                "/rollouts/new": lambda model="", version="": rollout_form.page(
                    view, model, version
                ),
                "/rollouts/{rollout_id}": lambda rollout_id: rollout.page(view, rollout_id),
                "/drift": lambda model="": drift.page(view, model),
                "/jobs": lambda: jobs.page(view),
                "/jobs/{job_id}": lambda job_id: job.page(view, job_id),
                "/enrolment": lambda: enrolment.page(view),
                "/audit": lambda: audit.page(view),
            }
        ).classes("sk-page")
    _follow(links)

    async def look() -> None:
        try:
            overview: Overview | None = await api.overview()
        except ApiError:
            overview = None
        _state(view, overview, counts, state)

    ui.timer(_OVERVIEW_S, look)


def _brand() -> None:
    with ui.element("a").classes("sk-brand") as brand:
        brand.props["href"] = "/"
        ui.html(plain.MARK, sanitize=False, tag="span").style("display: contents")
        Tag("span", "Skerry")


def _navigation(view: View) -> tuple[dict[str, Element], dict[str, Tag], Element]:
    links: dict[str, Element] = {}
    counts: dict[str, Tag] = {}
    _brand()
    with ui.element("nav").classes("sk-nav"):
        for path, name, icon in _NAVIGATION:
            with ui.element("a") as link:
                link.props["href"] = path
                link.props["data-testid"] = f"nav-{name.lower()}"
                ui.icon(icon)
                Tag("span", view.t(name))
                counts[path] = Tag("span", "", "sk-count")
            links[path] = link
    with ui.element("div").classes("sk-foot"):
        state = ui.element("div").classes("sk-foot-row")
        with ui.element("div").classes("sk-foot-row"):
            with ui.element("span").classes("sk-lang"):
                for lang, word in (("en", "EN"), ("ko", "한국어")):
                    entry = Tag("a", word, "sk-here" if lang == view.lang else "")
                    entry.props["data-testid"] = f"lang-{lang}"
                    entry.on("click", js_handler=_language_handler(lang))
                    entry.props["role"] = "button"
                    entry.props["tabindex"] = "0"
            Tag("span", "", "sk-grow")
            leave = Tag("a", view.t("Sign out"))
            leave.props["data-testid"] = "sign-out"
            leave.props["href"] = "/logout"
    return links, counts, state


def _language_handler(lang: str) -> str:
    return (
        "() => location.assign('/language/" + lang + "?next=' + "
        "encodeURIComponent(location.pathname + location.search))"
    )


def _follow(links: dict[str, Element]) -> None:
    """Mark the page that is open, and close the drawer where it lies over the page."""
    router = ui.context.client.sub_pages_router
    client = ui.context.client

    def mark(path: str) -> None:
        head = "/" + path.split("?")[0].strip("/").split("/")[0]
        head = "/" if head == "/devices" else head
        for target, link in links.items():
            link.classes(add="sk-here") if target == head else link.classes(remove="sk-here")

    def moved(path: str) -> None:
        mark(path)
        client.run_javascript("document.querySelector('.q-drawer__backdrop')?.click()")

    mark(router.current_path)
    router.on_path_changed(moved)


def _state(view: View, overview: Overview | None, counts: dict[str, Tag], state: Element) -> None:
    state.clear()
    with state:
        if overview is None:
            ui.element("span").classes("sk-dot sk-dot--bad")
            Tag("span", view.t("Control plane does not answer"))
            return
        good = overview.broker_connected
        ui.element("span").classes(f"sk-dot sk-dot--{'ok' if good else 'bad'}")
        Tag("span", view.t("Broker connected") if good else view.t("Broker not connected"))
        Tag("span", "", "sk-grow")
        Tag("span", overview.version, "sk-num")
    shown: dict[str, int] = {
        "/": overview.devices,
        "/models": overview.models,
        "/rollouts": overview.rollouts_running,
        "/drift": overview.drifting,
        "/jobs": overview.jobs_running,
    }
    for path, tag in counts.items():
        number = shown.get(path, 0)
        tag.set_text(formats.count(number) if number else "")
