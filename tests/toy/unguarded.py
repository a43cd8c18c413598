"""A database behind whose rules somebody went: for tests that a forgery is found out."""

from __future__ import annotations

from headwater.store.database import Database, Sql


def unguard(db: Sql, table: str) -> None:
    """Take the triggers off a table, as whoever holds the file, or owns it on the server, can."""
    if isinstance(db, Database):
        for (name,) in db.query("SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (table,)):
            db.execute(f"DROP TRIGGER {name}")
    else:
        db.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
