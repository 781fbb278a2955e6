"""Opening the database: SQLite in WAL by default, PostgreSQL by URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import Session, sessionmaker

from cloud.devices.history import note_changes
from cloud.errors import OperatorError

POOL: Final = 8
"""Connections to a server that a process keeps; as many more open in a crowd."""
LOCK_TIMEOUT_MS: Final = 15_000
_MIGRATING: Final = 0x534B_4D49
"""Key of PostgreSQL's advisory lock; any constant that nothing else uses."""

event.listen(Session, "before_flush", note_changes)  # of every session: history has no gaps

Sessions = sessionmaker[Session]
"""Factory of sessions; `with sessions.begin() as session:` is one transaction."""


def open_engine(url: str) -> Engine:
    """Engine for `url`; SQLite gets WAL, durable commits, foreign keys and a 15 s busy time-out.

    Raises:
        OperatorError: `url` is none, or the driver of its database is not installed.
    """
    if not url.startswith("sqlite"):
        return _open_server(url)
    engine = create_engine(url, connect_args={"timeout": 15, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        # The driver must not open transactions by itself: `_begin` does, and takes the write lock
        # at once, so that two writers queue up instead of failing half-way with "database is
        # locked".
        connection.isolation_level = None
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


def _open_server(url: str) -> Engine:
    if url.startswith("postgresql:"):
        url = url.replace("postgresql:", "postgresql+psycopg:", 1)
    try:
        # a statement that waits for a lock longer than this is in a deadlock of ours, or behind a
        # transaction whose process the network lost; it fails, and is tried again
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=POOL,
            max_overflow=POOL,
            connect_args={"connect_timeout": 10, "options": f"-c lock_timeout={LOCK_TIMEOUT_MS}"},
        )
    except (ArgumentError, NoSuchModuleError) as error:
        raise OperatorError(f"SKERRY_DATABASE_URL: {error}") from error
    except ModuleNotFoundError as error:
        raise OperatorError(
            f"SKERRY_DATABASE_URL: {error.name} is missing; install it ('pip install "
            "skerry[postgres]') or leave the URL out for SQLite"
        ) from error


def migrate(engine: Engine) -> None:
    """Bring the schema up to the newest revision; a no-op when it is there already."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # processes that start together wait for the first
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATING})
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
