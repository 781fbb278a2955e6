"""What the audit holds against a device: an identity that two machines use, what it refused.

A device writes to the audit too, by its events; that its identity is cloned, only we say.
"""

from __future__ import annotations

import logging
from typing import Final

from pydantic import JsonValue
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from cloud.db.tables import AuditEntry, Device
from cloud.registry import audit

log = logging.getLogger("skerry.ingest")

ALARMIST: Final = "control-plane"
CLONED: Final = "device.identity_cloned"
LIED: Final = "device.profile_differs"
"""A device says that it has another profile than it was enrolled with."""
CONTESTED: Final = "device.renewal_contested"
"""Certificates were asked for two keys of one device, and neither was used."""
FLOODS: Final = "device.floods"
REFUSED: Final = ("device.twin.refused", "device.medium.refused")
"""Events of a device that was handed something unreadable."""

_SHOWN: Final = 10
AGAIN_S: Final = 3600.0
"""Seconds after which what still holds is an alarm once more."""
_CLONED = and_(AuditEntry.action == CLONED, AuditEntry.actor == ALARMIST)


def cloned_since(session: Session, device: str, since: float) -> bool:
    """Whether there was an alarm over a cloned identity after `since`, seconds since the epoch."""
    query = select(AuditEntry.id).where(AuditEntry.subject == device, _CLONED)
    return session.scalar(query.where(AuditEntry.at > since).limit(1)) is not None


def note_profile(session: Session, row: Device, said: str, now: float) -> None:
    """A birth came of a device that says that its profile is `said`; the claim's is what counts."""
    if said in ("", row.profile):
        return
    told = select(AuditEntry.id).where(
        AuditEntry.subject == row.id,
        AuditEntry.action == LIED,
        AuditEntry.actor == ALARMIST,
        AuditEntry.at > now - AGAIN_S,
    )
    if session.scalar(told.limit(1)) is not None:
        return
    log.error("ingest.profile_differs device=%s enrolled=%s", row.id, row.profile)
    detail: dict[str, JsonValue] = {"enrolled": row.profile, "says": said[:64]}
    audit.append(session, ALARMIST, LIED, row.id, detail, at=now)


def alarms_of(session: Session, device: str) -> list[AuditEntry]:
    """The newest alarms of a device, the newest first."""
    ours = and_(
        AuditEntry.action.in_((CLONED, LIED, CONTESTED, FLOODS)), AuditEntry.actor == ALARMIST
    )
    kinds = or_(ours, AuditEntry.action.in_(REFUSED))
    query = select(AuditEntry).where(AuditEntry.subject == device, kinds)
    return list(session.scalars(query.order_by(AuditEntry.id.desc()).limit(_SHOWN)))
