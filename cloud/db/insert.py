"""Rows that may be there already: INSERT … ON CONFLICT DO NOTHING, on either database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from cloud.db.tables import Base


def insert_new(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert `rows`; those whose key exists change nothing.

    Two writers of one key wait for each other and do not fail.
    """
    if not rows:
        return
    on_sqlite = session.get_bind().dialect.name == "sqlite"
    insert = sqlite.insert(table) if on_sqlite else postgresql.insert(table)
    session.execute(insert.on_conflict_do_nothing(), list(rows))
