"""How assignments ended on this device, and why they wait: each is told once.

An outcome is on disk before its report is made, so a refused release is neither tried again nor
reported again after a restart, and a report lost to a crash is made up for.  What ends together, as
a group does, is kept in one transaction.  What an assignment waits for is kept in the same way, a
reason at a time, until it ends; so is the last desired twin that could not be read.

An assignment is open again when the device lost what it had installed, or when its operator says
so.  Whether updates are paused is kept here, too.

A damaged file is set aside and the journal begins anew.  Outcomes are lost with it: what serves is
found healthy again, what was refused is tried once more, what waits says so again, and a pause is
over.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from edge_agent.disk.database import Damaged, open_durable
from edge_agent.update.errors import Paused
from edge_agent.update.ports import Clock
from edge_agent.wire.messages import FINAL_PHASES, UpdateReport

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes(
    model TEXT, generation INTEGER, target TEXT, report TEXT NOT NULL,
    reported INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (model, generation, target));
CREATE TABLE IF NOT EXISTS waits(
    model TEXT, generation INTEGER, target TEXT, reason TEXT, report TEXT NOT NULL,
    reported INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (model, generation, target, reason));
CREATE TABLE IF NOT EXISTS unread_twin(
    id INTEGER PRIMARY KEY CHECK (id = 1), sha256 TEXT NOT NULL, detail TEXT NOT NULL,
    at REAL NOT NULL, reported INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS paused(id INTEGER PRIMARY KEY CHECK (id = 1));
"""
_KEPT: Final = 50
"""Outcomes kept a model."""

_ROWS: Final = TypeAdapter(list[tuple[str, int, str, str, int, float]])
_WAITS: Final = TypeAdapter(list[tuple[str, int, str, str, str, int]])
_UNREAD: Final = TypeAdapter(list[tuple[str, str, float, int]])


@dataclass(frozen=True, slots=True)
class UnreadTwin:
    """A desired twin that could not be read.

    Attributes:
        sha256: of its bytes.
        detail: why, in one line.
        at: when it came, seconds since the epoch.
        reported: whether the control plane was told.
    """

    sha256: str
    detail: str
    at: float
    reported: bool


def _prepare(database: sqlite3.Connection) -> None:
    """Make the tables; an unreadable report would end every pass of the updater."""
    database.executescript(_SCHEMA)
    columns = database.execute("PRAGMA table_info(outcomes)").fetchall()
    if "at" not in {name for _, name, *_ in columns}:  # of an agent that kept no times
        database.execute("ALTER TABLE outcomes ADD COLUMN at REAL NOT NULL DEFAULT 0")
    rows = database.execute(
        "SELECT model, generation, target, report, reported, at FROM outcomes"
    ).fetchall()
    try:
        for _, _, _, report, _, _ in _ROWS.validate_python(rows, strict=True):
            UpdateReport.model_validate_json(report)
        waits = database.execute(
            "SELECT model, generation, target, reason, report, reported FROM waits"
        ).fetchall()
        for _, _, _, _, report, _ in _WAITS.validate_python(waits, strict=True):
            UpdateReport.model_validate_json(report)
        unread = database.execute("SELECT sha256, detail, at, reported FROM unread_twin").fetchall()
        _UNREAD.validate_python(unread, strict=True)
    except ValidationError as error:
        raise Damaged("an outcome makes no sense") from error
    database.execute("SELECT id FROM paused").fetchall()


