"""Bringing a module's tables to the newest step, on any engine: what was applied, whether it still is what it was.

A module declares its steps in order and never edits one that was released. Which were applied, with the digest of
each as it was written, stands in the table `migrations` of the same database, so that every engine refuses what is
newer than this version or was changed since in the same words. Knows nothing of what the statements mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from headwater.core.errors import InvalidError, InvariantError

if TYPE_CHECKING:
    from headwater.store.database import Sql

MIGRATIONS = """
CREATE TABLE IF NOT EXISTS migrations (
  module TEXT NOT NULL,
  step INTEGER NOT NULL,
  digest TEXT NOT NULL,
  PRIMARY KEY (module, step)
)
"""


def bring_up(
    db: Sql,
    where: str,
    module: str,
    steps: Sequence[str],
    translate: Callable[[str], Iterable[str]],
    adopted: Callable[[], int] = lambda: 0,
) -> None:
    """Apply the steps of `module` that were not applied yet, all of them or none.

    Args:
        where: how the database is called in an error.
        translate: the engine's statements for one of ours.
        adopted: how many steps' tables are there without a record of them; asked once, when there is no record.

    Raises:
        InvalidError: ``database_newer``, it was written by a newer version, with more steps than given here.
        InvariantError: ``migration_changed``, a step that was applied has since been edited.
    """
    digests = [sha256(step.encode()).hexdigest() for step in steps]
    if _applied(db, where, module, digests) == len(steps):
        return
    with db.transaction():
        # Asked again under the write lock: another process may have come first.
        first = _applied(db, where, module, digests)
        there = adopted() if first == 0 else 0
        for number in range(first, len(steps)):
            for statement in statements(steps[number]) if number >= there else ():
                for translated in translate(statement):
                    db.execute(translated)
            db.execute("INSERT INTO migrations VALUES (?, ?, ?)", (module, number, digests[number]))


def _applied(db: Sql, where: str, module: str, digests: Sequence[str]) -> int:
    rows = db.query("SELECT digest FROM migrations WHERE module = ? ORDER BY step", (module,))
    if len(rows) > len(digests):
        raise InvalidError(
            f"{where}: {module} is at step {len(rows)}, this version knows {len(digests)}",
            code="database_newer",
            fix="run the headwater version that wrote this database, or a later one",
        )
    for number, (applied, known) in enumerate(zip(rows, digests, strict=False)):
        if applied[0] != known:
            raise InvariantError(
                f"migration {module} step {number} was edited after it was applied to {where}",
                code="migration_changed",
                fix="restore the step and add a new one after it",
            )
    return len(rows)


def statements(script: str) -> Iterator[str]:
    """The statements of a script, in order; triggers, which hold semicolons themselves, stay whole."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n\t;"):
                yield statement
            statement = ""
    if statement.strip(" \n\t;"):
        raise InvariantError(f"unfinished statement in migration: {statement[:80]!r}", code="migration_unfinished")
