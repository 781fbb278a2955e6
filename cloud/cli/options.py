"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.errors import UserError
from fleet.devices.query import QueryError, parse

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, repeatable.")]
QueryOption = Annotated[
    str, typer.Option("--query", help="Devices by a query, e.g. 'site == \"a\" and cores >= 4'.")
]


def check_query(text: str) -> None:
    """Refuse a query that does not parse, with a caret under the place; an empty one is none.

    Raises:
        UserError: it does not parse.
    """
    if not text:
        return
    try:
        parse(text)
    except QueryError as error:
        raise UserError(f"{error}\n{error.pointed()}") from error


def parse_labels(pairs: list[str] | None) -> dict[str, str]:
    """["site=a"] → {"site": "a"}.

    Raises:
        typer.BadParameter: a pair without "=".
    """
    result = {}
    for pair in pairs or []:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"label {pair!r} is not KEY=VALUE")
        result[key] = value
    return result
