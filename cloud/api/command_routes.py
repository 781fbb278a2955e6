"""Commands to devices: ask, list, show, take back, download."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from sqlalchemy import func, select

from cloud.api.auth import Operator, Viewer
from cloud.api.context import ContextDep
from cloud.commands import store
from cloud.db.tables import Command
from cloud.errors import NotFound
from fleet.client.command_schemas import (
    CommandBatch,
    CommandIn,
    CommandOut,
    CommandPage,
    CommandsCancelled,
    CommandStateName,
)
from fleet.client.schemas import RowNumber

router = APIRouter(prefix="/v1/commands")

SHOWN: Final = 100
MAX_RESTARTED_BY_OPERATOR: Final = 100
"""Devices that an operator may restart at once; more is an outage, and an administrator's word."""

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]
_SUFFIX: Final = {"application/zip": "zip", "text/plain": "txt"}


@router.post("", status_code=201)
def ask_commands(body: CommandIn, context: ContextDep, caller: Operator) -> CommandBatch:
    """Ask devices for a command, all of them or none."""
    restricted = body.name == "restart" and caller.role != "admin"
    most = MAX_RESTARTED_BY_OPERATOR if restricted else store.MAX_DEVICES
    with context.writers.begin() as session:
        asked = store.ask(session, body, caller.name, most=most, now=context.clock())
        rows = session.scalars(
            select(Command).where(Command.id.in_(asked.ids[:SHOWN])).order_by(Command.device)
        )
        return CommandBatch(
            batch=asked.batch, total=len(asked.ids), items=[_out(row) for row in rows]
        )


@router.get("")
def list_commands(
    context: ContextDep,
    _: Viewer,
    device: Annotated[str, Query(max_length=64)] = "",
    state: CommandStateName | None = None,
    batch: Annotated[str, Query(max_length=64)] = "",
    name: Annotated[str, Query(max_length=32)] = "",
    offset: RowNumber = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> CommandPage:
    """Newest first."""
    query = select(Command)
    for column, wanted in (
        (Command.device, device), (Command.state, state), (Command.batch, batch),
        (Command.name, name),
    ):  # fmt: skip
        if wanted:
            query = query.where(column == wanted)
    with context.readers() as session:
        total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
        newest = query.order_by(Command.created_at.desc(), Command.id)
        rows = session.scalars(newest.offset(offset).limit(limit)).all()
        return CommandPage(total=total, offset=offset, items=[_out(row) for row in rows])


@router.get("/{command_id}")
def show_command(command_id: Id, context: ContextDep, _: Viewer) -> CommandOut:
    with context.readers() as session:
        return _out(store.find(session, command_id))


@router.get("/{command_id}/attachment")
def download_attachment(command_id: Id, context: ContextDep, _: Operator) -> Response:
    """What the device sent: its log, or its diagnostics.  Not for viewers: a log tells much."""
    with context.readers() as session:
        row = store.find(session, command_id)
        if row.blob is None:
            raise NotFound(f"command {command_id} has nothing to download")
        data = context.services.blobs.get(row.blob)
        media_type = str(row.attachment.get("media_type", ""))
        name = f"{row.device}-{row.name}-{row.id[:8]}.{_SUFFIX.get(media_type, 'bin')}"
    return Response(
        data,
        media_type=media_type if media_type in _SUFFIX else "application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Content-Type-Options": "nosniff",
        },
    )


@router.post("/{command_id}/cancel")
def cancel_command(command_id: Id, context: ContextDep, caller: Operator) -> CommandOut:
    with context.writers.begin() as session:
        return _out(store.cancel(session, command_id, caller.name, now=context.clock()))


@router.post("/batches/{batch}/cancel")
def cancel_batch(batch: Id, context: ContextDep, caller: Operator) -> CommandsCancelled:
    """Take back what no device has answered yet."""
    with context.writers.begin() as session:
        cancelled = store.cancel_batch(session, batch, caller.name, now=context.clock())
    return CommandsCancelled(batch=batch, cancelled=cancelled)


def _out(row: Command) -> CommandOut:
    fields = {name: getattr(row, name) for name in CommandOut.model_fields if name != "attachment"}
    attachment = dict(row.attachment) if row.blob is not None else {}
    return CommandOut.model_validate({**fields, "attachment": attachment})
