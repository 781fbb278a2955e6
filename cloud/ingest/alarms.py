"""What the audit holds against a device: an identity that two machines use, what it refused.

A device writes to the audit too, by its events; that its identity is cloned, only we say.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from cloud.db.tables import AuditEntry

ALARMIST: Final = "control-plane"
CLONED: Final = "device.identity_cloned"
REFUSED: Final = ("device.twin.refused", "device.medium.refused")
"""Events of a device that was handed something unreadable."""

_SHOWN: Final = 10
_CLONED = and_(AuditEntry.action == CLONED, AuditEntry.actor == ALARMIST)


def cloned_since(session: Session, device: str, since: float) -> bool:
    """Whether there was an alarm over a cloned identity after `since`, seconds since the epoch."""
    query = select(AuditEntry.id).where(AuditEntry.subject == device, _CLONED)
    return session.scalar(query.where(AuditEntry.at > since).limit(1)) is not None


def alarms_of(session: Session, device: str) -> list[AuditEntry]:
    """The newest alarms of a device, the newest first."""
    kinds = or_(_CLONED, AuditEntry.action.in_(REFUSED))
    query = select(AuditEntry).where(AuditEntry.subject == device, kinds)
    return list(session.scalars(query.order_by(AuditEntry.id.desc()).limit(_SHOWN)))
