"""High-water marks: the newest metadata and releases this device ever accepted.

They hold where the metadata cache does not: an emptied cache must not make an older, still valid
set acceptable again.  SQLite with `synchronous=EXTRA`: a mark is on disk before its use.

A damaged file is set aside and the marks begin anew, so that the device can still be updated: what
is left in the metadata cache and the releases that are installed give most of them back.

Fast-forward recovery: marks of a repository are forgotten when the keys of its snapshot or
timestamp role changed in a newer, properly signed root (TUF specification 5.3.11).  The root's own
mark never is: else the root before, whose keys were taken away, came back with an empty cache.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from edge_agent.disk.database import open_durable
from edge_agent.update.rules import check_versions

ROOT_NAME: Final = "root.json"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS metadata(
    repository TEXT, file TEXT, version INTEGER NOT NULL, PRIMARY KEY (repository, file));
CREATE TABLE IF NOT EXISTS online_keys(repository TEXT PRIMARY KEY, digest TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counters(
    model TEXT, profile TEXT, counter INTEGER NOT NULL, PRIMARY KEY (model, profile));
CREATE TABLE IF NOT EXISTS attested(id INTEGER PRIMARY KEY CHECK (id = 1), at REAL NOT NULL);
"""


class Marks:
    """See the module.  Thread-safe."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError: the disk refused.
        """
        self._path = path
        self._lock = threading.Lock()
        with self._disk_errors():
            self._database = open_durable(path, _prepare)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """SQLite's complaints about the disk as the `OSError` that they are."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
            code = errno.ENOSPC if full else errno.EIO
            raise OSError(code, f"{self._path.name}: {error}") from error

    def check_metadata(
        self, repository: str, versions: Mapping[str, int], online_keys: str
    ) -> None:
        """Refuse versions below their marks, then raise the marks.

        Args:
            versions: of `root.json`, `timestamp.json`, `snapshot.json` and every file the snapshot
                names.
            online_keys: digest over the key ids of the snapshot and timestamp roles.

        Raises:
            RolledBack: a file went back, or disappeared from the snapshot.
        """
        with self._disk_errors(), self._lock, self._database as database:
            database.execute("BEGIN IMMEDIATE")
            row = database.execute(
                "SELECT digest FROM online_keys WHERE repository = ?", (repository,)
            ).fetchone()
            if row is not None and row[0] != online_keys:
                database.execute(
                    "DELETE FROM metadata WHERE repository = ? AND file <> ?",
                    (repository, ROOT_NAME),
                )
            marks: dict[str, int] = dict(
                database.execute(
                    "SELECT file, version FROM metadata WHERE repository = ?", (repository,)
                ).fetchall()
            )
            check_versions(repository, versions, marks)
            database.executemany(
                "INSERT OR REPLACE INTO metadata VALUES (?, ?, ?)",
                [(repository, file, version) for file, version in versions.items()],
            )
            database.execute(
                "INSERT OR REPLACE INTO online_keys VALUES (?, ?)", (repository, online_keys)
            )

    def online_keys(self, repository: str) -> str | None:
        """Digest over the online keys of the metadata last accepted; None before the first."""
        with self._disk_errors(), self._lock:
            row = self._database.execute(
                "SELECT digest FROM online_keys WHERE repository = ?", (repository,)
            ).fetchone()
        return str(row[0]) if row else None

    def counter(self, model: str, profile: str) -> int:
        """Highest release counter accepted; 0 before the first."""
        with self._disk_errors(), self._lock:
            row = self._database.execute(
                "SELECT counter FROM counters WHERE model = ? AND profile = ?", (model, profile)
            ).fetchone()
        return int(row[0]) if row else 0

    def raise_counter(self, model: str, profile: str, counter: int) -> None:
        """Remember that `counter` was accepted; never goes down."""
        with self._disk_errors(), self._lock:
            self._database.execute(
                "INSERT INTO counters VALUES (?, ?, ?) ON CONFLICT (model, profile) "
                "DO UPDATE SET counter = max(counter, excluded.counter)",
                (model, profile, counter),
            )

    @property
    def attested_time(self) -> float:
        """Latest time that both repositories vouched for, in seconds since the epoch; 0: none."""
        with self._disk_errors(), self._lock:
            row = self._database.execute("SELECT at FROM attested").fetchone()
        return float(row[0]) if row else 0.0

    def attest(self, at: float) -> None:
        """Raise the attested time."""
        with self._disk_errors(), self._lock:
            self._database.execute(
                "INSERT INTO attested VALUES (1, ?) ON CONFLICT (id) "
                "DO UPDATE SET at = max(at, excluded.at)",
                (at,),
            )

    def forget_time(self) -> None:
        """Attest nothing any more: the keys that vouched for it were taken away."""
        with self._disk_errors(), self._lock:
            self._database.execute("DELETE FROM attested")


def _prepare(database: sqlite3.Connection) -> None:
    database.executescript(_SCHEMA)
