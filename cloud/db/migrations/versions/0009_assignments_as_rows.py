"""the state of assignments as rows; when devices changed

Revision: 0009, after 0008.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_rollouts = sa.table("rollouts", sa.column("id", sa.String), sa.column("machine", sa.JSON))
_assignments = sa.table(
    "assignments",
    sa.column("rollout", sa.String),
    sa.column("device", sa.String),
    sa.column("machine", sa.JSON),
)


def upgrade() -> None:
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("changed_at", sa.Double(), nullable=False, server_default="0")
        )
        batch_op.create_index(batch_op.f("ix_devices_changed_at"), ["changed_at"], unique=False)
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.add_column(sa.Column("revision", sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("machine", sa.JSON(), nullable=False, server_default="{}"))
    connection = op.get_bind()
    for rollout, machine in connection.execute(sa.select(_rollouts)).all():
        assignments = (machine.get("rollout") or {}).pop("assignments", None)
        if not isinstance(assignments, dict):
            continue  # nothing that was ever readable
        for device, mine in assignments.items():
            connection.execute(
                sa.update(_assignments)
                .where(_assignments.c.rollout == rollout, _assignments.c.device == device)
                .values(machine=mine)
            )
        connection.execute(
            sa.update(_rollouts).where(_rollouts.c.id == rollout).values(machine=machine)
        )


def downgrade() -> None:
    connection = op.get_bind()
    for rollout, machine in connection.execute(sa.select(_rollouts)).all():
        if "rollout" not in machine:
            continue
        rows = connection.execute(
            sa.select(_assignments.c.device, _assignments.c.machine).where(
                _assignments.c.rollout == rollout
            )
        )
        machine["rollout"]["assignments"] = {row.device: row.machine for row in rows}
        connection.execute(
            sa.update(_rollouts).where(_rollouts.c.id == rollout).values(machine=machine)
        )
    with op.batch_alter_table("assignments", schema=None) as batch_op:
        batch_op.drop_column("machine")
    with op.batch_alter_table("rollouts", schema=None) as batch_op:
        batch_op.drop_column("revision")
    with op.batch_alter_table("devices", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_devices_changed_at"))
        batch_op.drop_column("changed_at")
