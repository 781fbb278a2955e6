"""what queries ask of devices, beside their documents

Revision: 0011, after 0010.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from cloud.devices.compact import compact

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("facts", sa.JSON(), nullable=False, server_default="{}"))
        batch_op.drop_index("ix_devices_profile")
    connection = op.get_bind()
    devices = sa.table(
        "devices",
        sa.column("id", sa.String()),
        sa.column("inventory", sa.JSON()),
        sa.column("reported", sa.JSON()),
        sa.column("facts", sa.JSON()),
    )
    for row in connection.execute(sa.select(devices)).all():
        facts = compact(row.inventory, row.reported)
        connection.execute(devices.update().where(devices.c.id == row.id).values(facts=facts))
    if connection.dialect.name == "sqlite":
        op.create_index(
            "devices_scan",
            "devices",
            ["id", "profile", "online", "revoked", "labels", "facts"],
            unique=False,
        )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.drop_index("devices_scan", "devices")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.create_index("ix_devices_profile", ["profile"], unique=False)
        batch_op.drop_column("facts")
