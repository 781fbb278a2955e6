"""A small database whose committed rows can be read while the disk refuses every write.

Rules:
    * A commit that the disk refused half-way leaves a journal from which SQLite restores the rows
      before it answers the next question.  Restoring writes, so a disk that goes on refusing would
      keep what was committed from being read: the rows are remembered in memory, and answer then.
    * A change is remembered once it is committed; inside a transaction the file alone answers.
    * Nothing is ever written to the memory alone: a change that the disk refuses is refused.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

log = logging.getLogger("skerry.disk")

_REFUSED: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL})

Parameters = tuple[Any, ...]


class Surviving:
    """See the module.  Holds an open connection in autocommit mode; for use under a lock."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._inside = False
        self._refused = False
        self._memory: sqlite3.Connection | None = None
        self._remember()

    def close(self) -> None:
        self._database.close()
        self._forget()

    def execute(self, sql: str, parameters: Parameters = ()) -> sqlite3.Cursor:
        """Run one statement.

        Raises:
            sqlite3.Error: the disk refused a change, or the rows are not known without it.
        """
        asks = sql.lstrip().upper().startswith("SELECT")
        try:
            cursor = self._database.execute(sql, parameters)
        except sqlite3.OperationalError as error:
            if not asks or self._inside or self._memory is None or not _is_refused(error):
                raise
            if not self._refused:
                self._refused = True
                log.warning("database.read_from_memory cause=%s", error)
            return self._memory.execute(sql, parameters)
        self._refused = False
        if not asks and not self._inside:
            self._remember()
        return cursor

    def executemany(self, sql: str, rows: Iterable[Parameters]) -> None:
        """Run one statement for each of `rows`, inside a transaction."""
        self._database.executemany(sql, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All changes inside are made, or none.

        Raises:
            sqlite3.Error: the disk refused; what was committed before can still be read.
        """
        self._database.execute("BEGIN IMMEDIATE")
        self._inside = True
        try:
            with self._database:  # commits, or rolls back
                yield
        except sqlite3.Error:
            self._inside = False
            # it may have been made nevertheless; what cannot be read now goes back to what was
            self._remember(else_forget=False)
            raise
        finally:
            self._inside = False
        self._remember()

    def _remember(self, *, else_forget: bool = True) -> None:
        """Copy the rows; where they cannot be read, older ones would be wrong after a change."""
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        try:
            self._database.backup(memory)
        except sqlite3.Error:
            memory.close()
            if else_forget:
                self._forget()
            return
        self._forget()
        self._memory = memory

    def _forget(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _is_refused(error: sqlite3.OperationalError) -> bool:
    return (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF in _REFUSED
