"""The outbox: messages leave in order, after the director has signed what they announce.

A message is marked after the broker took it, so a crash in between sends it again; retained
messages make that harmless.  Of several retained messages on one topic only the newest leaves; a
desired twin that is older than the device's row is dropped, so an orchestrator that slept through
the end of its lease does not put an old twin over a newer one.  What has an expiry is dropped at
it, here or by the broker.
"""

from __future__ import annotations

import logging
import math

from sqlalchemy import select, update

from cloud.db.engine import Sessions, read_only
from cloud.db.tables import Device, Outbox
from cloud.errors import OperatorError
from cloud.lab.assigning import lab_assignments
from cloud.orchestrator.ports import Publisher, Signer
from cloud.orchestrator.twins import director_targets
from cloud.signing import SigningError
from edge_agent.wire import topics
from edge_agent.wire.messages import Desired

log = logging.getLogger("skerry.orchestrator")

BATCH = 500
"""Messages of one call."""


def publish_pending(sessions: Sessions, director: Signer, publisher: Publisher, now: float) -> int:
    """Send what waits, up to `BATCH` messages; returns how many the broker took.

    Stops at the first message that cannot be signed or that the broker does not take: it will be
    tried again.
    """
    with read_only(sessions)() as session:
        query = select(Outbox).where(Outbox.published_at.is_(None)).order_by(Outbox.id).limit(BATCH)
        waiting = list(session.scalars(query))
    newest = {row.topic: row.id for row in waiting if row.retain}
    done: list[int] = []
    sent = 0
    try:
        for row in waiting:
            if row.retain and newest[row.topic] != row.id:
                done.append(row.id)
                continue
            if row.expires_at is not None and row.expires_at <= now:
                done.append(row.id)
                continue
            try:
                if not _sign(sessions, director, row):
                    done.append(row.id)
                    continue
                left_s = None if row.expires_at is None else math.ceil(row.expires_at - now)
                publisher.publish(row.topic, row.payload, 1, row.retain, expiry_s=left_s)
            except (OperatorError, SigningError) as error:
                log.warning("outbox.waits topic=%s reason=%s", row.topic, error)
                break
            done.append(row.id)
            sent += 1
    finally:
        if done:
            with sessions.begin() as session:
                session.execute(update(Outbox).where(Outbox.id.in_(done)).values(published_at=now))
    return sent


def _sign(sessions: Sessions, director: Signer, row: Outbox) -> bool:
    """For a desired twin or a measure order: sign the device's set as it is in the database now.

    Returns:
        False for a twin that a newer one has replaced: it must not leave.
    """
    parsed = topics.parse(row.topic) if row.topic != topics.HOST else None
    if parsed is None or parsed.channel not in ("desired", "lab"):
        return True
    with read_only(sessions)() as session:
        device = session.get(Device, parsed.device)
        targets = director_targets(session, device) if device is not None else []
        measured = lab_assignments(session, parsed.device)
    if (
        parsed.channel == "desired"
        and device is not None
        and Desired.decode(row.payload).version < device.desired_version
    ):
        return False
    director.assign(parsed.device, targets, measured)
    return True
