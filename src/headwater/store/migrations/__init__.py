"""Alembic migrations of the tables that may live on PostgreSQL; SQLite files carry theirs in the stores themselves."""
