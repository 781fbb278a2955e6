"""Which commands were begun and how they were answered, over restarts.

A command is *begun*, then *answered* (its last word is on the disk), then *reported* (the last word
is in the outbox).  A row is kept until its command has expired, so that the same id can never be
done twice; of those that have, the newest `KEPT` stay, should the clock have been wrong.  The
table is bounded: when `MAX_ROWS` commands have not expired, no more are taken.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from edge_agent.disk.database import open_durable

KEPT: Final = 256
"""Commands that are remembered after their expiry."""
MAX_ROWS: Final = 1024

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS commands(
    id TEXT PRIMARY KEY, name TEXT NOT NULL, boot TEXT NOT NULL, at REAL NOT NULL,
    expires_at REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('begun', 'answered', 'reported')), frame BLOB);
"""

Begin = Literal["begun", "known", "full"]


@dataclass(frozen=True, slots=True)
class Begun:
    """A command that was begun and not answered; `boot` is the agent's start that began it."""

    id: str
    name: str
    boot: str


class CommandJournal:
    """See the module.  Thread-safe."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            sqlite3.Error, OSError: the disk refused.
        """
        self._lock = threading.Lock()
        self._database = open_durable(path, _prepare)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def begin(self, command: str, name: str, boot: str, now: float, expires_at: float) -> Begin:
        """Remember that a command is begun, unless it was before, or there is no room for it."""
        with self._lock, self._database as database:
            known = database.execute("SELECT 1 FROM commands WHERE id = ?", (command,)).fetchone()
            if known is not None:
                return "known"
            database.execute(
                "DELETE FROM commands WHERE state = 'reported' AND expires_at <= ? "
                "AND id NOT IN (SELECT id FROM commands ORDER BY at DESC, rowid DESC LIMIT ?)",
                (now, KEPT - 1),
            )
            (rows,) = database.execute("SELECT count(*) FROM commands").fetchone()
            if rows >= MAX_ROWS:
                return "full"
            database.execute(
                "INSERT INTO commands VALUES (?, ?, ?, ?, ?, 'begun', NULL)",
                (command, name, boot, now, expires_at),
            )
            return "begun"

    def answer(self, command: str, frame: bytes) -> None:
        """Keep the last word; it is on the disk when this returns."""
        with self._lock, self._database as database:
            database.execute(
                "UPDATE commands SET state = 'answered', frame = ? "
                "WHERE id = ? AND state = 'begun'",
                (frame, command),
            )

    def reported(self, command: str) -> None:
        """The last word is in the outbox."""
        with self._lock, self._database as database:
            database.execute(
                "UPDATE commands SET state = 'reported', frame = NULL WHERE id = ?", (command,)
            )

    def interrupted(self) -> list[Begun]:
        """Commands that were begun and not answered, oldest first."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, name, boot FROM commands WHERE state = 'begun' ORDER BY at, rowid"
            ).fetchall()
        return [Begun(str(id_), str(name), str(boot)) for id_, name, boot in rows]

    def unreported(self) -> list[tuple[str, bytes]]:
        """Last words that are not known to be in the outbox, by command."""
        with self._lock:
            rows = self._database.execute(
                "SELECT id, frame FROM commands WHERE state = 'answered' ORDER BY at, rowid"
            ).fetchall()
        return [(str(command), bytes(frame)) for command, frame in rows]

    def counts(self) -> dict[str, int]:
        """Rows by state."""
        with self._lock:
            rows = self._database.execute(
                "SELECT state, count(*) FROM commands GROUP BY state"
            ).fetchall()
        return {str(state): int(count) for state, count in rows}


def _prepare(database: sqlite3.Connection) -> None:
    database.executescript(_SCHEMA)
