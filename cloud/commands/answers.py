"""What devices answer to commands, applied in ingest's transaction.

An attachment comes in parts, and parts and the last word in any order: "done" holds when all of
them are here and the digest is right.  A device writes to its own commands only, and to none that
it has ended.
"""

from __future__ import annotations

import json
import logging
from hashlib import sha256
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from cloud.blobs import Blobs
from cloud.commands.rows import course_of, write
from cloud.db.tables import Command as CommandRow
from cloud.db.tables import CommandPart
from cloud.registry import audit
from edge_agent.wire.base import unpack_frame
from edge_agent.wire.commands import (
    FINAL_REPORTS,
    MAX_RESULT_BYTES,
    PART_BYTES,
    Attachment,
    CommandReport,
    ReportState,
)
from edge_agent.wire.errors import MalformedMessage
from fleet.commands import machine

log = logging.getLogger("skerry.commands")


def apply_report(session: Session, blobs: Blobs, device: str, payload: bytes, now: float) -> None:
    """Apply one answer of `device`.

    Raises:
        WireError: it does not parse, is too large, or is of no command of this device; raised
            before anything is written.
    """
    report, body = unpack_frame(payload, CommandReport)
    result = json.loads(report.model_dump_json(include={"result"}))["result"]
    if len(json.dumps(result)) > MAX_RESULT_BYTES:
        raise MalformedMessage("CommandReport: the result is too large")
    _check_body(report, len(body))
    row = session.get(CommandRow, report.command, with_for_update=True)
    if row is None or row.device != device:
        raise MalformedMessage("CommandReport: no such command of this device")
    if row.certain:
        return
    row.boot = report.boot
    if report.state == "part" and report.attachment is not None:
        _keep(session, row, report.attachment, report.part, bytes(body), now)
        write(row, machine.reported(course_of(row), "part", now))
        _finish_if_whole(session, blobs, row, now)
    elif report.state == "done" and report.attachment is not None:
        row.result = result
        row.attachment = report.attachment.model_dump(mode="json")
        write(row, machine.reported(course_of(row), "accepted", now))
        _finish_if_whole(session, blobs, row, now)
    elif report.state in FINAL_REPORTS:
        row.result = result
        _end(session, row, report.state, now, report.reason, report.detail)
    else:
        write(row, machine.reported(course_of(row), "accepted", now))


def _check_body(report: CommandReport, length: int) -> None:
    """
    Raises:
        MalformedMessage: the payload is not the part that the head says.
    """
    expected = 0
    if report.state == "part":
        attachment = report.attachment
        if attachment is None or report.part >= attachment.parts:
            raise MalformedMessage("CommandReport: a part of nothing")
        last = report.part == attachment.parts - 1
        expected = attachment.length - report.part * PART_BYTES if last else PART_BYTES
    if length != expected:
        raise MalformedMessage(f"CommandReport: {length} bytes where {expected} belong")


def _keep(
    session: Session, row: CommandRow, attachment: Attachment, part: int, data: bytes, now: float
) -> None:
    session.merge(
        CommandPart(
            command=row.id,
            part=part,
            attachment=attachment.model_dump(mode="json"),
            data=data,
            received_at=now,
        )
    )
    session.flush()


def _finish_if_whole(session: Session, blobs: Blobs, row: CommandRow, now: float) -> None:
    """End a command whose last word and parts are all here."""
    if not row.attachment:
        return
    attachment = Attachment.model_validate(row.attachment)
    query = select(CommandPart).where(CommandPart.command == row.id).order_by(CommandPart.part)
    parts = [part for part in session.scalars(query) if part.attachment == row.attachment]
    if len(parts) < attachment.parts:
        return
    data = b"".join(part.data for part in parts)
    session.execute(delete(CommandPart).where(CommandPart.command == row.id))
    if sha256(data).hexdigest() != attachment.sha256:
        row.attachment = {}
        _end(session, row, "failed", now, "attachment_corrupt", "what came has another digest")
        return
    row.blob = blobs.put(data)
    _end(session, row, "done", now, "", "")


def _end(
    session: Session, row: CommandRow, state: ReportState, now: float, reason: str, detail: str
) -> None:
    write(row, machine.reported(course_of(row), state, now, reason, detail))
    row.outbox = None
    told: dict[str, Any] = {"command": row.id, "name": row.name, "reason": reason}
    audit.append(session, f"device:{row.device}", f"command.{state}", row.device, told, at=now)
    log.info("command.ended id=%s device=%s state=%s", row.id, row.device, state)
