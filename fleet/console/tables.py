"""One table for the whole console: rows of cells, a cell is a few pieces.

A piece is a small JSON object that `assets/rows.js` draws: text, link, chip, time, meter or button.
Rows are patched in place, so a page of a hundred devices can change every two seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nicegui.element import Element
from nicegui.events import GenericEventArguments

from fleet.console.tones import Tone, tone_of
from fleet.console.view import View

Piece = dict[str, Any]
Cell = list[Piece]


@dataclass(frozen=True)
class Column:
    """A column; `css` "sk-right" is for numbers."""

    name: str
    label: str
    css: str = ""


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        id: unique in the table; the browser has it as `data-id`.
        data: further `data-…` attributes, for tests and scripts.
        bad: the row needs a look.
    """

    id: str
    cells: Mapping[str, Cell]
    link: bool = False
    bad: bool = False
    data: Mapping[str, str] = field(default_factory=dict)


class Rows(Element, component="assets/rows.js"):
    """A table.  Call `show` with the rows; `on_act` hears its buttons as (act, row id)."""

    def __init__(self, columns: Sequence[Column], *, testid: str) -> None:
        super().__init__()
        self.props["columns"] = [
            {"name": column.name, "label": column.label, "css": column.css} for column in columns
        ]
        self.props["testid"] = testid
        self.props["rows"] = []

    def show(self, rows: Sequence[Row]) -> Rows:
        self.props["rows"] = [
            {
                "id": row.id,
                "cells": dict(row.cells),
                "css": " ".join(
                    name
                    for name, wanted in (("sk-row--link", row.link), ("sk-row--bad", row.bad))
                    if wanted
                ),
                "data": {f"data-{name}": value for name, value in row.data.items()},
            }
            for row in rows
        ]
        return self

    def on_act(self, handler: Callable[[str, str], object]) -> Rows:
        def hear(event: GenericEventArguments) -> object:
            return handler(str(event.args["act"]), str(event.args["id"]))

        self.on("act", hear)
        return self


def text(value: str, css: str = "", title: str = "") -> Piece:
    return {"text": value, "css": css, "title": title or None}


def mono(value: str, title: str = "") -> Piece:
    return text(value, "sk-mono", title)


def sub(value: str, *, bad: bool = False) -> Piece:
    """A second, fainter line."""
    return text(value, "sk-sub sk-sub--bad" if bad else "sk-sub")


def main(value: str, href: str) -> Piece:
    """The row's own link; the whole row follows it."""
    return {"text": value, "href": href, "css": "sk-main"}


def link(value: str, href: str, *, download: bool = False, testid: str = "") -> Piece:
    piece: Piece = {"text": value, "href": href, "testid": testid or None}
    if download:
        piece["download"] = ""
    return piece


def chip(view: View, state: str, *, tone: Tone | None = None, testid: str = "") -> Piece:
    return {
        "text": view.state(state),
        "css": f"sk-chip sk-chip--{tone or tone_of(state)}",
        "testid": testid or None,
    }


def tag(value: str) -> Piece:
    return text(value, "sk-tag")


def ago(at: float) -> Piece:
    return {"at": at, "as": "ago"}


def clock(at: float) -> Piece:
    return {"at": at, "as": "clock"}


def meter(parts: Sequence[tuple[Tone | None, float]], title: str = "") -> Piece:
    """A bar of shares of 1."""
    return {
        "meter": [
            {"css": tone or "", "percent": round(100 * min(max(share, 0.0), 1.0), 1)}
            for tone, share in parts
        ],
        "title": title or None,
    }


def press(act: str, label: str, *, bad: bool = False, testid: str = "") -> Piece:
    """A button; the table's `on_act` hears `act`."""
    return {"act": act, "text": label, "css": "sk-btn--bad" if bad else "", "testid": testid}
