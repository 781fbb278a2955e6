"""Alembic's entry: runs on the connection that `cloud.db.engine.migrate` hands over."""

from __future__ import annotations

from alembic import context

from cloud.db.tables import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
