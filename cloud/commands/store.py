"""Asking for commands, and taking them back."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue, ValidationError
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from cloud.commands.rows import course_of, write
from cloud.db.tables import Command as CommandRow
from cloud.db.tables import Device, Outbox
from cloud.devices import listing
from cloud.errors import Conflict, NotFound, UserError
from cloud.registry import audit
from edge_agent.wire import topics
from edge_agent.wire.base import describe
from edge_agent.wire.commands import ARGUMENTS, MAX_COMMAND_BYTES, Command
from fleet.client.command_schemas import CommandIn
from fleet.commands import machine
from fleet.commands.errors import CommandEnded
from fleet.commands.machine import OPEN_STATES, WAITING_STATES

log = logging.getLogger("skerry.commands")

MAX_DEVICES: Final = 10_000
"""Devices of one request."""
MAX_OPEN: Final = 16
"""Commands of one device that have not ended."""
NAMED_IN_AUDIT: Final = 100
_CHUNK: Final = 1000
_OPEN: Final = tuple(state.value for state in OPEN_STATES)
_WAITING: Final = tuple(state.value for state in WAITING_STATES)


@dataclass(frozen=True, slots=True)
class Asked:
    """What was made of a request.

    Attributes:
        batch: names all commands of the request.
        ids: of the commands, in the order of the devices' ids.
    """

    batch: str
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Target:
    id: str
    online: bool
    gateway: str


def ask(session: Session, request: CommandIn, actor: str, *, most: int, now: float) -> Asked:
    """Ask devices for a command, all or none; the caller commits.

    Args:
        most: devices that the caller may command at once.

    Raises:
        NotFound: a device that is named does not exist.
        UserError: no device is meant, too many are, or one cannot be commanded now; or arguments
            that the command does not take.
    """
    arguments = _arguments(request)
    targets = _targets(session, request, now)
    if len(targets) > most:
        raise UserError(
            f"{len(targets)} devices are meant; at most {most:,} can be told "
            f"{request.name!r} at once"
        )
    _require_room(session, [target.id for target in targets])
    batch = secrets.token_hex(16)
    commands = [
        Command(
            id=secrets.token_hex(16),
            device=target.id,
            name=request.name,
            arguments=arguments,
            issued_at=now,
            expires_at=now + request.expires_in_s,
            timeout_s=request.timeout_s,
        )
        for target in targets
    ]
    if len(commands[0].encode()) > MAX_COMMAND_BYTES:
        raise UserError(f"the command is larger than {MAX_COMMAND_BYTES} bytes")
    online = {target.id: target.gateway for target in targets if target.online}
    reached = [command for command in commands if command.device in online]
    outbox = queue_messages(session, reached, online, now)
    session.execute(
        insert(CommandRow),
        [
            {
                "id": command.id, "batch": batch, "device": command.device, "name": command.name,
                "arguments": arguments, "state": machine.CommandState.QUEUED.value,
                "certain": False, "reason": "", "detail": "", "result": {}, "boot": "",
                "created_by": actor, "created_at": now, "expires_at": command.expires_at,
                "timeout_s": command.timeout_s, "outbox": outbox.get(command.id), "attempts": 0,
                "sent_at": None, "accepted_at": None, "ended_at": None, "attachment": {},
                "blob": None,
            }
            for command in commands
        ],
    )  # fmt: skip
    audit.append(
        session,
        actor,
        "command.asked",
        commands[0].device if len(commands) == 1 else f"{len(commands)} devices",
        {
            "batch": batch,
            "command": request.name,
            "arguments": arguments,
            "expires_in_s": request.expires_in_s,
            "reason": request.reason,
            "query": request.query,
            "devices": [command.device for command in commands[:NAMED_IN_AUDIT]],
        },
        at=now,
    )
    log.info("command.asked batch=%s name=%s devices=%d", batch, request.name, len(commands))
    return Asked(batch, tuple(command.id for command in commands))


def queue_messages(
    session: Session, commands: Sequence[Command], gateways: Mapping[str, str], now: float
) -> dict[str, int]:
    """Put the messages of commands into the outbox; returns the outbox's row of each.

    Args:
        gateways: who speaks for each device; empty for one that speaks for itself.
    """
    if not commands:
        return {}
    ids = session.scalars(
        insert(Outbox).returning(Outbox.id, sort_by_parameter_order=True),
        [
            {
                "topic": topics.of(command.device, "command", gateways[command.device]),
                "payload": command.encode(),
                "retain": False,
                "created_at": now,
                "published_at": None,
                "expires_at": command.expires_at,
            }
            for command in commands
        ],
    )
    return dict(zip((command.id for command in commands), ids, strict=True))


def find(session: Session, command_id: str) -> CommandRow:
    """
    Raises:
        NotFound: there is no such command.
    """
    row = session.get(CommandRow, command_id)
    if row is None:
        raise NotFound(f"no command {command_id[:64]!r}")
    return row


def cancel(session: Session, command_id: str, actor: str, *, now: float) -> CommandRow:
    """Take a command back; the caller commits.

    Raises:
        NotFound: there is no such command.
        Conflict: it has ended, or the device is at it.
    """
    row = session.get(CommandRow, command_id, with_for_update=True)
    if row is None:
        raise NotFound(f"no command {command_id[:64]!r}")
    try:
        _take_back(session, row, actor, now)
    except CommandEnded as error:
        raise Conflict(f"command {command_id}: {error}") from error
    audit.append(
        session, actor, "command.cancelled", row.device, {"command": row.id, "name": row.name},
        at=now,
    )  # fmt: skip
    return row


def cancel_batch(session: Session, batch: str, actor: str, *, now: float) -> int:
    """Take back all commands of a batch that no device has answered; returns how many.

    Raises:
        NotFound: there is no such batch.
    """
    if session.scalar(select(CommandRow.id).where(CommandRow.batch == batch).limit(1)) is None:
        raise NotFound(f"no batch {batch[:64]!r} of commands")
    query = select(CommandRow).where(CommandRow.batch == batch, CommandRow.state.in_(_WAITING))
    rows = session.scalars(query.with_for_update()).all()
    for row in rows:
        _take_back(session, row, actor, now)
    if rows:
        audit.append(
            session, actor, "command.cancelled", f"{len(rows)} devices",
            {"batch": batch, "name": rows[0].name}, at=now,
        )  # fmt: skip
    return len(rows)


def _take_back(session: Session, row: CommandRow, actor: str, now: float) -> None:
    course = course_of(row)
    if row.outbox is not None and row.sent_at is None:
        message = session.get(Outbox, row.outbox, with_for_update=True)
        if message is not None and message.published_at is None:
            session.delete(message)  # nobody has seen it
        else:
            course = machine.sent(course, now)
    write(row, machine.cancelled(course, now, actor))
    row.outbox = None


# ── what is meant ────────────────────────────────────────────────────────────────────────────────


def _arguments(request: CommandIn) -> dict[str, JsonValue]:
    try:
        given = ARGUMENTS[request.name].model_validate(request.arguments)
    except ValidationError as error:
        raise UserError(f"arguments of {request.name}: {describe(error)}") from error
    arguments: dict[str, JsonValue] = json.loads(given.model_dump_json(exclude_unset=True))
    return arguments


def _targets(session: Session, request: CommandIn, now: float) -> list[_Target]:
    if request.query:
        return _matching(session, request.query, now)
    wanted = list(dict.fromkeys(request.devices))
    found: dict[str, _Target] = {}
    for chunk in _chunks(wanted):
        rows = session.execute(
            select(Device.id, Device.online, Device.revoked, Device.gateway).where(
                Device.id.in_(chunk)
            )
        )
        for id_, online, revoked, gateway in rows:
            if revoked:
                raise UserError(f"device {id_} is revoked; nothing can be sent to it")
            found[id_] = _Target(id_, online, gateway)
    missing = next((id_ for id_ in wanted if id_ not in found), None)
    if missing is not None:
        raise NotFound(f"no device {missing!r}")
    return [found[id_] for id_ in sorted(found)]


def _matching(session: Session, text: str, now: float) -> list[_Target]:
    condition = listing.meant(session, text, now)
    rows = session.execute(
        select(Device.id, Device.online, Device.gateway)
        .where(condition, Device.revoked.is_(False))
        .order_by(Device.id)
        .limit(MAX_DEVICES + 1)
    ).all()
    if not rows:
        raise UserError("no device matches the query")
    if len(rows) > MAX_DEVICES:
        raise UserError(f"more than {MAX_DEVICES:,} devices match; narrow the query")
    return [_Target(*row) for row in rows]


def _require_room(session: Session, devices: Sequence[str]) -> None:
    """
    Raises:
        Conflict: a device has too many commands open already.
    """
    for chunk in _chunks(devices):
        full = session.scalar(
            select(CommandRow.device)
            .where(CommandRow.device.in_(chunk), CommandRow.state.in_(_OPEN))
            .group_by(CommandRow.device)
            .having(func.count() >= MAX_OPEN)
            .limit(1)
        )
        if full is not None:
            raise Conflict(
                f"device {full} has {MAX_OPEN} commands open; wait, or cancel some of them"
            )


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]
