"""Rows that are read by their number, each once, although several transactions write them.

Numbers are given out before the commit.  So on PostgreSQL a row may become visible after one with
a higher number, and a reader that remembers the highest it saw would miss it.  Writers therefore
share a lock until they commit, and the reader learns up to which number it may read at a moment
when nobody holds it.  SQLite has one writer at a time and needs none of this.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import InstrumentedAttribute, Session

_KEY: Final = 0x534B_4F52
"""Key of the advisory lock; any constant that nothing else uses."""


def share(session: Session) -> None:
    """Called by a writer before it adds rows; holds until its transaction ends."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": _KEY})


def settled(session: Session, number: InstrumentedAttribute[int]) -> int:
    """The highest number below which no row will appear any more; 0 without rows.

    Call it in a transaction of its own, that ends at once: writers wait meanwhile.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _KEY})
    return session.scalar(select(number).order_by(number.desc()).limit(1)) or 0
