"""The certificates that devices were given, and which of them count no more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from cloud.db.tables import Certificate
from fleet.enrolment.ca import Certificate as Issued

SUPERSEDED: Final = "superseded"
"""Reason of an old certificate after a renewal: its device goes on with the new one."""
REPLACED: Final = "replaced"
"""Reason of certificates of a device that was enrolled anew."""

LISTED_AFTER_END_S: Final = 2 * 86_400.0
"""An expired certificate stays on the list so long: the broker's clock may be behind."""
KEPT_AFTER_END_S: Final = 30 * 86_400.0


def enter(session: Session, issued: Issued, device: str, now: float) -> None:
    """Note a certificate that is about to be given to `device`."""
    session.add(
        Certificate(
            serial=issued.serial,
            device=device,
            pem=issued.pem,
            key_sha256=issued.key_sha256,
            issued_at=now,
            expires_at=issued.expires_at,
            revoked_at=None,
            enforced_at=None,
        )
    )


def live_of(session: Session, device: str) -> Sequence[Certificate]:
    """Certificates of `device` that are not revoked, the newest first."""
    query = select(Certificate).where(
        Certificate.device == device, Certificate.revoked_at.is_(None)
    )
    return session.scalars(query.order_by(Certificate.issued_at.desc())).all()


def revoke_all(
    session: Session, device: str, reason: str, now: float, *, but: str = ""
) -> list[str]:
    """Revoke what is live of `device`, except serial `but`; returns the serials."""
    serials = [row.serial for row in live_of(session, device) if row.serial != but]
    session.execute(
        update(Certificate)
        .where(Certificate.serial.in_(serials))
        .values(revoked_at=now, reason=reason, enforced_at=None)
    )
    return serials


def listed(session: Session, now: float) -> list[str]:
    """Serials of the revocation list."""
    query = select(Certificate.serial).where(
        Certificate.revoked_at.is_not(None), Certificate.expires_at > now - LISTED_AFTER_END_S
    )
    return list(session.scalars(query.order_by(Certificate.serial)))


def forget_ended(session: Session, now: float) -> None:
    """Drop rows of certificates that ended long ago."""
    session.execute(delete(Certificate).where(Certificate.expires_at < now - KEPT_AFTER_END_S))
