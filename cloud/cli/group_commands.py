"""`skerry groups`: named sets of devices."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption, QueryOption, check_query
from cloud.cli.output import as_json, console, table, when
from cloud.errors import UserError
from fleet.client.registry_schemas import DeviceGroupChange, DeviceGroupIn, MembersIn

groups = typer.Typer(no_args_is_help=True, help="Groups: sets of devices, by members or a query.")

Devices = Annotated[list[str] | None, typer.Argument(help="Ids of devices.")]
SHOWN = 100


@groups.command("create")
def create_group(
    name: str,
    device: Devices = None,
    query: QueryOption = "",
    description: str = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """A group of the devices named, or of whoever matches --query."""
    check_query(query)
    request = DeviceGroupIn(name=name, query=query, description=description, devices=device or [])
    with client(directory) as api:
        made = api.create_group(request)
    console.print(f"group {made.name}: {made.devices} devices")


@groups.command("list")
def list_groups(directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False) -> None:
    """All groups, with how many devices are in each now."""
    with client(directory) as api:
        rows = api.groups()
    if json:
        as_json(rows)
        return
    table(
        "groups",
        ("name", "devices", "query", "description", "changed"),
        [(g.name, g.devices, g.query or "–", g.description, when(g.updated_at)) for g in rows],
    )


@groups.command("show")
def show_group(
    name: str, directory: DirectoryOption = DEFAULT_DIRECTORY, json: JsonOption = False
) -> None:
    """A group and the first of its devices."""
    with client(directory) as api:
        group = api.group(name)
        page = api.devices(query=f'group("{group.name}")', limit=SHOWN)
    if json:
        as_json(group)
        return
    console.print(
        f"group {group.name}: {group.devices} devices"
        + (f", whoever matches {group.query}" if group.query else ""),
        markup=False,
    )
    table(
        f"devices 1–{len(page.items)} of {page.total}",
        ("id", "profile", "state"),
        [(d.id, d.profile, "online" if d.online else "offline") for d in page.items],
    )


@groups.command("change")
def change_group(
    name: str,
    query: Annotated[str | None, typer.Option(help="Whom the group means from now on.")] = None,
    description: str | None = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Give a group another query or description; rollouts that go on follow it."""
    if query is None and description is None:
        raise UserError("nothing to change: give --query, --description or both")
    check_query(query or "")
    with client(directory) as api:
        group = api.change_group(name, DeviceGroupChange(query=query, description=description))
    console.print(f"group {group.name}: {group.devices} devices")


@groups.command("delete")
def delete_group(name: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Forget a group; its devices stay."""
    with client(directory) as api:
        api.delete_group(name)
    console.print(f"deleted {name}")


@groups.command("add")
def add_members(
    name: str, device: list[str], directory: DirectoryOption = DEFAULT_DIRECTORY
) -> None:
    """Make devices members of a group."""
    with client(directory) as api:
        group = api.change_members(name, MembersIn(add=device))
    console.print(f"group {name}: {group.devices} devices")


@groups.command("remove")
def remove_members(
    name: str, device: list[str], directory: DirectoryOption = DEFAULT_DIRECTORY
) -> None:
    """Take devices out of a group."""
    with client(directory) as api:
        group = api.change_members(name, MembersIn(remove=device))
    console.print(f"group {name}: {group.devices} devices")
