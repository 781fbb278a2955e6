"""`skerry status|audit|tokens`: the control plane at a glance."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption
from cloud.cli.output import as_json, console, table, when
from fleet.client.schemas import Role, TokenIn

tokens = typer.Typer(no_args_is_help=True, help="API tokens.")


def status(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """The control plane at a glance."""
    with client(directory) as api:
        overview = api.overview()
    if json:
        as_json(overview)
        return
    table("status", ("what", "value"), list(overview.model_dump().items()))


def audit(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """Who did what, newest first; hash-chained."""
    with client(directory) as api:
        rows = api.audit()
    if json:
        as_json(rows)
        return
    table(
        "audit",
        ("id", "at", "actor", "action", "subject"),
        [(r.id, when(r.at), r.actor, r.action, r.subject) for r in rows],
    )


@tokens.command("create")
def create_token(
    name: str,
    role: Annotated[Role, typer.Option(help="What the token may do.")] = "viewer",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Create an API token; it is shown once."""
    with client(directory) as api:
        console.print(api.create_token(TokenIn(name=name, role=role)).token)
