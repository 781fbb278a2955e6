"""identities: batches of claims, every certificate of a device

Revision: 0006, after 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("claims", schema=None) as batch_op:
        for name in ("batch", "device", "key_sha256"):
            batch_op.add_column(sa.Column(name, sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("refusals", sa.Integer(), nullable=False, server_default="0"))
        batch_op.create_index(batch_op.f("ix_claims_batch"), ["batch"], unique=False)
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("revoked_reason", sa.String(), nullable=False, server_default="")
        )
    op.create_table(
        "certificates",
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("pem", sa.String(), nullable=False),
        sa.Column("key_sha256", sa.String(), nullable=False),
        sa.Column("issued_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False, server_default=""),
        sa.Column("enforced_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("serial"),
    )
    with op.batch_alter_table("certificates", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_certificates_device"), ["device"], unique=False)
        pending = sa.text("revoked_at IS NOT NULL AND enforced_at IS NULL")
        batch_op.create_index(
            "certificates_pending",
            ["revoked_at"],
            unique=False,
            sqlite_where=pending,
            postgresql_where=pending,
        )
    op.execute(
        "INSERT INTO certificates (serial, device, pem, key_sha256, issued_at, expires_at)"
        " SELECT certificate_serial, id, certificate_pem, '', enrolled_at, certificate_expires_at"
        " FROM devices WHERE certificate_serial <> ''"
    )


def downgrade() -> None:
    op.drop_table("certificates")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_column("revoked_reason")
    with op.batch_alter_table("claims", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_claims_batch"))
        for name in ("refusals", "key_sha256", "device", "batch"):
            batch_op.drop_column(name)
