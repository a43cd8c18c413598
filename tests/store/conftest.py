"""Makes the toy home and made-up segments importable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from headwater.store.database import Database, Sql

Opener = Callable[[], Sql]


@pytest.fixture(params=["sqlite", "postgres"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same new database again and again, on either engine."""
    opened: list[Database] = []
    if request.param == "postgres":
        from headwater.store.postgres import PostgresDatabase

        url, schema = request.getfixturevalue("postgres").url(), f"test_{uuid4().hex[:12]}"

        def make() -> Sql:
            opened.append(PostgresDatabase(url, schema=schema))  # type: ignore[arg-type]
            return opened[-1]
    else:

        def make() -> Sql:
            opened.append(Database(tmp_path / "headwater.db"))
            return opened[-1]

    yield make
    for database in opened:
        database.close()
