"""Pages that stay true: load, draw, and draw again only what has changed.

Rules:
    * One poll at a time per page; a slow control plane is never asked twice at once.
    * A part is drawn again only when what it shows differs, so nothing flickers.
    * When the control plane does not answer, the last picture stays, with a line above it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from nicegui import ui
from nicegui.element import Element

from fleet.client.client import ApiError
from fleet.client.errors import SignInNeeded
from fleet.console.view import Tag, View
from fleet.console.widgets import empty

T = TypeVar("T")

INTERVAL_S: Final = 2.0
_NEVER: Final = object()


class Live(Generic[T]):
    """A page's data and the parts that show it.

    Use: make one, add parts in the order they stand on the page, then await `start`.
    """

    def __init__(
        self, view: View, load: Callable[[], Awaitable[T]], *, interval_s: float = INTERVAL_S
    ) -> None:
        self._view = view
        self._load = load
        self._interval_s = interval_s
        self._parts: list[_Part[T]] = []
        self._lock = asyncio.Lock()
        self._loaded = False
        self._problem = ""
        self.missing = False
        """Whether there is nothing of the kind that was asked for."""
        self._notice = ui.element("div").classes("sk-part")
        with self._notice:
            Tag("div", view.t("Loading…"), "sk-loading")

    def part(
        self,
        draw: Callable[[T], None],
        *,
        of: Callable[[T], object] | None = None,
        keep: bool = False,
    ) -> Element:
        """Add a part.

        Args:
            draw: fills the part's element from the data.
            of: what the part depends on; it is drawn again when this differs.
            keep: `draw` brings its own elements up to date, so they are not cleared first.
        """
        box = ui.element("div").classes("sk-part")
        self._parts.append(_Part(box, draw, of, keep))
        return box

    async def start(self) -> None:
        """Draw for the first time and keep the page up to date while it is open."""
        await self.refresh()
        ui.timer(self._interval_s, self.refresh, immediate=False)

    async def refresh(self) -> None:
        """Load and draw what has changed."""
        async with self._lock:
            try:
                data = await self._load()
            except ApiError as error:
                self._complain(error)
                return
            if self._notice.is_deleted:  # the reader has gone on while we loaded
                return
            if self._problem or not self._loaded:
                self._notice.clear()
            self._loaded, self._problem = True, ""
            for part in self._parts:
                part.show(data)

    def _complain(self, error: ApiError) -> None:
        if self._notice.is_deleted or error.message == self._problem:
            return
        self._problem = error.message
        view = self._view
        self._notice.clear()
        with self._notice:
            if error.status == 404 and not self._loaded:
                self.missing = True
                with ui.element("div").classes("sk-card"):
                    empty("travel_explore", view.t("There is nothing here"), error.message)
                return
            with ui.element("div").classes("sk-banner").props("role=alert data-testid=problem"):
                ui.icon("cloud_off")
                Tag("span", error.message, "sk-grow")
                if isinstance(error, SignInNeeded):
                    ui.link(view.t("Sign in"), "/login")


class _Part(Generic[T]):
    def __init__(
        self,
        box: Element,
        draw: Callable[[T], None],
        of: Callable[[T], object] | None,
        keep: bool,
    ) -> None:
        self._box = box
        self._draw = draw
        self._of = of
        self._keep = keep
        self._shown: object = _NEVER

    def show(self, data: T) -> None:
        key = self._of(data) if self._of else data
        if self._shown is not _NEVER and key == self._shown:
            return
        self._shown = key
        if not self._keep:
            self._box.clear()
        with self._box:
            self._draw(data)
