"""Puts PostgreSQL under every `Database(path)` of a process, if HEADWATER_TEST_URL names a server to test against.

Python imports this by itself in the processes that tests start: tests/conftest.py puts the folder on their path.
"""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from pathlib import Path


def put_postgres_under(url: str) -> None:
    """Let whoever opens `Database(path)` have a schema of the server at `url` that is named after the path.

    An empty file marks the place, so that whoever looks whether there is a database finds one.
    """
    from headwater.store.database import Database, Sql
    from headwater.store.postgres import PostgresDatabase
    from headwater.store.readings import FILE as READINGS

    def opened(_: type, path: Path | str, *, create: bool = True, busy_timeout_ms: int = 10_000) -> Sql:
        place = Path(path).resolve()
        if place.name == READINGS:  # derived from the records, and a file of its own on either engine
            return object.__new__(Database)
        if create:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        schema = "t_" + sha256(str(place).encode()).hexdigest()[:24]
        database = PostgresDatabase(url, schema=schema, folder=place.parent, create=create, lock_wait_ms=busy_timeout_ms)
        place.touch(mode=0o600)
        database.path = Path(path)  # type: ignore[attr-defined]
        return database

    Database.__new__ = opened  # type: ignore[method-assign, assignment]


if os.environ.get("HEADWATER_TEST_URL") and "pytest" not in sys.modules:
    put_postgres_under(os.environ["HEADWATER_TEST_URL"])
