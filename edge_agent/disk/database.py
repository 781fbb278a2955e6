"""SQLite files of the device: opened, checked, and set aside when they are damaged.

A damaged file costs what it held, never the start of the agent: what is served counts for more than
any row.  A full or failing disk, or another process that holds the file, is no damage: the file
stays where it is.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edge_agent.disk import make_directories

log = logging.getLogger("skerry.disk")

_DAMAGE: Final = frozenset(
    {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_ERROR,  # our own statements fail: the tables are not ours any more
    }
)
_PARTS: Final = ("", "-journal", "-wal", "-shm")


class Damaged(sqlite3.DatabaseError):
    """Rows that this program never wrote."""


def is_damage(error: BaseException | None) -> bool:
    """Whether an error over a database means that the file itself is bad."""
    if isinstance(error, Damaged | UnicodeDecodeError):  # even SQLite's message has such names
        return True
    if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.ProgrammingError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # of Python's module, over text that is no UTF-8
        return isinstance(error, sqlite3.OperationalError)
    return code & 0xFF in _DAMAGE  # without the extension


def set_aside(path: Path, cause: BaseException) -> None:
    """Rename a database, with what SQLite keeps beside it, to `NAME.damaged`; one is kept.

    Raises:
        OSError: the disk refused.
    """
    aside = path.with_name(f"{path.name}.damaged")
    log.error("database.set_aside kept=%s cause=%s", aside, " ".join(str(cause).split()))
    for suffix in _PARTS:
        part, kept = (each.with_name(each.name + suffix) for each in (path, aside))
        try:
            part.replace(kept)
        except FileNotFoundError:
            kept.unlink(missing_ok=True)  # it belongs to the one before


def open_durable(path: Path, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    """A connection in autocommit mode that syncs every commit; for use under the owner's lock.

    Args:
        path: of the database; directories above it are made.
        prepare: makes the tables that are missing, and checks the rows that are there; raises
            `Damaged` over rows that make no sense.  Called once more, with a new file, when the
            file is damaged.

    Raises:
        sqlite3.Error: the disk refused, or another process holds the file.
        OSError: the disk refused.
    """
    make_directories(path.parent)
    try:
        return _open(path, prepare)
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if not is_damage(error):
            raise
        set_aside(path, error)
    return _open(path, prepare)


def _open(path: Path, prepare: Callable[[sqlite3.Connection], None]) -> sqlite3.Connection:
    with contextlib.ExitStack() as stack:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=10
        )
        stack.callback(connection.close)
        connection.execute("PRAGMA journal_mode=DELETE")
        # FULL does not sync the removal of the rollback journal: a power cut could undo a commit
        connection.execute("PRAGMA synchronous=EXTRA")
        _check(connection)
        prepare(connection)
        stack.pop_all()
        return connection


def _check(connection: sqlite3.Connection) -> None:
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict == "ok":
        return
    # of a page that it could not read, SQLite says so in words
    unread = re.search(r"error code=(\d+)", verdict)
    if unread and int(unread[1]) & 0xFF not in _DAMAGE:
        refused = sqlite3.OperationalError(verdict)
        refused.sqlite_errorcode = int(unread[1])
        raise refused
    raise Damaged(verdict)
