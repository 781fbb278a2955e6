"""What every page gets: the API, the language, and a place for dialogs that outlives redrawing."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Literal

from nicegui import ui
from nicegui.element import Element

from fleet.client.client import ApiError, AsyncClient
from fleet.console import formats, text, tones

Lang = Literal["en", "ko"]


@dataclass(frozen=True)
class View:
    """One browser tab's view of the control plane.

    Attributes:
        host: element outside all pages; dialogs and notes are made in it, because a page's own
            elements may be redrawn while a dialog is open.
    """

    api: AsyncClient
    lang: Lang
    host: Element = field(repr=False)

    def t(self, english: str, **values: object) -> str:
        """`english` in the reader's language, with `{name}` places filled from `values`."""
        return text.translate(self.lang, english, **values)

    def many(self, number: int, one: str, other: str) -> str:
        """A counted thing: `one` as "1 device", `other` as "{n} devices"."""
        return self.t(one) if number == 1 else self.t(other, n=formats.count(number))

    def state(self, state: str) -> str:
        """A state's word in the reader's language."""
        return text.translate(self.lang, tones.plain(state))

    def note(self, message: str, kind: Literal["positive", "negative"] = "positive") -> None:
        """Show a line at the foot of the window for a few seconds."""
        with self.host:
            ui.notify(
                message,
                type=kind,
                position="bottom",
                timeout=4000 if kind == "positive" else 9000,
                close_button=self.t("Close") if kind == "negative" else False,
            )

    async def act(self, work: Awaitable[object], done: str) -> bool:
        """Await a command to the control plane and say how it went; whether it was accepted."""
        try:
            await work
        except ApiError as error:
            self.note(error.message, "negative")
            return False
        self.note(done)
        return True

    def go(self, path: str) -> None:
        with self.host:
            ui.navigate.to(path)


async def confirm(
    view: View,
    title: str,
    body: str,
    action: str,
    *,
    danger: bool = False,
    ask_reason: bool = False,
) -> str | None:
    """Ask before a command.  Returns the reason (empty where none is asked), or None on cancel."""
    with view.host, ui.dialog() as dialog, ui.element("div").classes("sk-dialog"):
        heading(2, title)
        ui.label(body).classes("sk-dim")
        reason = None
        if ask_reason:
            reason = ui.input(view.t("Reason, for the audit")).props("outlined dense autofocus")
            reason.classes("sk-field").props("data-testid=confirm-reason")
        with ui.element("div").classes("sk-actions"):
            ui.button(view.t("Cancel"), on_click=lambda: dialog.submit(None)).props(
                "flat no-caps"
            ).classes("sk-plain")
            ui.button(action, on_click=lambda: dialog.submit(reason.value if reason else "")).props(
                f"unelevated no-caps color={'negative' if danger else 'primary'}"
                " data-testid=confirm-yes"
            )
    answer = await dialog
    dialog.delete()
    return answer if isinstance(answer, str) else None


def heading(level: Literal[1, 2, 3], content: str) -> Tag:
    return Tag(f"h{level}", content)


class Tag(ui.label):
    """A label in any HTML element; its text is never read as HTML."""

    def __init__(self, tag: str, content: str = "", css: str = "") -> None:
        super().__init__(content)
        self.tag = tag
        if css:
            self.classes(css)
