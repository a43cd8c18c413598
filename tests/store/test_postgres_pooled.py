"""PostgreSQL behind a pooler: two sessions for many connections, and nothing of one home shows in another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest

from headwater.core.errors import UpstreamError
from headwater.ledger import CASH, deposit
from headwater.store.database import ConstraintError
from headwater.store.ledger_store import Ledger

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'headwater[postgres]'")
from pooler import Pooler, pooler

from headwater.store.postgres import COPY_ROWS_MIN, PostgresDatabase

pytestmark = pytest.mark.sqlite

USD = "USD"


@pytest.fixture(scope="module")
def pooled(postgres) -> Iterator[Pooler]:
    """A pooler before a database that no other test uses."""
    with pooler(postgres) as running:
        yield running


def drafts(count: int, first: int = 0) -> list:
    """Deposits of one unit to payers of their own."""
    return [deposit(f"payer:key_{first + n}", 1, asset=USD, cause="d") for n in range(count)]


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_homes_that_share_sessions_keep_apart(pooled: Pooler, mode: str) -> None:
    """Writers and readers of two schemas over the same two sessions: each sees its own books, and they add up."""
    names = [f"{mode[:4]}_{uuid4().hex[:8]}" for _ in range(2)]
    writers = 1 if mode == "session" else 3  # there a session is a connection's for as long as it lasts
    wrong: list[object] = []

    def write(place: int, number: int) -> None:
        try:
            with PostgresDatabase(pooled.url(mode), schema=names[place]) as db:
                ledger = Ledger(db)
                for turn in range(12):  # often enough for a driver to prepare what it repeats
                    ledger.post(drafts(place + 1), key=f"{number}:{turn}", at_ns=1)
                    with db.snapshot():
                        seen = ledger.balance(CASH, USD).balance_units, len(list(ledger.transfers()))
                    if seen[0] != seen[1] or seen[0] % (place + 1):
                        wrong.append(seen)
        except BaseException as error:
            wrong.append(error)

    for name in names:
        with PostgresDatabase(pooled.url(mode), schema=name) as db:
            Ledger(db)
            assert db._pooled
    threads = [threading.Thread(target=write, args=(place, n)) for place in range(2) for n in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    for place, name in enumerate(names):
        with PostgresDatabase(pooled.url(mode), schema=name, create=False) as db:
            assert Ledger(db).balance(CASH, USD).balance_units == writers * 12 * (place + 1)
            assert Ledger(db).check() == ()
            assert db.integrity() == ()
            db.scrub()


def test_all_ways_to_write_work_without_a_session(pooled: Pooler) -> None:
    """Nested blocks, COPY, arrays, numbered rows, refusals and erasing: as over a connection to the server."""
    with PostgresDatabase(pooled.url("transaction"), schema=f"ways_{uuid4().hex[:8]}") as db:
        db.migrate("t", ("CREATE TABLE t (k INTEGER PRIMARY KEY, name TEXT UNIQUE)",))
        with db.transaction():
            db.execute("INSERT INTO t (name) VALUES (?)", ("a",))
            with pytest.raises(ConstraintError), db.transaction():
                db.execute("INSERT INTO t (name) VALUES (?)", ("a",))
            db.insert_rows("t (name)", [("b",), ("c",)])
            db.insert_rows("t (name)", [(f"n{n}",) for n in range(COPY_ROWS_MIN)])
        assert db.query("SELECT count(*), max(k) FROM t") == [(COPY_ROWS_MIN + 3,) * 2]
        assert db.query("INSERT INTO t (name) VALUES (?) RETURNING k", ("z",)) == [(COPY_ROWS_MIN + 4,)]
        assert db.executemany("UPDATE t SET name = ? WHERE k = ?", [("x", 1), ("y", 2)]) == 2
        assert list(db.query_in("SELECT k FROM t WHERE name IN ({}) ORDER BY k", ["x", "y"])) == [(1,), (2,)]


def test_a_writer_waits_for_its_turn_behind_a_pooler_too(pooled: Pooler) -> None:
    """The write lock is the transaction's, and so is the time that is waited for it."""
    name = f"turn_{uuid4().hex[:8]}"
    with (
        PostgresDatabase(pooled.url("transaction"), schema=name) as first,
        PostgresDatabase(pooled.url("transaction"), schema=name, lock_wait_ms=20) as second,
    ):
        Ledger(first)
        with first.transaction():
            with pytest.raises(UpstreamError) as caught:
                Ledger(second).post(drafts(1), key="late", at_ns=1)
            assert Ledger(second).balances() == ()
        assert caught.value.code == "database_locked"
        assert not Ledger(second).post(drafts(1), key="late", at_ns=1).replayed


def test_a_pooler_that_knows_no_transactions_is_refused(pooled: Pooler) -> None:
    """Nothing can be booked there; the error says what to set."""
    with pytest.raises(UpstreamError) as caught:
        PostgresDatabase(pooled.url("statement"), schema="nowhere")
    assert caught.value.code == "database_pooling"
    assert "pool_mode" in str(caught.value.fix)


def test_a_server_of_its_own_is_no_pooler(postgres) -> None:
    """There statements are prepared and settings are the session's."""
    with PostgresDatabase(postgres.url(), schema=f"own_{uuid4().hex[:8]}") as db:
        assert not db._pooled
