"""How the database is opened."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from cloud.db.engine import Sessions, migrate, open_engine, open_sessions, read_only
from cloud.db.tables import Base, Setting
from cloud.errors import OperatorError
from tests.postgres import PostgresServer


def test_commits_survive_a_power_cut(tmp_path: Path) -> None:
    """Every commit is synced; in WAL anything less may lose the last ones."""
    engine = open_engine(f"sqlite:///{tmp_path / 'skerry.db'}")
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2  # FULL
    engine.dispose()


def test_migrations_lead_to_exactly_the_tables(database_url: str) -> None:
    engine = open_engine(database_url)
    migrate(engine)
    with engine.connect() as connection:

        def is_meant(item: Any, _name: object, kind: str, *_: object) -> bool:
            """Not an index that only the other kind of database gets."""
            wanted = item._ddl_if if kind == "index" else None
            return wanted is None or wanted.dialect == connection.dialect.name

        context = MigrationContext.configure(connection, opts={"include_object": is_meant})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_migrating_twice_changes_nothing(database_url: str, sessions: Sessions) -> None:
    with sessions.begin() as session:
        session.add(Setting(key="kept", value={"a": 1}, updated_at=1.0))
    again = open_sessions(database_url)
    with again() as session:
        assert session.get_one(Setting, "kept").value == {"a": 1}
    again.kw["bind"].dispose()


def test_processes_that_start_together_migrate_once(postgres: PostgresServer) -> None:
    url = postgres.database(migrated=False)
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(open_sessions, [url] * 4))
    for sessions in opened:
        with sessions() as session:
            assert session.get(Setting, "none") is None
        sessions.kw["bind"].dispose()
    postgres.drop(url)


@pytest.mark.parametrize("url", ["nonsense", "oracle9://host/db"])
def test_an_address_that_is_none_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(OperatorError, match=r"^SKERRY_DATABASE_URL: .*$"):
        open_engine(url)


def test_two_writers_queue_up(sessions: Sessions) -> None:
    """Read-then-write transactions of several threads neither fail nor lose an update."""
    with sessions.begin() as session:
        session.add(Setting(key="count", value={"n": 0}, updated_at=0.0))

    def count_to_ten() -> None:
        for _ in range(10):
            with sessions.begin() as session:
                row = session.get_one(Setting, "count", with_for_update=True)
                row.value = {"n": row.value["n"] + 1}

    threads = [threading.Thread(target=count_to_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions() as session:
        assert session.get_one(Setting, "count").value == {"n": 40}


def test_a_reader_does_not_wait_for_a_writer(sessions: Sessions) -> None:
    with sessions.begin() as writer:
        writer.add(Setting(key="new", value={}, updated_at=0.0))
        writer.flush()
        with read_only(sessions)() as reader:
            assert reader.get(Setting, "new") is None
