"""Taking a device's identity away.

Revoking is one transaction: from its commit on, ingest, delivery, rollouts and renewals know the
device no more.  The broker follows within seconds (`enforcement`).  A device below a gateway has
no certificate of its own: what is retained for it is cleared by the outbox.
"""

from __future__ import annotations

from pydantic import JsonValue
from sqlalchemy.orm import Session

from cloud.db.tables import Device, Outbox
from cloud.enrolment import ledger
from cloud.errors import Conflict, NotFound
from cloud.registry import audit
from edge_agent.wire import topics


def revoke_device(session: Session, device_id: str, actor: str, reason: str, now: float) -> None:
    """Revoke a device with all of its certificates, in the session's transaction.

    Args:
        reason: of the person, for the audit and whoever looks at the device.
        now: seconds since the epoch.

    Raises:
        NotFound: there is no such device.
        Conflict: it is revoked already.
    """
    row = session.get(Device, device_id, with_for_update=True)
    if row is None:
        raise NotFound(f"no device {device_id!r}")
    if row.revoked:
        raise Conflict(
            f"device {device_id!r} is revoked already; 'skerry claims create --device {device_id}' "
            "lets it come back"
        )
    row.revoked = True
    row.revoked_reason = reason
    row.online = False
    serials: list[JsonValue] = [*ledger.revoke_all(session, device_id, "revoked", now)]
    detail: dict[str, JsonValue] = {"reason": reason, "serials": serials}
    audit.append(session, actor, "device.revoked", device_id, detail, at=now)
    if row.gateway:
        for channel in ("desired", "state"):
            topic = topics.of(device_id, channel, row.gateway)
            session.add(
                Outbox(topic=topic, payload=b"", retain=True, created_at=now, published_at=None)
            )
