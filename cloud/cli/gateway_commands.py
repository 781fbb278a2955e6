"""`skerry gateways`: devices that another device speaks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import LabelOption, parse_labels
from cloud.cli.output import console
from fleet.client.gateway_schemas import MAX_AT_ONCE, BelowIn

gateways = typer.Typer(no_args_is_help=True, help="Devices that another device speaks for.")


@gateways.command("register")
def register(
    gateway: Annotated[str, typer.Argument(help="An enrolled device.")],
    profile: Annotated[str, typer.Option(help="Hardware profile of the devices below it.")],
    device: Annotated[list[str] | None, typer.Argument(help="Names of devices.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="Names, one a line.", exists=True, dir_okay=False)
    ] = None,
    label: LabelOption = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Register devices below GATEWAY, whose certificate then speaks for them."""
    names = [*(device or [])]
    if file is not None:
        names += [line.strip() for line in file.read_text().splitlines() if line.strip()]
    if not names:
        raise typer.BadParameter("name devices, or give a file with --file")
    registered = total = 0
    with client(directory) as api:
        for first in range(0, len(names), MAX_AT_ONCE):
            some = names[first : first + MAX_AT_ONCE]
            request = BelowIn(devices=some, profile=profile, labels=parse_labels(label))
            done = api.register_below(gateway, request)
            registered, total = registered + done.registered, done.total
    console.print(f"registered {registered} devices below {gateway}, {total} in all")
