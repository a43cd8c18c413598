"""Puts PostgreSQL under every `Database(path)` of a process, if HEADWATER_TEST_URL names a server to test against.

Python imports this by itself in the processes that tests start: tests/conftest.py puts the folder on their path.
"""

from __future__ import annotations

import os
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

FILES_ALWAYS = ("readings.db",)
"""What can be made again from the records and the log, and is a file of the home wherever they are."""


def let_a_server_take_over() -> None:
    """From now on `Database(path)` gives a schema named after the path, while HEADWATER_TEST_URL names a server.

    An empty file marks the place, so that whoever looks whether there is a database finds one.
    """
    from headwater.store.database import Database
    from headwater.store.postgres import PostgresDatabase

    def opened(kind: type, path: Path | str, *, create: bool = True, busy_timeout_ms: int = 10_000) -> Any:
        url = os.environ.get("HEADWATER_TEST_URL")
        if not url or Path(path).name in FILES_ALWAYS:
            return object.__new__(kind)
        place = Path(path).resolve()
        if create:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        schema = "t_" + sha256(str(place).encode()).hexdigest()[:24]
        database: Any = PostgresDatabase(
            url, schema=schema, folder=place.parent, create=create, lock_wait_ms=busy_timeout_ms
        )
        place.touch(mode=0o600)
        database.path = Path(path)
        return database

    Database.__new__ = opened  # type: ignore[method-assign, assignment]


if os.environ.get("HEADWATER_TEST_URL") and "pytest" not in sys.modules:
    let_a_server_take_over()
