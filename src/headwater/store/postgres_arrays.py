"""A statement for one row as one statement for many rows, whose columns are given as arrays.

A round trip costs more than most statements, so what is written for one row at a time goes to the server at once: rows
to insert, and statements of three more shapes when no two rows mean the same row of the table.

    INSERT INTO t [(…)] VALUES (?, …)                                   the rows of `unnest`
    INSERT INTO t (…) VALUES (?, …) ON CONFLICT (…) DO …                the same, keys distinct
    UPDATE t SET a = a + ? WHERE k = ?                                  the sum with each row of `unnest`
    DELETE FROM t WHERE k = ?                                           any of an array

Anything else is None, and is done row by row. Arrays are written as text, which is prepared once whatever their
length. Pure: no connection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from headwater.store.database import Params

_INSERT: Final = re.compile(
    r"INSERT INTO (?P<table>\w+(?: \((?P<columns>[\w, ]+)\))?) VALUES \((?:\?, )*\?\)"
    r"(?P<conflict> ON CONFLICT \((?P<keys>[\w, ]+)\) DO [^?]+)?"
)
_ADD: Final = re.compile(r"UPDATE (?P<table>\w+) SET (?P<column>\w+) = (?P=column) \+ \? WHERE (?P<key>\w+) = \?")
_DELETE: Final = re.compile(r"DELETE FROM (?P<table>\w+) WHERE (?P<key>\w+) = \?")
_KINDS: Final[dict[frozenset[type], str]] = {
    frozenset((int,)): "bigint",
    frozenset((bool,)): "bigint",
    frozenset((int, bool)): "bigint",
    frozenset((str,)): "text",
    frozenset((bytes,)): "bytea",
    frozenset((float,)): "float8",
    frozenset((float, int)): "float8",
}

Statement = tuple[str, list[str]]
"""A statement with `?`, and an array, as text, for each of them."""


def for_many(sql: str, rows: Sequence[Params]) -> Statement | None:
    """One statement that does to all `rows`, two or more, what `sql` does to each.

    >>> for_many("DELETE FROM leases WHERE cause = ?", [("a",), ("b",)])
    ('DELETE FROM leases WHERE cause = ANY(?::text[])', ['{"a","b"}'])
    """
    if found := _INSERT.fullmatch(sql):
        if found["conflict"]:
            columns = (found["columns"] or "").split(", ")
            keys = [name for name in found["keys"].split(", ") if name in columns]
            if len(keys) < len(found["keys"].split(", ")) or not _distinct(rows, list(map(columns.index, keys))):
                return None
        made = insertion(found["table"], rows)
        return made and (made[0] + (found["conflict"] or ""), made[1])
    if (found := _ADD.fullmatch(sql)) and _distinct(rows, [1]):
        (added, added_kind), (key, key_kind) = map(_array, zip(*rows, strict=True))
        if not added_kind or not key_kind:
            return None
        table, column = found["table"], found["column"]
        return (
            f"UPDATE {table} SET {column} = {table}.{column} + new.units"
            f" FROM unnest(?::{added_kind}[], ?::{key_kind}[]) AS new (units, key)"
            f" WHERE {table}.{found['key']} = new.key",
            [added, key],
        )
    if found := _DELETE.fullmatch(sql):
        key, key_kind = _array([row[0] for row in rows])
        if key_kind:
            return f"DELETE FROM {found['table']} WHERE {found['key']} = ANY(?::{key_kind}[])", [key]
    return None


def insertion(table: str, rows: Sequence[Params]) -> Statement | None:
    """One statement that inserts `rows`; a column without any value is NULL by itself."""
    arrays, sources, chosen = [], [], []
    for place, column in enumerate(zip(*rows, strict=True)):
        text, kind = _array(column)
        if kind:
            arrays.append(text)
            sources.append(f"?::{kind}[]")
            chosen.append(f"v{place}")
        elif any(value is not None for value in column):
            return None
        else:
            chosen.append("NULL")
    if not arrays:
        return None
    named = ", ".join(name for name in chosen if name != "NULL")
    return f"INSERT INTO {table} SELECT {', '.join(chosen)} FROM unnest({', '.join(sources)}) AS v ({named})", arrays


def integers(values: Sequence[Any]) -> str:
    """An array of integers, as text."""
    return f"{{{','.join([f'{value:d}' for value in values])}}}"


def _array(values: Sequence[object]) -> tuple[str, str]:
    """Values as the text of an array, and what kind of values they are; no kind when they are of none or of several."""
    kinds = set(map(type, values))
    without = type(None) in kinds
    kinds.discard(type(None))
    kind = _KINDS.get(frozenset(kinds), "")
    if kind == "bigint" and not without:
        return integers(values), kind
    return f"{{{','.join([_element(value) for value in values])}}}" if kind else "", kind


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bytes):
        return '"\\\\x' + value.hex() + '"'
    return repr(value) if isinstance(value, float) else f"{value:d}"


def _distinct(rows: Sequence[Params], places: Sequence[int]) -> bool:
    return len({tuple(row[place] for place in places) for row in rows}) == len(rows)
