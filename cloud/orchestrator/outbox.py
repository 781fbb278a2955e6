"""The outbox: messages leave after the director has signed what they announce.

Rules:
    * At least once: a message is marked after the broker took it, so a crash in between sends it
      again; retained messages make that harmless, and commands carry an id.
    * In order within a topic.  Of several retained messages on one topic only the newest leaves.
    * A desired twin that is older than its device's row is dropped, so a publisher that slept
      through the end of its lease does not put an old twin over a newer one.
    * What has an expiry is dropped at it, here or by the broker.
    * A message that cannot be signed, or that the broker refuses, waits longer each time and holds
      up its own topic alone; without a connection all of them wait.
    * What left is deleted after a while.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions, read_only
from cloud.db.tables import Device, LabOrder, Outbox
from cloud.devices import history
from cloud.heartbeat import forget_gone
from cloud.lab.assigning import OPEN_STATES, lab_assignments
from cloud.orchestrator import lease
from cloud.orchestrator.ports import NoConnection, Outgoing, Publisher, Signer
from cloud.orchestrator.twins import director_targets
from cloud.signing import DirectorTarget, LabAssignment, SigningError
from edge_agent.wire import topics
from edge_agent.wire.messages import Desired

log = logging.getLogger("skerry.publisher")

BATCH: Final = 500
"""Messages of one call."""
FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 300.0
KEPT_S: Final = 3600.0
"""For so long a message that left can still be looked at."""
PURGE_EVERY_S: Final = 60.0
PURGED: Final = 5000
"""Rows that one call deletes at most."""

Sets = dict[str, tuple[Sequence[DirectorTarget], Sequence[LabAssignment]]]


class OutboxPublisher:
    """Sends what waits, as the one of its kind that holds the lease.  For one thread."""

    def __init__(
        self,
        sessions: Sessions,
        director: Signer,
        *,
        holder: str = "",
        lease_s: float = 10.0,
        clock: lease.LeaseClock = lease.database_clock,
    ) -> None:
        self._sessions = sessions
        self._director = director
        self._holder = holder or lease.new_holder()
        self._lease_s = lease_s
        self._clock = clock
        self._purge_at = 0.0

    def turn(self, publisher: Publisher, now: float) -> int | None:
        """Send up to `BATCH` messages; how many the broker took; None if another one has
        the lease."""
        if now < self._purge_at and not _anything_waits(self._sessions):
            return 0
        with self._sessions.begin() as session:
            if not lease.hold(session, lease.PUBLISHER, self._holder, self._lease_s, self._clock):
                return None
        sent = publish_pending(self._sessions, self._director, publisher, now)
        if now >= self._purge_at:
            self._purge_at = now + PURGE_EVERY_S
            purge(self._sessions, now)
        return sent

    def close(self) -> None:
        """Give the lease back."""
        with self._sessions.begin() as session:
            lease.release(session, lease.PUBLISHER, self._holder)


@dataclass
class _Round:
    """One batch on its way."""

    leaving: list[Outbox] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    failed: list[Outbox] = field(default_factory=list)


def publish_pending(sessions: Sessions, director: Signer, publisher: Publisher, now: float) -> int:
    """Send what waits, up to `BATCH` messages; returns how many the broker took."""
    with read_only(sessions)() as session:
        batch = _waiting(session, now)
        sets = _sets_to_sign(session, batch)
    sent = 0
    try:
        _sign(director, batch, sets)
        sent = _send(publisher, batch, now)
    finally:
        _mark(sessions, batch, now)
    return sent


def purge(sessions: Sessions, now: float) -> None:
    """Delete what left long ago, a bounded number of rows; old history; processes that are gone."""
    with sessions.begin() as session:
        old = select(Outbox.id).where(Outbox.published_at < now - KEPT_S).limit(PURGED)
        session.execute(delete(Outbox).where(Outbox.id.in_(old)))
        forget_gone(session, now)
        history.prune(session, now)


def _anything_waits(sessions: Sessions) -> bool:
    with read_only(sessions)() as session:
        query = select(Outbox.id).where(Outbox.published_at.is_(None)).limit(1)
        return session.scalar(query) is not None


def _waiting(session: Session, now: float) -> _Round:
    waits = Outbox.published_at.is_(None)
    refused = session.execute(
        select(Outbox.id, Outbox.topic, Outbox.retain).where(waits, Outbox.retry_at > now)
    ).all()
    held = {topic for _, topic, _ in refused}
    query = select(Outbox).where(waits, Outbox.retry_at <= now).order_by(Outbox.id).limit(BATCH)
    rows = list(session.scalars(query))
    newest = {row.topic: row.id for row in rows if row.retain}
    batch = _Round(
        done=[
            number for number, topic, retain in refused if retain and number < newest.get(topic, 0)
        ]
    )
    for row in rows:
        replaced = row.retain and newest[row.topic] != row.id
        expired = row.expires_at is not None and row.expires_at <= now
        if replaced or expired:
            batch.done.append(row.id)
        elif row.retain or row.topic not in held:
            batch.leaving.append(row)
    return batch


def _sets_to_sign(session: Session, batch: _Round) -> Sets:
    """What the director is to sign: the sets of devices as they are in the database now.

    Twins that a newer one has replaced are taken out of the batch: they must not leave.
    """
    addressed: dict[int, tuple[str, str]] = {}
    for row in batch.leaving:
        parsed = topics.parse(row.topic) if row.topic != topics.HOST else None
        if parsed is not None and parsed.channel in ("desired", "lab"):
            addressed[row.id] = (parsed.device, parsed.channel)
    ids = {device for device, _ in addressed.values()}
    devices = {row.id: row for row in session.scalars(select(Device).where(Device.id.in_(ids)))}
    measuring = set(
        session.scalars(
            select(LabOrder.device).where(LabOrder.device.in_(ids), LabOrder.state.in_(OPEN_STATES))
        )
    )
    sets: Sets = {}
    leaving: list[Outbox] = []
    for row in batch.leaving:
        device_id, channel = addressed.get(row.id, ("", ""))
        device = devices.get(device_id)
        replaced = channel == "desired" and device is not None and _is_older(row, device)
        if replaced:
            batch.done.append(row.id)
            continue
        leaving.append(row)
        if device_id:
            sets[device_id] = (
                director_targets(session, device) if device is not None else [],
                lab_assignments(session, device_id) if device_id in measuring else [],
            )
    batch.leaving = leaving
    return sets


def _is_older(row: Outbox, device: Device) -> bool:
    return bool(row.payload) and Desired.decode(row.payload).version < device.desired_version


def _sign(director: Signer, batch: _Round, sets: Mapping[str, object]) -> None:
    try:
        director.assign_all(sets)  # type: ignore[arg-type]
    except SigningError as error:
        # one key or the whole directory is at fault: nothing that needs a signature may leave
        log.error("outbox.unsigned messages=%d reason=%s", len(sets), error)
        unsigned = [row for row in batch.leaving if _device_of(row) in sets]
        batch.failed += unsigned
        batch.leaving = [row for row in batch.leaving if _device_of(row) not in sets]


def _device_of(row: Outbox) -> str:
    return topics.parse(row.topic).device if row.topic != topics.HOST else ""


def _send(publisher: Publisher, batch: _Round, now: float) -> int:
    messages = [
        Outgoing(
            row.topic,
            row.payload,
            row.retain,
            None if row.expires_at is None else math.ceil(row.expires_at - now),
        )
        for row in batch.leaving
    ]
    if not messages:
        return 0
    sent = 0
    stopped: set[str] = set()
    for row, problem in zip(batch.leaving, publisher.publish_all(messages), strict=True):
        if problem is None:
            batch.done.append(row.id)
            sent += 1
        elif isinstance(problem, NoConnection):
            stopped.add(str(problem))
        else:
            log.warning("outbox.refused topic=%s reason=%s", row.topic, problem)
            batch.failed.append(row)
    if stopped:
        log.warning("outbox.waits reason=%s", min(stopped))
    return sent


def _mark(sessions: Sessions, batch: _Round, now: float) -> None:
    if not batch.done and not batch.failed:
        return
    with sessions.begin() as session:
        if batch.done:
            session.execute(
                update(Outbox).where(Outbox.id.in_(batch.done)).values(published_at=now)
            )
        for row in batch.failed:
            pause_s = min(FIRST_RETRY_S * 2.0**row.attempts, MAX_RETRY_S)
            session.execute(
                update(Outbox)
                .where(Outbox.id == row.id)
                .values(attempts=row.attempts + 1, retry_at=now + pause_s)
            )


__all__ = ["BATCH", "OutboxPublisher", "publish_pending", "purge"]
