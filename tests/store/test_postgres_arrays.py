"""Many rows in one statement: the table is what it would be after a statement for each row, on either engine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.store.database import ConstraintError, Database, Sql
from headwater.store.postgres_arrays import for_many, insertion

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'headwater[postgres]'")
from headwater.store.postgres import COPY_ROWS_MIN, PostgresDatabase

pytestmark = pytest.mark.sqlite

STEP = """
CREATE TABLE things (number INTEGER PRIMARY KEY, name TEXT, size INTEGER, raw BLOB, part REAL) STRICT;
CREATE TABLE sums (name TEXT, day INTEGER, units INTEGER NOT NULL, PRIMARY KEY (name, day)) STRICT;
"""
INSERT = "INSERT INTO things (name, size, raw, part) VALUES (?, ?, ?, ?)"
UPSERT = (
    "INSERT INTO sums (name, day, units) VALUES (?, ?, ?) ON CONFLICT (name, day)"
    " DO UPDATE SET units = sums.units + excluded.units"
)
ADD = "UPDATE things SET size = size + ? WHERE name = ?"
DELETE = "DELETE FROM things WHERE name = ?"

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["NULL", "null", "", "{}", "a,b", '"', "\\", "\\x41", "'", "%s ? $1", " x ", "\n"]
)
names = st.sampled_from(["ada", "ben", "cleo", "NULL", "{", '"\\'])
small = st.integers(-(2**40), 2**40)
rows = st.tuples(
    texts | st.none(),
    st.integers(-(2**63), 2**63 - 1) | st.none(),
    st.binary(max_size=6) | st.none(),
    st.floats(allow_nan=False) | st.none(),
)


@pytest.fixture(scope="module")
def pair(postgres, tmp_path_factory: pytest.TempPathFactory) -> tuple[Sql, Sql]:
    """The same two tables on both engines."""
    folder: Path = tmp_path_factory.mktemp("pair")
    both = Database(folder / "headwater.db"), PostgresDatabase(postgres.url(), schema=f"test_{uuid4().hex[:12]}")
    for db in both:
        db.migrate("t", (STEP,))
    yield both
    for db in both:
        db.close()


@settings(max_examples=60)
@given(
    inserted=st.lists(rows, max_size=20),
    named=st.lists(st.tuples(names, small), max_size=8),
    summed=st.lists(st.tuples(names, st.integers(0, 3), small), max_size=12),
    added=st.lists(st.tuples(small, names), max_size=8),
    deleted=st.lists(st.tuples(names), max_size=6),
)
def test_all_at_once_is_as_one_by_one(pair, inserted, named, summed, added, deleted) -> None:
    """Whatever the values, also when a row is meant twice: SQLite's rows, written one at a time, are the same."""
    found = []
    for db in pair:
        db.execute("DELETE FROM things")
        db.execute("DELETE FROM sums")
        counts = [db.executemany(INSERT, inserted), db.executemany(INSERT, [(*one, None, None) for one in named])]
        counts += [db.executemany(UPSERT, summed), db.executemany(ADD, added), db.executemany(DELETE, deleted)]
        kept = [db.query("SELECT * FROM things ORDER BY number"), db.query("SELECT * FROM sums ORDER BY name, day")]
        found.append([counts, kept])
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [2, COPY_ROWS_MIN - 1, COPY_ROWS_MIN])
def test_rows_are_the_same_however_many_go_at_once(pair, count: int) -> None:
    """By array or by COPY; a number that is not given is the next one."""
    found = []
    for db in pair:
        db.execute("DELETE FROM things")
        db.insert_rows("things (name, raw, part)", [(f"n{n}\\", bytes([n % 256]), n / 7) for n in range(count)])
        found.append(db.query("SELECT number, name, raw, part FROM things ORDER BY number"))
    assert found[0] == found[1]
    assert len(found[0]) == count


@pytest.mark.parametrize("count", [1, 7, COPY_ROWS_MIN + 1])
def test_what_is_sent_together_is_as_sent_apart(pair, count: int) -> None:
    """Rows, changes and sums in one go, in any number; one that is refused in the middle undoes the whole block."""
    found = []
    for db in pair:
        db.execute("DELETE FROM things")
        db.execute("DELETE FROM sums")
        with db.transaction(), db.together():
            db.insert_rows("things (number, name, size)", [(n, f"n{n}", 0) for n in range(count)])
            db.update_rows("things", ("size",), "number", [(n * n, n) for n in range(count)])
            db.executemany(ADD, [(3, f"n{n}") for n in range(0, count, 2)])
            with db.together():
                db.executemany(UPSERT, [("ada", n % 2, n) for n in range(count)])
            db.execute("UPDATE sums SET units = units + 1")
        found.append([db.query("SELECT * FROM things ORDER BY number"), db.query("SELECT * FROM sums ORDER BY day")])

        def refused(db: Sql = db) -> None:
            with db.transaction(), db.together():
                db.execute("DELETE FROM sums")
                db.insert_rows("things (number, name)", [(n, "again") for n in range(count)])
                db.execute("DELETE FROM things")

        def refused_again(db: Sql = db) -> None:
            with db.transaction():
                with suppress(ConstraintError), db.transaction():
                    refused()
                db.update_rows("things", ("size",), "number", [(n * n, n) for n in range(count)])
                refused()

        for _ in range(8):  # often enough for a driver to prepare it; a later booking is not harmed by an earlier one
            with pytest.raises(ConstraintError) as twice:
                refused_again()
        assert twice.value.kind == "unique"
        assert found[-1][0] == db.query("SELECT * FROM things ORDER BY number")
        assert db.query("SELECT count(*) FROM sums") == [(len(found[-1][1]),)]
    assert found[0] == found[1]
    assert len(found[0][0]) == count


def test_what_is_refused_of_one_row_is_refused_of_all(pair) -> None:
    """A number beyond 64 bits, a text with NUL, a key that is there: the same errors, and nothing was written."""
    db = pair[1]
    db.execute("DELETE FROM things")
    for column, value, code in (("size", 2**63, "amount_out_of_range"), ("name", "a\0b", "text_invalid")):
        with pytest.raises(InvalidError) as caught:
            db.insert_rows(f"things ({column})", [(value,), (value,)])
        assert caught.value.code == code
    with pytest.raises(ConstraintError) as twice:
        db.insert_rows("things (number, name)", [(1, "a"), (1, "b")])
    assert twice.value.kind == "unique"
    assert db.query("SELECT count(*) FROM things") == [(0,)]


def test_what_rows_may_mean_twice_or_is_not_known_is_left_alone() -> None:
    """Two rows for one key, values of several kinds, and statements of any other shape."""
    assert for_many(UPSERT, [("ada", 1, 5), ("ada", 1, 6)]) is None
    assert for_many(UPSERT.replace(" (name, day, units)", "", 1), [("ada", 1, 5), ("ben", 1, 6)]) is None
    assert for_many(ADD, [(1, "ada"), (2, "ada")]) is None
    assert for_many("UPDATE things SET size = size - ? WHERE name = ?", [(1, "a"), (2, "b")]) is None
    assert insertion("things (name)", [("a",), (b"b",)]) is None
    assert insertion("things (name)", [(None,), (None,)]) is None
    assert for_many(DELETE, [("a",), (None,)]) == ("DELETE FROM things WHERE name = ANY(?::text[])", ['{"a",NULL}'])
