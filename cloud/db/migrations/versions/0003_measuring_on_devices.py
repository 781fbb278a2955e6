"""measuring on devices

Revision: 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("variants", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("predicted", sa.Boolean(), nullable=False, server_default=sa.false())
        )
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("certificate_pem", sa.String(), nullable=False, server_default="")
        )
    op.create_table(
        "lab_blobs",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("length", sa.Integer(), nullable=False),
        sa.Column("info", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256"),
    )
    op.create_table(
        "lab_orders",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("order", sa.LargeBinary(), nullable=False),
        sa.Column("order_sha256", sa.String(), nullable=False),
        sa.Column("blobs", sa.JSON(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("signature", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("lab_orders", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_lab_orders_device"), ["device"], unique=False)
    op.create_table(
        "predictor_points",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("precision", sa.String(), nullable=False),
        sa.Column("variant", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("scaled_ms", sa.Double(), nullable=False),
        sa.Column("measured_ms", sa.Double(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("predictor_points", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_predictor_points_profile"), ["profile"], unique=False)


def downgrade() -> None:
    op.drop_table("predictor_points")
    op.drop_table("lab_orders")
    op.drop_table("lab_blobs")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_column("certificate_pem")
    with op.batch_alter_table("variants", schema=None) as batch_op:
        batch_op.drop_column("predicted")
