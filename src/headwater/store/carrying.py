"""Tables from one database to another, of either engine: as they are defined, row by row, and compared afterwards.

Definitions are SQLite's, read from a file that has the tables, and translated where the other side is PostgreSQL. Rows
follow in the order in which the tables were made, so what is referred to is there first; indexes, views and triggers
come last. Knows nothing of homes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from headwater.core.errors import InvariantError
from headwater.store.database import Row, Sql
from headwater.store.postgres_words import postgres_statements

ROWS_AT_ONCE: Final = 5_000
MIGRATIONS: Final = "migrations"
"""The table that every database has by itself; the rows of `apart` in it are each database's own."""

Progress = Callable[[str, int, int], None]
"""Called with what is done, rows done and rows in all."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table to carry."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    rows: int
    apart: tuple[str, ...] = ()  # modules whose entries among migrations stay where they are


def tables_of(definitions: Sql, source: Sql, apart: Sequence[str]) -> Iterator[Table]:
    """Every table that `definitions`, a SQLite file, has, in the order in which they were made there.

    Raises:
        InvariantError: ``move_without_key``.
    """
    names = definitions.query(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY rowid"
    )
    for (name,) in names:
        columns = definitions.query("SELECT name, pk FROM pragma_table_info(?) ORDER BY cid", (name,))
        key = tuple(column for place, column in sorted((place, column) for column, place in columns if place))
        if not key:
            raise InvariantError(f"table {name} has no primary key", code="move_without_key")
        own = tuple(apart) if name == MIGRATIONS else ()
        table = Table(name, tuple(column for column, _ in columns), key, 0, own)
        ((rows,),) = source.query(f'SELECT count(*) FROM "{name}" WHERE {_not_apart(table)}')
        yield Table(name, table.columns, key, rows, own)


def carry(
    definitions: Sql, source: Sql, target: Sql, tables: Sequence[Table], *, translated: bool, progress: Progress
) -> None:
    """Make tables in `target` as `definitions` has them, with the rows of `source`; inside its transaction.

    Args:
        translated: whether `target` is PostgreSQL.
    """
    for statement in _definitions(definitions, "table", translated):
        if not statement.startswith(f"CREATE TABLE {MIGRATIONS} "):
            target.execute(statement)
    done, total = 0, sum(table.rows for table in tables)
    for table in tables:
        columns = ", ".join(f'"{name}"' for name in table.columns)
        for rows in _pages(source, table):
            target.insert_rows(f'"{table.name}" ({columns})', rows)
            done += len(rows)
            progress("copied", done, total)
    for kind in ("index", "view", "trigger"):
        for statement in _definitions(definitions, kind, translated):
            target.execute(statement)


def compare(source: Sql, target: Sql, tables: Sequence[Table], progress: Progress) -> None:
    """See that every row is there as it was, and no other.

    Raises:
        InvariantError: ``move_differs``.
    """
    done, total = 0, sum(table.rows for table in tables)
    for table in tables:
        for before, after in zip_longest(_pages(source, table), _pages(target, table)):
            if before != after:
                raise InvariantError(
                    f"table {table.name} did not arrive as it left, near row {done} of {total}", code="move_differs"
                )
            done += len(before)
            progress("compared", done, total)


def _definitions(definitions: Sql, kind: str, translated: bool) -> Iterator[str]:
    """The statements for everything of a kind; what SQLite made by itself has no text."""
    for (text,) in definitions.query(
        "SELECT sql FROM sqlite_master WHERE type = ? AND sql IS NOT NULL AND name NOT LIKE 'sqlite%' ORDER BY rowid",
        (kind,),
    ):
        yield from postgres_statements(text) if translated else (text,)


def _pages(db: Sql, table: Table) -> Iterator[list[Row]]:
    """The rows of a table by their key, some at a time."""
    columns, key = (", ".join(f'"{name}"' for name in names) for names in (table.columns, table.key))
    places = [table.columns.index(name) for name in table.key]
    where = "1 = 1"
    last: tuple[Any, ...] = ()
    while rows := db.query(
        f'SELECT {columns} FROM "{table.name}" WHERE {where} AND {_not_apart(table)}'
        f" ORDER BY {key} LIMIT {ROWS_AT_ONCE}",
        last,
    ):
        yield rows
        last = tuple(rows[-1][place] for place in places)
        where = f"({key}) > ({', '.join('?' * len(last))})"


def _not_apart(table: Table) -> str:
    """What holds for the rows that are carried."""
    return f"module NOT IN ({', '.join(map(repr, table.apart))})" if table.apart else "1 = 1"
