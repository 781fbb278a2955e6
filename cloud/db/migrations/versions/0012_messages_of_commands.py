"""commands name their message by a number as large as the outbox's

Revision: 0012, after 0011.  SQLite's integers have 64 bits already.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("commands", "outbox", type_=sa.BigInteger())


def downgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.alter_column("commands", "outbox", type_=sa.Integer())
