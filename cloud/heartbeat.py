"""What each process of the control plane says of itself every few seconds: that it lives, and what
it has counted since its start.  The API shows it to Prometheus."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from sqlalchemy import delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from cloud.db.engine import Sessions
from cloud.db.insert import insert_new
from cloud.db.tables import Setting

log = logging.getLogger("skerry.app")

INTERVAL_S: Final = 5.0
FORGOTTEN_S: Final = 3600.0
"""A process that said nothing for so long is gone for good."""
_PREFIX: Final = "process."
NAME_VARIABLE: Final = "SKERRY_PROCESS"
"""Set by the supervisor: the name of this process among several of its kind."""

Counts = Mapping[str, float]


class Heartbeat:
    """For one thread of one process."""

    def __init__(
        self, sessions: Sessions, kind: str, clock: Callable[[], float] = time.time
    ) -> None:
        """
        Args:
            clock: seconds since the epoch.
        """
        self._sessions = sessions
        self._key = _PREFIX + os.environ.get(NAME_VARIABLE, kind)
        self._clock = clock
        self._next_at = 0.0

    def beat(self, counts: Counts) -> None:
        """Say it, if it is time; trouble with the database is somebody else's to report."""
        now = self._clock()
        if now < self._next_at:
            return
        self._next_at = now + INTERVAL_S
        try:
            with self._sessions.begin() as session:
                put(session, self._key, {"counts": dict(counts)}, now)
        except SQLAlchemyError as error:
            log.warning("heartbeat.lost cause=%s", type(error).__name__)


def put(session: Session, key: str, value: dict[str, object], now: float) -> None:
    """Write a setting that several processes may write, the last one counts."""
    insert_new(session, Setting, [{"key": key, "value": value, "updated_at": now}])
    session.execute(update(Setting).where(Setting.key == key).values(value=value, updated_at=now))


def heartbeats(session: Session) -> dict[str, tuple[float, Counts]]:
    """Process → when it last spoke, and its counts."""
    rows = session.scalars(select(Setting).where(Setting.key.startswith(_PREFIX, autoescape=True)))
    return {
        row.key.removeprefix(_PREFIX): (row.updated_at, row.value.get("counts", {})) for row in rows
    }


def forget_gone(session: Session, now: float) -> None:
    """Remove processes that there were once."""
    session.execute(
        delete(Setting).where(
            Setting.key.startswith(_PREFIX, autoescape=True),
            Setting.updated_at < now - FORGOTTEN_S,
        )
    )
