"""The audit: who did what to what, in one hash chain.

Rules:
    * Append-only.  `sha256` covers the previous entry's `sha256` and this entry's canonical JSON,
      so a changed, removed or reordered entry breaks the chain from there on.
    * One writer at a time: SQLite's write lock (taken at BEGIN) or an advisory lock of PostgreSQL
      holds from the read of the last entry to the commit.
    * Never secrets or payloads in `detail`.

The chain shows tampering with what is inside; an operator who keeps `head()` elsewhere also
notices entries cut off the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Mapping
from typing import Any

import rfc8785
from pydantic import JsonValue
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from cloud.db.tables import AuditEntry
from cloud.registry.errors import AuditBroken

GENESIS = "0" * 64
"""`previous` of the first entry."""

_ADVISORY_LOCK = 0x534B_4552
"""Key of the PostgreSQL advisory lock; any constant that nothing else uses."""


def append(
    session: Session,
    actor: str,
    action: str,
    subject: str,
    detail: Mapping[str, JsonValue] | None = None,
    *,
    at: float | None = None,
) -> AuditEntry:
    """Add an entry in the session's transaction.

    Args:
        session: an open transaction that may write.
        actor: who, e.g. "token:admin", "device:cam-1", "control-plane".
        action: what, e.g. "model.approved".
        subject: to what, e.g. "model:digits:2".
        detail: JSON values only.
        at: seconds since the epoch; now when left out.

    Raises:
        ValueError: `detail` has no canonical JSON form (NaN, integers beyond 2^53, other types).
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    entry = AuditEntry(
        at=time.time() if at is None else at,
        actor=actor,
        action=action,
        subject=subject,
        detail=dict(detail or {}),
        previous=head(session),
    )
    entry.sha256 = _digest(entry)
    session.add(entry)
    session.flush()
    return entry


def head(session: Session) -> str:
    """Digest of the newest entry; `GENESIS` when there is none."""
    newest = select(AuditEntry.sha256).order_by(AuditEntry.id.desc()).limit(1)
    return session.scalar(newest) or GENESIS


def verify(session: Session) -> int:
    """Recompute the chain; returns how many entries it has.

    Raises:
        AuditBroken: naming the first entry that was changed or lost its predecessor.
    """
    previous = GENESIS
    count = 0
    entries = session.scalars(
        select(AuditEntry).order_by(AuditEntry.id).execution_options(yield_per=1000)
    )
    with contextlib.closing(entries):  # PostgreSQL keeps a cursor open
        for entry in entries:
            if entry.previous != previous:
                raise AuditBroken(entry.id, "does not follow the entry before it")
            if _digest(entry) != entry.sha256:
                raise AuditBroken(entry.id, "does not match its digest")
            previous = entry.sha256
            count += 1
    return count


def _digest(entry: AuditEntry) -> str:
    content: dict[str, Any] = {
        "at": entry.at,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "detail": entry.detail,
    }
    return hashlib.sha256(entry.previous.encode() + rfc8785.dumps(content)).hexdigest()
