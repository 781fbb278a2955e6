"""What time does to commands: sending, sending again, expiry, time-outs.

One sweep is one transaction and bounded by `BATCH` rows of each kind; what is left comes with the
next.  Whoever is killed in between leaves the work to the next sweep: a message in the outbox
leaves once, and a second one changes nothing on the device.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session

from cloud.commands.rows import course_of, write
from cloud.commands.store import queue_messages
from cloud.db.tables import Command as CommandRow
from cloud.db.tables import CommandPart, Device, Outbox
from cloud.registry import audit
from edge_agent.wire.commands import MAX_LIFE_S, Command
from fleet.commands import machine
from fleet.commands.machine import GRACE_S, RESEND_FIRST_S, WAITING_STATES, CommandState

log = logging.getLogger("skerry.commands")

BATCH: Final = 2000
ACTOR: Final = "orchestrator"
_WAITING: Final = tuple(state.value for state in WAITING_STATES)


def sweep(session: Session, now: float) -> None:
    """Everything that is due at `now`; the caller commits."""
    _note_sent(session, now)
    _send_due(session, now)
    _end_overdue(session, now)
    session.execute(delete(CommandPart).where(CommandPart.received_at < now - MAX_LIFE_S))


def _note_sent(session: Session, now: float) -> None:
    """Commands whose message the broker has taken."""
    rows = session.execute(
        select(CommandRow, Outbox.published_at)
        .outerjoin(Outbox, Outbox.id == CommandRow.outbox)
        .where(
            CommandRow.outbox.is_not(None),
            or_(Outbox.id.is_(None), Outbox.published_at.is_not(None)),
        )
        .limit(BATCH)
    ).all()
    for row, published_at in rows:
        row.outbox = None
        at = now if published_at is None else published_at
        if at < row.expires_at:  # else it was dropped, not sent
            write(row, machine.sent(course_of(row), at))


def _send_due(session: Session, now: float) -> None:
    """Commands of devices that are online and have not answered."""
    rows = session.execute(
        select(CommandRow, Device.gateway)
        .join(Device, Device.id == CommandRow.device)
        .where(
            CommandRow.state.in_(_WAITING),
            CommandRow.outbox.is_(None),
            CommandRow.expires_at > now,
            or_(CommandRow.sent_at.is_(None), CommandRow.sent_at <= now - RESEND_FIRST_S),
            Device.online.is_(True),
            Device.revoked.is_(False),
        )
        .order_by(CommandRow.created_at)
        .limit(BATCH)
    ).all()
    due = {row.id: row for row, _ in rows if machine.due(course_of(row), now, online=True)}
    gateways = {row.device: gateway for row, gateway in rows}
    messages = [
        Command(
            id=row.id,
            device=row.device,
            name=row.name,
            arguments=row.arguments,
            issued_at=row.created_at,
            expires_at=row.expires_at,
            timeout_s=row.timeout_s,
        )
        for row in due.values()
    ]
    for command, outbox in queue_messages(session, messages, gateways, now).items():
        due[command].outbox = outbox


def _end_overdue(session: Session, now: float) -> None:
    """Commands that ran out; one entry in the audit for all that ended the same way."""
    waited = and_(
        CommandRow.state.in_(_WAITING),
        or_(
            and_(CommandRow.sent_at.is_(None), CommandRow.expires_at <= now),
            CommandRow.expires_at <= now - GRACE_S,
        ),
    )
    worked = and_(
        CommandRow.state == CommandState.ACCEPTED.value,
        CommandRow.accepted_at + CommandRow.timeout_s <= now - GRACE_S,
    )
    rows = session.scalars(
        select(CommandRow).where(or_(waited, worked)).with_for_update().limit(BATCH)
    ).all()
    ended: Counter[tuple[str, str]] = Counter()
    names: dict[tuple[str, str], CommandRow] = {}
    for row in rows:
        before = course_of(row)
        after = machine.passed(before, now)
        if after == before:
            continue
        write(row, after)
        row.outbox = None
        kind = (after.state.value, row.batch)
        ended[kind] += 1
        names[kind] = row
    for (state, batch), count in ended.items():
        one = names[state, batch]
        audit.append(
            session,
            ACTOR,
            f"command.{state}",
            one.device if count == 1 else f"{count} devices",
            {"batch": batch, "name": one.name, "reason": one.reason},
            at=now,
        )
        log.info("command.ran_out state=%s batch=%s devices=%d", state, batch, count)
