"""What Alembic runs: migrations on the connection that `PostgresDatabase.migrate` has open, in its transaction."""

from __future__ import annotations

from alembic import context

config = context.config
context.configure(
    connection=config.attributes["connection"],
    version_table="revisions",
    version_table_schema=config.attributes["schema"],
)
context.run_migrations()
