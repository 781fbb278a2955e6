"""`skerry commands`: ask devices to do something once."""

from __future__ import annotations

import json as json_module
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from cloud.cli.connect import DEFAULT_DIRECTORY, DirectoryOption, client
from cloud.cli.options import JsonOption
from cloud.cli.output import as_json, console, table, when
from cloud.errors import UserError
from edge_agent.disk import write_whole
from edge_agent.wire.commands import ARGUMENTS, COMMAND_NAMES, CommandName
from edge_agent.wire.ids import is_slug
from fleet.client.client import Client
from fleet.client.command_schemas import CommandIn, CommandOut
from fleet.commands.machine import OPEN_STATES

commands = typer.Typer(
    no_args_is_help=True, help="Commands: restart, diagnostics, logs, sampling, resend."
)

POLL_S = 0.5
PAGE = 1000
MAX_WAIT_S = 86_400.0
FAILED = 1
"""Exit code of `--wait` when a command did not end as done."""


@commands.command("send")
def send(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(COMMAND_NAMES)}.")],
    device: Annotated[
        list[str] | None, typer.Option("--device", help="Id of a device, repeatable.")
    ] = None,
    query: Annotated[
        str, typer.Option(help="Devices that match, e.g. 'profile == \"pi-5\" and online'.")
    ] = "",
    group: Annotated[str, typer.Option(help="Devices of a group.")] = "",
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="ARGUMENT=VALUE of the command, repeatable: lines=500."),
    ] = None,
    expires: Annotated[
        float, typer.Option(help="Seconds until a device that is away does it no more.")
    ] = 3600.0,
    timeout: Annotated[float, typer.Option(help="Seconds that a device has for it.")] = 120.0,
    reason: Annotated[str, typer.Option(help="For the audit.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until every command has ended.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --wait: file for what one device sends."),
    ] = None,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    json: JsonOption = False,
) -> None:
    """Ask devices for a command; exit code 1 when --wait saw one that was not done."""
    if output is not None and (not wait or len(device or []) != 1):
        raise UserError("--output takes what one device sends: give --wait and one --device")
    request = CommandIn(
        name=_known(name),
        arguments=_arguments(name, setting or []),
        devices=device or [],
        query=_query(query, group),
        expires_in_s=expires,
        timeout_s=timeout,
        reason=reason,
    )
    with client(directory) as api:
        batch = api.ask_devices(request)
        if not json:
            which = batch.items[0].device if batch.total == 1 else f"{batch.total} devices"
            one = f"command {batch.items[0].id}" if batch.total == 1 else f"batch {batch.batch}"
            console.print(f"asked {which} for {name}: {one}", soft_wrap=True)
        if not wait:
            if json:
                as_json(batch)
            return
        ended = _wait(api, batch.batch, MAX_WAIT_S)
        if output is not None and ended[0].attachment:
            write_whole(output, api.command_attachment(ended[0].id))
    if json:
        as_json(ended)
    else:
        _say_how(ended, output)
    if any(each.state != "done" for each in ended):
        raise typer.Exit(FAILED)


@commands.command("list")
def list_commands(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    device: str = "",
    state: str = "",
    batch: str = "",
    name: str = "",
    offset: int = 0,
    limit: int = 100,
    json: JsonOption = False,
) -> None:
    """Newest first."""
    with client(directory) as api:
        page = api.commands(
            device=device, state=state, batch=batch, name=name, offset=offset, limit=limit
        )
    if json:
        as_json(page)
        return
    table(
        f"commands {page.offset + 1}–{page.offset + len(page.items)} of {page.total}",
        ("id", "device", "command", "state", "why", "asked", "by"),
        [
            (
                c.id, c.device, c.name, c.state, c.detail or c.reason, when(c.created_at),
                c.created_by,
            )
            for c in page.items
        ],
    )  # fmt: skip


@commands.command("show")
def show(command_id: str, directory: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """How far one command is, and what came of it, as JSON."""
    with client(directory) as api:
        as_json(api.command(command_id))


@commands.command("cancel")
def cancel(
    command_id: Annotated[str, typer.Argument(help="Of a command, or with --batch of a batch.")],
    batch: Annotated[bool, typer.Option("--batch", help="All that were asked together.")] = False,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Take a command back that no device has accepted."""
    with client(directory) as api:
        if batch:
            taken = api.cancel_commands(command_id).cancelled
            console.print(f"took back {taken} commands of batch {command_id}", soft_wrap=True)
            return
        taken_back = api.cancel_command(command_id)
    console.print(f"took back {command_id}: {taken_back.detail}", soft_wrap=True)


@commands.command("download")
def download(
    command_id: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    directory: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Write what the device sent: its log, or its diagnostics."""
    with client(directory) as api:
        write_whole(output, api.command_attachment(command_id))
    console.print(f"wrote {output}", soft_wrap=True)


# ── reading what was typed ───────────────────────────────────────────────────────────────────────


def _known(name: str) -> CommandName:
    for known in COMMAND_NAMES:
        if known == name:
            return known
    raise UserError(f"no command {name[:40]!r}; there are {', '.join(COMMAND_NAMES)}")


def _arguments(name: str, settings: list[str]) -> dict[str, Any]:
    """["lines=500"] → {"lines": 500}: a value is JSON where it can be, else a text."""
    known = list(ARGUMENTS[_known(name)].model_fields)
    arguments: dict[str, Any] = {}
    for pair in settings:
        key, separator, value = pair.partition("=")
        if not separator or key not in known:
            hint = f"; {name} takes {', '.join(known)}" if known else f"; {name} takes nothing"
            raise UserError(f"--set {pair[:80]!r} is not ARGUMENT=VALUE of the command{hint}")
        try:
            arguments[key] = json_module.loads(value)
        except ValueError:
            arguments[key] = value
    return arguments


def _query(query: str, group: str) -> str:
    if not group:
        return query
    if not is_slug(group):
        raise UserError(f"{group[:80]!r} is no group's name")
    return f'group("{group}")' + (f" and ({query})" if query else "")


# ── waiting ──────────────────────────────────────────────────────────────────────────────────────


def _wait(api: Client, batch: str, most_s: float) -> list[CommandOut]:
    """Wait until no command of the batch is open; returns all of them.

    Raises:
        UserError: the time is over.
    """
    deadline = time.monotonic() + most_s
    while any(api.commands(batch=batch, state=state, limit=1).total for state in OPEN_STATES):
        if time.monotonic() > deadline:
            raise UserError(f"batch {batch} has not ended after {most_s:.0f} s")
        time.sleep(POLL_S)
    ended: list[CommandOut] = []
    while True:
        page = api.commands(batch=batch, offset=len(ended), limit=PAGE)
        ended += page.items
        if not page.items or len(ended) >= page.total:
            return ended


def _say_how(ended: list[CommandOut], output: Path | None) -> None:
    if len(ended) > 1:
        counts = Counter(each.state for each in ended)
        console.print(", ".join(f"{count} {state}" for state, count in counts.most_common()))
    for each in ended:
        if each.state != "done" or len(ended) == 1:
            why = f": {each.detail or each.reason}" if each.detail or each.reason else ""
            console.print(f"{each.device}: {each.state}{why}", soft_wrap=True)
    [first, *others] = ended
    if others or first.state != "done":
        return
    if first.attachment and output is None:
        console.print(f"fetch it: skerry commands download {first.id} -o FILE", soft_wrap=True)
    elif first.attachment:
        console.print(f"wrote {output}", soft_wrap=True)
    elif first.result:
        console.print_json(data=first.result)
