"""How the database is opened."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text

from cloud.db.engine import open_engine


def test_commits_survive_a_power_cut(tmp_path: Path) -> None:
    """Every commit is synced; in WAL anything less may lose the last ones."""
    engine = open_engine(f"sqlite:///{tmp_path / 'skerry.db'}")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2  # FULL
    engine.dispose()
