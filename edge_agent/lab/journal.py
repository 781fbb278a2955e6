"""Which orders were begun and how they were answered, over restarts.

An order is *begun*, then *answered* (its signed result is on the disk), then *reported* (the result
is in the outbox).  What is found begun at the start of the agent was interrupted; what is found
answered is put into the outbox again, which takes the same bytes once.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edge_agent.disk.database import open_durable

KEPT: Final = 256
"""Orders that are remembered."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS orders(
    id TEXT PRIMARY KEY, sha256 TEXT NOT NULL, at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('begun', 'answered', 'reported')), frame BLOB);
"""


@dataclass(frozen=True, slots=True)
class Begun:
    """An order that was begun and not answered."""

    id: str
    sha256: str


class LabJournal:
    """See the module.  Thread-safe."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        """
        Raises:
            sqlite3.Error, OSError: the disk refused.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._database = open_durable(path, _prepare)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def begin(self, order: str, sha256: str) -> bool:
        """Remember that an order is begun; False when it was begun before."""
        with self._lock, self._database as database:
            cursor = database.execute(
                "INSERT OR IGNORE INTO orders VALUES (?, ?, ?, 'begun', NULL)",
                (order, sha256, self._clock()),
            )
            database.execute(
                "DELETE FROM orders WHERE state = 'reported' AND id NOT IN "
                "(SELECT id FROM orders ORDER BY at DESC LIMIT ?)",
                (KEPT,),
            )
            return cursor.rowcount == 1

    def answer(self, order: str, frame: bytes) -> None:
        """Keep the signed answer; it is on the disk when this returns."""
        with self._lock, self._database as database:
            database.execute(
                "UPDATE orders SET state = 'answered', frame = ? WHERE id = ? AND state = 'begun'",
                (frame, order),
            )

    def reported(self, order: str) -> None:
        """The answer is in the outbox."""
        with self._lock, self._database as database:
            database.execute(
                "UPDATE orders SET state = 'reported', frame = NULL WHERE id = ?", (order,)
            )

    def interrupted(self) -> list[Begun]:
        """Orders that were begun and not answered, oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, sha256 FROM orders WHERE state = 'begun' ORDER BY at"
            ).fetchall()
        return [Begun(str(order), str(sha256)) for order, sha256 in rows]

    def unreported(self) -> list[tuple[str, bytes]]:
        """Answers that are not known to be in the outbox, by order."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, frame FROM orders WHERE state = 'answered' ORDER BY at"
            ).fetchall()
        return [(str(order), bytes(frame)) for order, frame in rows]


def _prepare(database: sqlite3.Connection) -> None:
    database.executescript(_SCHEMA)
