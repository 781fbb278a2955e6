"""How assignments ended on this device: each ends once, and is reported at least once.

An outcome is on disk before its report is made, so a refused release is neither tried again nor
reported again after a restart, and a report lost to a crash is made up for.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from edge_agent.update.marks import open_database
from edge_agent.wire.messages import UpdateReport

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outcomes(
    model TEXT, generation INTEGER, target TEXT, report TEXT NOT NULL,
    reported INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (model, generation, target));
"""
_KEPT: Final = 50
"""Outcomes kept a model."""


class Journal:
    """See the module.  Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._database = open_database(path, _SCHEMA)

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

    def settle(self, report: UpdateReport) -> UpdateReport:
        """Keep a final report; the first one of an assignment stands, and is returned."""
        with self._lock:
            self._database.execute(
                "INSERT OR IGNORE INTO outcomes(model, generation, target, report) "
                "VALUES (?, ?, ?, ?)",
                (report.model, report.generation, report.target, report.model_dump_json()),
            )
            self._database.execute(
                "DELETE FROM outcomes WHERE model = ?1 AND reported = 1 AND generation <= "
                "(SELECT max(generation) FROM outcomes WHERE model = ?1) - ?2",
                (report.model, _KEPT),
            )
        return self.outcome(report.model, report.generation, report.target) or report

    def unreported(self) -> list[UpdateReport]:
        """Outcomes whose report may not have been made."""
        with self._lock:
            rows = self._database.execute(
                "SELECT report FROM outcomes WHERE reported = 0 ORDER BY rowid"
            ).fetchall()
        return [UpdateReport.model_validate_json(row[0]) for row in rows]

    def mark_reported(self, report: UpdateReport) -> None:
        with self._lock:
            self._database.execute(
                "UPDATE outcomes SET reported = 1 "
                "WHERE model = ? AND generation = ? AND target = ?",
                (report.model, report.generation, report.target),
            )
