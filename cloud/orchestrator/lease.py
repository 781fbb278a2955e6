"""Leadership: one process of a kind at a time, by a lease in the database.

The time is the database's, so that clocks of several machines do not matter.  Whoever holds the
lease in a transaction has its row locked until the commit, so what it writes there cannot be
committed after somebody else took over.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from cloud.db.insert import insert_new
from cloud.db.tables import Setting

ORCHESTRATOR: Final = "orchestrator.lease"
PUBLISHER: Final = "publisher.lease"

LeaseClock = Callable[[Session], float]
"""Seconds since the epoch, the same for all who want the lease."""


def new_holder() -> str:
    """A name that nobody else has."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def database_clock(session: Session) -> float:
    """The database's time; SQLite's is this machine's."""
    if session.get_bind().dialect.name == "sqlite":
        return time.time()
    now: float = session.scalar(text("SELECT extract(epoch FROM clock_timestamp())::float8"))
    return now


def hold(session: Session, key: str, holder: str, lease_s: float, clock: LeaseClock) -> bool:
    """Take or renew the lease in the session's transaction; False while another holds it."""
    now = clock(session)
    if session.get(Setting, key) is None:
        insert_new(session, Setting, [{"key": key, "value": {}, "updated_at": now}])
    row = session.scalar(
        select(Setting)
        .where(Setting.key == key)
        .with_for_update(skip_locked=True)
        .execution_options(populate_existing=True)
    )
    if row is None:  # the holder is in the middle of its transaction
        return False
    until = float(row.value.get("until", 0.0))
    mine = row.value.get("holder") == holder
    if not mine and now < until:
        return False
    if not mine or until - now < lease_s / 2:
        row.value = {"holder": holder, "until": now + lease_s}
        row.updated_at = now
    return True


def release(session: Session, key: str, holder: str) -> None:
    """Give the lease back, so that the next holder need not wait."""
    row = session.get(Setting, key, with_for_update=True)
    if row is not None and row.value.get("holder") == holder:
        row.value = {"holder": "", "until": 0.0}
