"""`skerry devices`: the registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client, split_version
from cloud.cli.options import JsonOption, LabelOption, QueryOption, check_query, parse_labels
from cloud.cli.output import as_json, console, errors, table, when
from cloud.errors import UserError
from edge_agent.wire.ids import is_slug
from fleet.client.registry_schemas import LabelsIn
from fleet.client.schemas import GroupIn
from fleet.devices.sheet import Form, write_csv, write_json

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


@devices.command("label")
def label_devices(
    target: Annotated[str, typer.Argument(help="A query, or one device's id.")],
    change: Annotated[list[str], typer.Argument(help="KEY=VALUE sets, KEY- removes.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Set and remove labels on one device, or on all that a query means."""
    query = f'id == "{target}"' if is_slug(target) else target
    check_query(query)
    request = LabelsIn(
        query=query,
        set=parse_labels([each for each in change if "=" in each]),
        remove=[_removed(each) for each in change if "=" not in each],
        dry_run=dry_run,
    )
    with client(directory) as api:
        done = api.label_devices(request)
    if query != target and not done.matched:
        raise UserError(f"no device {target!r}; see 'skerry devices list'")
    word = "would change" if dry_run else "changed"
    console.print(f"{word} {done.changed} of {done.matched} devices")


@devices.command("export")
def export_devices(
    output: Annotated[Path, typer.Option("--output", "-o", help="FILE.csv or FILE.json.")],
    query: QueryOption = "",
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Write devices and their labels to a table, which 'import' takes back."""
    form = _form_of(output)
    check_query(query)
    rows: list[dict[str, Any]] = []
    with client(directory) as api:
        while True:
            page = api.devices(offset=len(rows), limit=1000, query=query)
            rows.extend(device.model_dump() for device in page.items)
            if not page.items or len(rows) >= page.total:
                break
    output.write_text(write_csv(rows) if form == "csv" else write_json(rows), "utf-8")
    console.print(f"wrote {len(rows)} devices to {output}", soft_wrap=True)


@devices.command("import")
def import_devices(
    file: Annotated[Path, typer.Argument(help="FILE.csv or FILE.json.", dir_okay=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check and count.")] = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Take labels over from a table: all of it, or with a single wrong line nothing."""
    form = _form_of(file)
    with client(directory) as api:
        done = api.import_devices(file.read_bytes(), form, dry_run=dry_run)
    for each in done.problems:
        errors.print(f"{file}:{each.line}: {each.problem}", markup=False, soft_wrap=True)
    if done.wrong:
        more = f", {done.wrong - len(done.problems)} not shown" * (done.wrong > len(done.problems))
        raise UserError(f"{file}: {done.wrong} wrong lines{more}; nothing was changed")
    word = "would change" if dry_run else "changed"
    console.print(f"{word} {done.changed} of {done.rows} devices")


@devices.command("history")
def device_history(
    device_id: str,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """What became of a device's presence, twin, labels and inventory, newest first."""
    with client(directory) as api:
        rows = api.device_changes(device_id, limit=limit)
    if json:
        as_json(rows)
        return
    table(
        f"history of {device_id}",
        ("when", "what", "now"),
        [(when(row.at), row.kind, _said(row.detail)) for row in rows],
    )


def _removed(change: str) -> str:
    if not change.endswith("-") or len(change) < 2:
        raise typer.BadParameter(f"{change!r} is neither KEY=VALUE nor KEY-")
    return change[:-1]


def _form_of(path: Path) -> Form:
    if path.suffix == ".csv":
        return "csv"
    if path.suffix == ".json":
        return "json"
    raise typer.BadParameter(f"{path}: expected a name that ends in .csv or .json")


def _said(detail: dict[str, Any]) -> str:
    """{"a": 1, "b": None} → "a=1 b gone"."""
    parts = []
    for name, value in detail.items():
        if isinstance(value, dict):
            value = ",".join(str(each) for each in value.values() if each is not None)
        parts.append(f"{name} gone" if value is None else f"{name}={value}")
    return " ".join(parts)
