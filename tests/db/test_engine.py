"""How the database is opened."""

from __future__ import annotations

import threading
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from cloud.db.engine import migrate, open_engine, open_sessions, read_only
from cloud.db.tables import Base, Setting


def test_commits_survive_a_power_cut(tmp_path: Path) -> None:
    """Every commit is synced; in WAL anything less may lose the last ones."""
    engine = open_engine(f"sqlite:///{tmp_path / 'skerry.db'}")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2  # FULL
    engine.dispose()


def test_migrations_lead_to_exactly_the_tables(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'skerry.db'}")
    migrate(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrating_twice_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'skerry.db'}"
    with open_sessions(url).begin() as session:
        session.add(Setting(key="kept", value={"a": 1}, updated_at=1.0))
    with open_sessions(url)() as session:
        kept = session.get(Setting, "kept")
        assert kept is not None
        assert kept.value == {"a": 1}


def test_two_writers_queue_up(tmp_path: Path) -> None:
    """Read-then-write transactions of several threads neither fail nor lose an update."""
    sessions = open_sessions(f"sqlite:///{tmp_path / 'skerry.db'}")
    with sessions.begin() as session:
        session.add(Setting(key="count", value={"n": 0}, updated_at=0.0))

    def count_to_ten() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                row = session.get_one(Setting, "count")
                row.value = {"n": row.value["n"] + 1}

    threads = [threading.Thread(target=count_to_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions() as session:
        assert session.get_one(Setting, "count").value == {"n": 40}


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    sessions = open_sessions(f"sqlite:///{tmp_path / 'skerry.db'}")
    with sessions.begin() as writer:
        writer.add(Setting(key="new", value={}, updated_at=0.0))
        writer.flush()
        with read_only(sessions)() as reader:
            assert reader.get(Setting, "new") is None
