"""The console's building blocks beside tables and charts: heads, cards, chips, facts, steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from nicegui import ui

from fleet.console import formats
from fleet.console.tones import Tone, tone_of
from fleet.console.view import Tag, View, heading


@contextmanager
def page_head(
    view: View,
    title: str,
    lead: str = "",
    *,
    crumbs: Sequence[tuple[str, str]] = (),
) -> Iterator[None]:
    """A page's title; buttons made in the body of the `with` stand at its right.

    Args:
        crumbs: (text, path) of the pages above this one.
    """
    ui.page_title(f"{title} · Skerry")
    with ui.element("header").classes("sk-head"):
        with ui.element("div").classes("sk-grow"):
            if crumbs:
                with ui.element("div").classes("sk-crumbs"):
                    for text, path in crumbs:
                        ui.link(f"‹ {text}", path)
            heading(1, title)
            if lead:
                ui.label(lead).classes("sk-lead")
        with ui.element("div").classes("sk-actions"):
            yield


@contextmanager
def card(title: str = "", note: str = "", *, body: bool = True) -> Iterator[None]:
    """A surface with an optional title.  Tables come without `body` padding."""
    with ui.element("section").classes("sk-card"):
        if title:
            with ui.element("div").classes("sk-card-head"):
                heading(2, title)
                if note:
                    Tag("span", note, "sk-note")
        if body:
            with ui.element("div").classes("sk-body"):
                yield
        else:
            yield


def empty(icon: str, title: str, hint: str, *, code: str = "") -> None:
    """What stands where there is nothing yet: what this is, and what to do next."""
    with ui.element("div").classes("sk-empty").props("data-testid=empty"):
        ui.icon(icon)
        Tag("strong", title)
        Tag("p", hint)
        if code:
            Tag("pre", code, "sk-pre")


def chip(view: View, state: str, *, testid: str = "", tone: Tone | None = None) -> None:
    """A state in its colour.  `testid` is a stable handle for tests and scripts."""
    tag = Tag("span", view.state(state), f"sk-chip sk-chip--{tone or tone_of(state)}")
    tag.props["data-state"] = state.lower()
    if testid:
        tag.props["data-testid"] = testid


def tag(text: str) -> None:
    Tag("span", text, "sk-tag")


@contextmanager
def flow() -> Iterator[None]:
    with ui.element("div").classes("sk-flow"):
        yield


def moment(at: float, form: str = "ago", css: str = "") -> None:
    """A point in time, shown in the reader's language and zone; `form` is ago, clock or day."""
    element = ui.element("time")
    element.props["data-at"] = at
    element.props["data-as"] = form
    if css:
        element.classes(css)


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    title: str
    value: str
    extra: str = ""
    bad: bool = False
    testid: str = ""


def tiles(items: Sequence[Tile]) -> None:
    with ui.element("div").classes("sk-tiles"):
        for item in items:
            with ui.element("dl").classes("sk-tile" + (" sk-tile--bad" if item.bad else "")):
                Tag("dt", item.title)
                with ui.element("dd") as value:
                    Tag("span", item.value)
                    if item.extra:
                        Tag("small", item.extra)
                if item.testid:
                    value.props["data-testid"] = item.testid


def facts(items: Sequence[tuple[str, str]], *, mono: Sequence[str] = ()) -> None:
    """Names and values in two columns; those named in `mono` are digests or code."""
    with ui.element("dl").classes("sk-facts"):
        for name, value in items:
            Tag("dt", name)
            Tag("dd", value or formats.NONE, "sk-mono" if name in mono else "")


def more(title: str, value: object) -> None:
    """The whole of something as JSON, folded away."""
    with ui.element("details").classes("sk-more"):
        Tag("summary", title)
        Tag("pre", formats.pretty(value), "sk-pre")


def bars(values: Mapping[str, int], *, limit: int = 12) -> None:
    """Names with bars, largest first; what is beyond `limit` is summed up."""
    ranked = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked[:limit]
    rest = sum(value for _, value in ranked[limit:])
    if rest:
        shown.append((f"+ {len(ranked) - limit}", rest))
    top = max((value for _, value in shown), default=0) or 1
    with ui.element("div").classes("sk-bars"):
        for name, value in shown:
            _bar(name, value / top, formats.count(value))


def shares(values: Mapping[str, float]) -> None:
    """Names with bars of shares of 1, in the given order."""
    with ui.element("div").classes("sk-bars"):
        for name, value in values.items():
            _bar(name, value, formats.percent(value))


def _bar(name: str, share: float, figure: str) -> None:
    Tag("span", name).props["title"] = name
    with ui.element("div").classes("sk-meter"):
        ui.element("i").style(f"width: {100 * min(max(share, 0.0), 1.0):.1f}%")
    Tag("span", figure, "sk-num")


@contextmanager
def steps() -> Iterator[None]:
    """A history, newest first; fill with `step`."""
    with ui.element("ol").classes("sk-steps"):
        yield


@contextmanager
def step(tone: Tone) -> Iterator[None]:
    with ui.element("li").classes(tone), ui.element("div"):
        yield


def button(
    text: str, *, icon: str | None = None, main: bool = False, danger: bool = False, testid: str
) -> ui.button:
    """A button of a page's head or a form; the caller adds `on_click`."""
    made = ui.button(text, icon=icon).props("no-caps unelevated")
    made.props["data-testid"] = testid
    if not main:
        # Quasar paints white text on the primary colour unless told otherwise
        made.props("color=white text-color=dark").classes("sk-plain")
    if danger:
        made.classes("sk-danger")
    return made
