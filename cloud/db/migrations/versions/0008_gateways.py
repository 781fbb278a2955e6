"""gateways: devices that another one speaks for

Revision: 0008, after 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("gateway", sa.String(), nullable=False, server_default=""))
        batch_op.create_index(batch_op.f("ix_devices_gateway"), ["gateway"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_devices_gateway"))
        batch_op.drop_column("gateway")
