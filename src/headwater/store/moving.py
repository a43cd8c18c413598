"""A home's records from its SQLite file to a PostgreSQL schema: every table, in one transaction, compared row by row.

What tables there are and how they were made is read from the file itself, so no store need be known: each definition is
translated (`postgres_words`), rows follow by COPY in the order in which the tables were made, so what is referred to
is there first, and indexes, views and triggers come last. Then every row is read back from both and compared; only
when all are equal is the schema committed, the folder marked as belonging to it, and the file put aside.

The file is written by nobody meanwhile: its write lock is held from before the first row to after the mark.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from headwater.core.errors import ConflictError, InvariantError, Problem
from headwater.store.database import Database, Row, Sql
from headwater.store.database_address import PostgresAddress
from headwater.store.home_database import FILE, MODULE, STEPS, missing, new_mark, open_postgres, read_mark, write_mark
from headwater.store.postgres import PostgresDatabase
from headwater.store.postgres_words import postgres_statements

MOVED_FILE: Final = "headwater.moved.db"
ROWS_AT_ONCE: Final = 5_000
_CARRIED: Final = "migrations"

Progress = Callable[[str, int, int], None]
"""Called with what is done, rows done and rows in all."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What was moved."""

    tables: int
    rows: int
    file: Path  # the file as it was, put aside


@dataclass(frozen=True, slots=True)
class _Table:
    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    rows: int


def move_home(
    folder: Path,
    address: PostgresAddress,
    *,
    check: Callable[[Sql], Sequence[Problem]],
    progress: Progress = lambda *_: None,
) -> Moved:
    """Move the records of the home in `folder` from its file to the schema at `address`.

    To be called while nothing serves the home. Until the file that was put aside is deleted, nothing is lost.

    Args:
        check: what does not hold in the records, asked of the schema before it counts.

    Raises:
        MissingError: ``home_missing``.
        ConflictError: ``home_moved_already``; ``home_target_taken``, the schema holds something; nothing was changed.
        InvariantError: ``move_differs``, what arrived is not what left; ``move_unsound``, `check` found something;
            nothing was changed.
        UpstreamError: either database failed; nothing was changed.
    """
    mark = read_mark(folder)
    if mark is not None:
        raise ConflictError(
            f"the records of {folder} are in {mark['shown']} already", code="home_moved_already", fix="nothing is to do"
        )
    if not (folder / FILE).exists():
        raise missing(folder)
    with Database(folder / FILE, create=False) as source, open_postgres(address, folder) as target:
        with source.transaction():
            with target.transaction():
                _refuse_taken(target, address)
                tables = tuple(_tables(source))
                _copy(source, target, tables, progress)
                _compare(source, target, tables, progress)
                problems = check(target)
                if problems:
                    raise InvariantError(
                        f"{len(problems)} problems, the first: {problems[0].where}: {problems[0].message}",
                        code="move_unsound",
                        fix="see `headwater ledger check`; the home is as it was",
                    )
                target.migrate(MODULE, STEPS)
                number = new_mark(target)
            write_mark(folder, number, address)  # from here on the schema counts
        source.query("PRAGMA wal_checkpoint(TRUNCATE)")
    os.rename(folder / FILE, folder / MOVED_FILE)
    for ending in ("-wal", "-shm"):
        (folder / f"{FILE}{ending}").unlink(missing_ok=True)
    return Moved(len(tables), sum(table.rows for table in tables), folder / MOVED_FILE)


def _refuse_taken(target: PostgresDatabase, address: PostgresAddress) -> None:
    tables = target.query(
        "SELECT tablename FROM pg_tables WHERE schemaname = ? AND tablename <> ?", (target.schema, _CARRIED)
    )
    if tables:
        raise ConflictError(
            f"{address.shown} holds {len(tables)} tables already",
            code="home_target_taken",
            fix="name another `?schema=`, or drop that one if nobody needs it",
        )


def _tables(source: Sql) -> Iterator[_Table]:
    """Every table of the file, in the order in which they were made."""
    names = source.query(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY rowid"
    )
    for (name,) in names:
        columns = source.query("SELECT name, pk FROM pragma_table_info(?) ORDER BY cid", (name,))
        key = tuple(column for place, column in sorted((place, column) for column, place in columns if place))
        if not key:
            raise InvariantError(f"table {name} has no primary key", code="move_without_key")
        ((rows,),) = source.query(f'SELECT count(*) FROM "{name}"')
        yield _Table(name, tuple(column for column, _ in columns), key, rows)


def _copy(source: Sql, target: Sql, tables: Sequence[_Table], progress: Progress) -> None:
    for statement in _definitions(source, "table"):
        if not statement.startswith(f"CREATE TABLE {_CARRIED} "):
            target.execute(statement)
    done, total = 0, sum(table.rows for table in tables)
    for table in tables:
        columns = ", ".join(f'"{name}"' for name in table.columns)
        for rows in _pages(source, table):
            target.insert_rows(f'"{table.name}" ({columns})', rows)
            done += len(rows)
            progress("copied", done, total)
    for kind in ("index", "view", "trigger"):
        for statement in _definitions(source, kind):
            target.execute(statement)


def _definitions(source: Sql, kind: str) -> Iterator[str]:
    """PostgreSQL's statements for everything of a kind in the file; what SQLite made by itself has no text."""
    for (text,) in source.query(
        "SELECT sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL AND name NOT LIKE 'sqlite%' ORDER BY rowid",
        (kind,),
    ):
        yield from postgres_statements(text)


def _compare(source: Sql, target: Sql, tables: Sequence[_Table], progress: Progress) -> None:
    """See that every row is there as it was, and no other.

    Raises:
        InvariantError: ``move_differs``.
    """
    done, total = 0, sum(table.rows for table in tables)
    for table in tables:
        own = (_CARRIED,) if table.name == _CARRIED else ()
        for before, after in zip_longest(_pages(source, table), _pages(target, table, own)):
            if before != after:
                raise InvariantError(
                    f"table {table.name} did not arrive as it left, near row {done} of {total}", code="move_differs"
                )
            done += len(before)
            progress("compared", done, total)


def _pages(db: Sql, table: _Table, carried: Sequence[str] = ()) -> Iterator[list[Row]]:
    """The rows of a table by their key, some at a time; the engine's own entries among migrations are left out."""
    columns, key = (", ".join(f'"{name}"' for name in names) for names in (table.columns, table.key))
    apart = " AND module <> 'postgres'" if carried else ""
    places = [table.columns.index(name) for name in table.key]
    where = "1 = 1"
    last: tuple[Any, ...] = ()
    while rows := db.query(
        f'SELECT {columns} FROM "{table.name}" WHERE {where}{apart} ORDER BY {key} LIMIT {ROWS_AT_ONCE}', last
    ):
        yield rows
        last = tuple(rows[-1][place] for place in places)
        where = f"({key}) > ({', '.join('?' * len(last))})"
