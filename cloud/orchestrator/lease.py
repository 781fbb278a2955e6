"""Leadership: one orchestrator at a time, by a lease in the database."""

from __future__ import annotations

from sqlalchemy.orm import Session

from cloud.db.tables import Setting

_KEY = "orchestrator.lease"


def hold(session: Session, holder: str, now: float, lease_s: float) -> bool:
    """Take or renew the lease in the session's transaction; False while another holds it."""
    row = session.get(Setting, _KEY, with_for_update=True)
    if row is None:
        row = Setting(key=_KEY, value={}, updated_at=now)
        session.add(row)
    until = float(row.value.get("until", 0.0))
    mine = row.value.get("holder") == holder
    if not mine and now < until:
        return False
    if not mine or until - now < lease_s / 2:
        row.value = {"holder": holder, "until": now + lease_s}
        row.updated_at = now
    return True


def release(session: Session, holder: str, now: float) -> None:
    """Give the lease back, so that the next holder need not wait."""
    row = session.get(Setting, _KEY, with_for_update=True)
    if row is not None and row.value.get("holder") == holder:
        row.value = {"holder": "", "until": 0.0}
        row.updated_at = now
