"""signed evidence of gates; figures of one device at hand

Revision: 0013, after 0012.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_COLUMNS = ("previous", "sha256", "keyid", "signature")


def upgrade() -> None:
    with op.batch_alter_table("gate_decisions", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.add_column(sa.Column(name, sa.String(), nullable=False, server_default=""))
    with op.batch_alter_table("metrics", schema=None) as batch_op:
        batch_op.create_index("metrics_device", ["device", "model", "at"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("metrics", schema=None) as batch_op:
        batch_op.drop_index("metrics_device")
    with op.batch_alter_table("gate_decisions", schema=None) as batch_op:
        for name in _COLUMNS:
            batch_op.drop_column(name)
