"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, repeatable.")]


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
