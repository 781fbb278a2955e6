"""The journal of messages that wait for the control plane, in SQLite.

Rules:
    * A row leaves only by the control plane's acknowledgement, or as the oldest of the most
      droppable kind when the journal is full: samples, then metrics, then events.  Reports,
      corrections, measurements and answers to commands are never dropped; a full journal takes no
      more of the last three, but every report.
    * What is never dropped is on the disk when `append` returns; the others survive a kill, and a
      power cut may take the last of them.
    * A row is known by (stream, seq) for ever, and `seq` counts the rows of a stream from 1.  Each
      opening draws a new stream for its new rows: a power cut may take rows that were sent already,
      and their numbers must not come again.
    * What is appended again because a crash came before its writer knew, is journalled once, also
      when the control plane has it already: the digest of the last row of each name is kept.

Thread-safe.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from edge_agent.link.errors import OutboxBroken, OutboxFull
from edge_agent.wire.base import MAX_MESSAGE_BYTES, pack_frame
from edge_agent.wire.errors import MessageTooLarge
from edge_agent.wire.messages import Ack, UplinkHeader
from edge_agent.wire.topics import UplinkKind

DROP_ORDER: Final[tuple[UplinkKind, ...]] = ("sample", "metrics", "event")
DURABLE: Final[frozenset[UplinkKind]] = frozenset({"report", "correction", "measure", "command"})

HEADER_ALLOWANCE: Final = 512
"""Room for the frame's header below the bound of a message."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS rows (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    kind TEXT NOT NULL,
    created_at REAL NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE (stream, seq)
);
CREATE INDEX IF NOT EXISTS rows_by_kind ON rows (kind, id);
CREATE TABLE IF NOT EXISTS last (name TEXT PRIMARY KEY, sha256 TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One message of the journal.  `id` is its place on this device."""

    id: int
    stream: str
    seq: int
    kind: UplinkKind
    created_at: float
    payload: bytes

    def frame(self) -> bytes:
        """The message as it goes on the wire."""
        header = UplinkHeader(stream=self.stream, seq=self.seq, created_at=self.created_at)
        return pack_frame(header, self.payload)


class Outbox:
    """See the module."""

    def __init__(
        self,
        path: Path,
        max_bytes: int = 64_000_000,
        *,
        clock: Callable[[], float] = time.time,
        stream: str | None = None,
    ) -> None:
        """Open or create the journal at `path`.

        Args:
            max_bytes: bound of all payloads together.
            clock: seconds since the epoch.
            stream: for tests; drawn when left out.

        Raises:
            OutboxBroken: the file cannot be opened, or is something else.
        """
        self._max_bytes = max_bytes
        self._clock = clock
        self.stream = stream or uuid.uuid4().hex
        """Stream of the rows that are appended from now on."""
        self.last_seq = 0
        """Sequence number of the newest row of `stream`; 0 before the first."""
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self.dropped: dict[str, int] = {}
        """Rows dropped for room since the opening, by kind."""
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.executescript(_SCHEMA)
            (self._bytes,) = self._db.execute(
                "SELECT coalesce(sum(length(payload)), 0) FROM rows"
            ).fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # a message of SQLite may be no text
            raise OutboxBroken(f"{path}: {error}") from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def on_append(self, listener: Callable[[], None]) -> None:
        """Call `listener` after each append, on the appending thread."""
        self._listeners.append(listener)

    @property
    def used_bytes(self) -> int:
        """Bytes of all payloads that wait."""
        return int(self._bytes)

    def count(self) -> int:
        """Rows that wait.

        Raises:
            OutboxBroken: the journal cannot be read.
        """
        return int(self._select("SELECT count(*) FROM rows")[0][0])

    def counts(self) -> dict[str, int]:
        """Rows that wait, by kind.

        Raises:
            OutboxBroken: the journal cannot be read.
        """
        rows = self._select("SELECT kind, count(*) FROM rows GROUP BY kind")
        return {str(kind): int(count) for kind, count in rows}

    def waits(self, seq: int) -> bool:
        """Whether the row `seq` of the present stream is not committed yet.

        Raises:
            OutboxBroken: the journal cannot be read.
        """
        query = "SELECT 1 FROM rows WHERE stream = ? AND seq = ?"
        return bool(self._select(query, (self.stream, seq)))

    def append(self, kind: UplinkKind, payload: bytes, *, once: str | None = None) -> int:
        """Journal `payload`; returns its sequence number, 0 when it was journalled before.

        Args:
            once: a name; nothing is done when the last payload of this name was the same.

        Raises:
            MessageTooLarge: it could never be sent.
            OutboxFull: no room, and nothing may be dropped for it.
            OutboxBroken: the disk refuses.
        """
        limit = MAX_MESSAGE_BYTES - HEADER_ALLOWANCE
        if len(payload) > limit:
            raise MessageTooLarge(kind, len(payload), limit)
        with self._lock:
            try:
                level = "FULL" if kind in DURABLE else "NORMAL"
                self._db.execute(f"PRAGMA synchronous={level}")
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    if once is not None and not self._is_new(once, payload):
                        self._db.execute("ROLLBACK")
                        return 0
                    freed = self._make_room(kind, len(payload))
                    self._db.execute(
                        "INSERT INTO rows (stream, seq, kind, created_at, payload) "
                        "VALUES (?, ?, ?, ?, ?)",
                        (self.stream, self.last_seq + 1, kind, self._clock(), payload),
                    )
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise OutboxBroken(f"the journal cannot be written: {error}") from error
            self._bytes += len(payload) - freed
            self.last_seq += 1
            seq = self.last_seq
        for listener in self._listeners:
            listener()
        return seq

    def _is_new(self, name: str, payload: bytes) -> bool:
        """Whether the last payload of `name` was another one; this is the last one from here on."""
        sha256 = hashlib.sha256(payload).hexdigest()
        row = self._db.execute(
            "INSERT INTO last VALUES (?1, ?2) "
            "ON CONFLICT DO UPDATE SET sha256 = ?2 WHERE sha256 != ?2 RETURNING 1",
            (name, sha256),
        ).fetchone()
        return row is not None

    def _make_room(self, kind: UplinkKind, length: int) -> int:
        """Drop what may go before `kind`, oldest first; returns the bytes freed."""
        missing = self._bytes + length - self._max_bytes
        freed = 0
        droppable = DROP_ORDER[: DROP_ORDER.index(kind) + 1] if kind in DROP_ORDER else DROP_ORDER
        for victim in droppable:
            while freed < missing:
                row = self._db.execute(
                    "SELECT id, length(payload) FROM rows WHERE kind = ? ORDER BY id LIMIT 1",
                    (victim,),
                ).fetchone()
                if row is None:
                    break
                self._db.execute("DELETE FROM rows WHERE id = ?", (row[0],))
                freed += row[1]
                self.dropped[victim] = self.dropped.get(victim, 0) + 1
        if freed < missing and kind != "report":
            raise OutboxFull(f"no room for {length} bytes of {kind!r} in the journal")
        # reports are let in above the bound: they are small and few, and made by nobody outside
        return freed

    def pending(self, limit: int = 64, *, after: int = 0) -> list[Row]:
        """The oldest rows with an id above `after`, in order.

        Raises:
            OutboxBroken: the journal cannot be read.
        """
        rows = self._select(
            "SELECT id, stream, seq, kind, created_at, payload FROM rows "
            "WHERE id > ? ORDER BY id LIMIT ?",
            (after, limit),
        )
        return [Row(*row) for row in rows]

    def _select(self, query: str, parameters: tuple[int | str, ...] = ()) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, parameters).fetchall()
            except sqlite3.Error as error:
                raise OutboxBroken(f"the journal cannot be read: {error}") from error

    def acknowledge(self, ack: Ack) -> int:
        """Remove what the control plane has committed; returns how many rows that were.

        Raises:
            OutboxBroken: the disk refuses; the rows stay, and come again.
        """
        removed = 0
        with self._lock:
            try:
                # a removal that a power cut undoes costs a second sending, no more
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute("BEGIN IMMEDIATE")
                freed = 0
                for seq in ack.seqs:
                    row = self._db.execute(
                        "DELETE FROM rows WHERE stream = ? AND seq = ? RETURNING length(payload)",
                        (ack.stream, seq),
                    ).fetchone()
                    if row is not None:
                        removed += 1
                        freed += row[0]
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise OutboxBroken(f"the journal cannot be written: {error}") from error
            self._bytes -= freed
        return removed
