"""A field for queries: what does not parse is shown with a caret under the place."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from nicegui import ui
from nicegui.events import ValueChangeEventArguments

from fleet.console.view import Tag, View
from fleet.devices.query import QueryError, parse


class QueryBox:
    """An input and, below it, what is wrong with its text.

    Args:
        changed: awaited with each text that parses, and with "" when the field is emptied; not
            while a text is wrong.
    """

    def __init__(
        self,
        view: View,
        *,
        value: str = "",
        changed: Callable[[str], Awaitable[None]] | None = None,
        testid: str,
    ) -> None:
        self._changed = changed
        self._view = view
        with ui.element("div").classes("sk-query"):
            self._input = ui.input(
                view.t("Query"),
                value=value,
                placeholder='site == "busan" and model.digits < 3',
                on_change=self._check,
            )
            self._input.props("outlined dense clearable debounce=400 spellcheck=false")
            self._input.props["data-testid"] = testid
            self._input.classes("sk-field sk-field--code")
            self._problem = Tag("pre", "", "sk-query-problem")
            self._problem.props["role"] = "alert"
            self._problem.props["data-testid"] = f"{testid}-problem"
            self._problem.set_visibility(False)

    @property
    def value(self) -> str | None:
        """The text, empty for none; None while it does not parse."""
        text = (self._input.value or "").strip()
        return text if self._complain(text) else None

    def clear(self) -> None:
        self._input.set_value("")

    async def _check(self, event: ValueChangeEventArguments[str | None]) -> None:
        text = (event.value or "").strip()
        if self._complain(text) and self._changed is not None:
            await self._changed(text)

    def _complain(self, text: str) -> bool:
        """Show what is wrong with a text; whether nothing is."""
        problem = ""
        if text:
            try:
                parse(text)
            except QueryError as error:
                place = self._view.t("column {n}", n=error.position + 1)
                problem = f"{error.pointed()}\n{place}: {error.reason}"
        self._problem.set_text(problem)
        self._problem.set_visibility(bool(problem))
        return not problem
