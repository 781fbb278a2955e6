"""numbers beyond 31 bits

Revision: 0007, after 0006.  SQLite's integers have 64 bits already.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

COUNTED = ("metrics", "outbox", "assignment_events", "audit")
"""Tables whose rows are numbered as they come."""


def upgrade() -> None:
    _alter(sa.BigInteger(), "bigint")


def downgrade() -> None:
    _alter(sa.Integer(), "integer")


def _alter(kind: sa.types.TypeEngine[int], name: str) -> None:
    if op.get_bind().dialect.name == "sqlite":
        return
    op.alter_column("inbox", "seq", type_=kind)
    for table in COUNTED:
        op.alter_column(table, "id", type_=kind)
        op.execute(f"ALTER SEQUENCE {table}_id_seq AS {name}")