class Journal:
    """See the module.  Thread-safe."""

    def __init__(self, path: Path, clock: Clock = time.time) -> None:
        """
        Args:
            clock: seconds since the epoch.
        """
        self._clock = clock
        self._lock = threading.Lock()
        self._database = open_durable(path, _prepare)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def outcome(self, model: str, generation: int, target: str) -> UpdateReport | None:
        """How this assignment ended; None when it has not."""
        with self._lock:
            row = self._database.execute(
                "SELECT report FROM outcomes WHERE model = ? AND generation = ? AND target = ?",
                (model, generation, target),
            ).fetchone()
        return UpdateReport.model_validate_json(row[0]) if row else None

    def settle(self, reports: Sequence[UpdateReport]) -> list[UpdateReport]:
        """Keep final reports, all or none; the first one of an assignment stands.

        Returns:
            What stands, in the order of `reports`.
        """
        at = self._clock()
        with self._lock, self._database as database:
            database.execute("BEGIN IMMEDIATE")
            for report in reports:
                database.execute(
                    "INSERT OR IGNORE INTO outcomes(model, generation, target, report, at) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (report.model, report.generation, report.target, report.model_dump_json(), at),
                )
                database.execute(
                    "DELETE FROM waits WHERE model = ? AND generation = ? AND target = ?",
                    (report.model, report.generation, report.target),
                )
                database.execute(
                    # by when they came: generations begin anew with a new control plane
                    "DELETE FROM outcomes WHERE model = ?1 AND reported = 1 AND rowid NOT IN "
                    "(SELECT rowid FROM outcomes WHERE model = ?1 ORDER BY rowid DESC LIMIT ?2)",
                    (report.model, _KEPT),
                )
        return [
            self.outcome(report.model, report.generation, report.target) or report
            for report in reports
        ]

    def keep_wait(self, report: UpdateReport) -> bool:
        """Keep why an assignment waits, or takes longer; whether that is to be told.

        What other assignments of the model waited for is forgotten.
        """
        assignment = (report.model, report.generation, report.target)
        with self._lock, self._database as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "DELETE FROM waits WHERE model = ? AND (generation, target) != (?, ?)", assignment
            )
            row = database.execute(
                "INSERT OR IGNORE INTO waits(model, generation, target, reason, report) "
                "VALUES (?, ?, ?, ?, ?) RETURNING 1",
                (*assignment, report.reason, report.model_dump_json()),
            ).fetchone()
        return row is not None

    def reopen(self, model: str, target: str, *, healthy: bool) -> None:
        """Forget how assignments of `target` ended: those that went well, or those that did not."""
        with self._lock:
            self._database.execute(
                "DELETE FROM outcomes WHERE model = ? AND target = ? AND "
                "(json_extract(report, '$.phase') = 'healthy') = ?",
                (model, target, healthy),
            )

    def last_refusal(self) -> tuple[UpdateReport, float] | None:
        """The newest outcome that was a refusal, a failure or a roll-back, and when it was.

        The time is in seconds since the epoch; 0 when it is not known.
        """
        with self._lock:
            row = self._database.execute(
                "SELECT report, at FROM outcomes WHERE json_extract(report, '$.phase') IN "
                "('rejected', 'failed', 'rolled_back') ORDER BY at DESC, rowid DESC LIMIT 1"
            ).fetchone()
        return (UpdateReport.model_validate_json(row[0]), float(row[1])) if row else None

    @property
    def paused(self) -> bool:
        """Whether the device's operator paused updates."""
        with self._lock:
            return self._database.execute("SELECT 1 FROM paused").fetchone() is not None

    def set_paused(self, paused: bool) -> None:
        """Remember it over restarts.  The next pause is told again."""
        with self._lock, self._database as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "INSERT OR IGNORE INTO paused VALUES (1)" if paused else "DELETE FROM paused"
            )
            if not paused:
                database.execute("DELETE FROM waits WHERE reason = ?", (Paused.reason,))

    # ── what was told ────────────────────────────────────────────────────────────────────────────

    def unreported(self) -> list[UpdateReport]:
        """Outcomes and waits whose report may not have been made."""
        with self._lock:
            rows = self._database.execute(
                "SELECT report FROM (SELECT 0 AS final, rowid AS id, report FROM waits "
                "WHERE reported = 0 UNION ALL SELECT 1, rowid, report FROM outcomes "
                "WHERE reported = 0) ORDER BY final, id"
            ).fetchall()
        return [UpdateReport.model_validate_json(row[0]) for row in rows]

    def mark_reported(self, report: UpdateReport) -> None:
        """The report of an outcome, or of a wait, was made."""
        assignment = (report.model, report.generation, report.target)
        with self._lock:
            if report.phase in FINAL_PHASES:
                self._database.execute(
                    "UPDATE outcomes SET reported = 1 "
                    "WHERE model = ? AND generation = ? AND target = ?",
                    assignment,
                )
            else:
                self._database.execute(
                    "UPDATE waits SET reported = 1 "
                    "WHERE model = ? AND generation = ? AND target = ? AND reason = ?",
                    (*assignment, report.reason),
                )

    # ── the twin ─────────────────────────────────────────────────────────────────────────────────

    def unread_twin(self) -> UnreadTwin | None:
        """The last desired twin, when it could not be read."""
        with self._lock:
            row = self._database.execute(
                "SELECT sha256, detail, at, reported FROM unread_twin"
            ).fetchone()
        return UnreadTwin(row[0], row[1], row[2], bool(row[3])) if row else None

    def keep_unread_twin(self, twin: UnreadTwin | None) -> None:
        """Keep it; None: the last one could be read."""
        with self._lock:
            if twin is None:
                self._database.execute("DELETE FROM unread_twin")
            else:
                self._database.execute(
                    "INSERT OR REPLACE INTO unread_twin VALUES (1, ?, ?, ?, ?)",
                    (twin.sha256, twin.detail, twin.at, int(twin.reported)),
                )
