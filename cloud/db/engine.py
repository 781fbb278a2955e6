"""Opening the database: SQLite in WAL by default, PostgreSQL by URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session, sessionmaker

from fleet.devices.facts import version_text

Sessions = sessionmaker[Session]
"""Factory of sessions; `with sessions.begin() as session:` is one transaction."""


def open_engine(url: str) -> Engine:
    """Engine for `url`; SQLite gets WAL, durable commits, foreign keys and a 15 s busy time-out."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": 15, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: `_begin` does, and takes the write lock
        # at once, so that two writers queue up instead of failing half-way with "database is
        # locked".
        connection.isolation_level = None
        connection.create_function("skerry_version_key", 1, version_text, deterministic=True)
        cursor = connection.cursor()
        # FULL: what is committed is acknowledged to devices, which then forget it, and generations
        # that devices have seen may not be given out again after a power cut
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def migrate(engine: Engine) -> None:
    """Bring the schema up to the newest revision; a no-op when it is there already."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def open_sessions(url: str) -> Sessions:
    """Sessions on a migrated database."""
    engine = open_engine(url)
    migrate(engine)
    return sessionmaker(engine, expire_on_commit=False)


def read_only(sessions: Sessions) -> Sessions:
    """The same sessions for readers: on SQLite they do not take the write lock."""
    engine = sessions.kw["bind"]
    return sessionmaker(engine.execution_options(read_only=True), expire_on_commit=False)
