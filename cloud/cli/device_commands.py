"""`skerry devices`: the registry."""

from __future__ import annotations

from typing import Annotated

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.options import JsonOption, LabelOption, QueryOption, check_query
from cloud.cli.output import as_json, console, table, when
from cloud.errors import UserError
from edge_agent.wire.ids import is_slug
from fleet.client.schemas import GroupIn

devices = typer.Typer(no_args_is_help=True, help="The registry of devices.")


@devices.command("list")
def list_devices(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    search: str = "",
    profile: str = "",
    label: LabelOption = None,
    query: QueryOption = "",
    offset: int = 0,
    limit: int = 100,
    json: JsonOption = False,
) -> None:
    """One page of the registry."""
    check_query(query)
    with client(directory) as api:
        page = api.devices(
            offset=offset, limit=limit, search=search, labels=label or [], profile=profile,
            query=query,
        )  # fmt: skip
    if json:
        as_json(page)
        return
    table(
        f"devices {page.offset + 1}–{page.offset + len(page.items)} of {page.total}",
        ("id", "profile", "state", "models", "last seen"),
        [
            (
                d.id, d.profile,
                "revoked" if d.revoked else "online" if d.online else "offline",
                ", ".join(f"{name}:{m['version']} {m['variant']}" for name, m in d.models.items()),
                when(d.last_seen),
            )
            for d in page.items
        ],
    )  # fmt: skip


@devices.command("show")
def show_device(device_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Twin, inventory and history of one device, as JSON."""
    with client(directory) as api:
        as_json(api.device(device_id))


@devices.command("assign")
def assign_together(
    device_id: str,
    versions: Annotated[
        list[str], typer.Argument(help="MODEL:VERSION of each model, two or more.")
    ],
    probation: Annotated[float, typer.Option(min=0, help="Seconds they must hold.")] = 10.0,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Have one device install versions of several models, all or none."""
    if not is_slug(device_id):
        raise UserError(f"{device_id[:100]!r} is no device's id; see 'skerry devices list'")
    wanted = dict(split_version(version) for version in versions)
    if len(wanted) != len(versions) or len(wanted) < 2:
        raise UserError("name two models or more, each once; start a rollout for one")
    with client(directory) as api:
        assigned = api.assign_together(device_id, GroupIn(versions=wanted, probation_s=probation))
    for each in assigned:
        console.print(f"{device_id}: {each.model}:{each.version} in group {each.group}")


@devices.command("revoke")
def revoke_device(
    device_id: str,
    reason: Annotated[str, typer.Option(help="Why; for the audit.")] = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Take a device's identity away; its live session ends within seconds."""
    with client(directory) as api:
        api.revoke_device(device_id, reason)
    console.print(
        f"revoked {device_id}; 'skerry claims create --device {device_id}' lets it come back",
        soft_wrap=True,
    )
