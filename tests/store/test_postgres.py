"""PostgreSQL only: what a server can do to a ledger that a file cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

import pytest

from headwater.core.errors import InvalidError, MissingError, UpstreamError
from headwater.ledger import CASH, deposit
from headwater.store.database import Database
from headwater.store.ledger_store import Batch, Ledger

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'headwater[postgres]'")
from headwater.store.postgres import PostgresDatabase, RepeatError, _translated

USD = "USD"


@pytest.fixture
def schema() -> str:
    """A schema that no other test uses."""
    return f"test_{uuid4().hex[:12]}"


@pytest.fixture
def db(postgres, schema: str) -> Iterator[PostgresDatabase]:
    """A database of its own."""
    with PostgresDatabase(postgres.url(), schema=schema) as one:
        yield one


def drafts(count: int, first: int = 0) -> list:
    """Deposits of one unit to payers of their own."""
    return [deposit(f"payer:key_{first + n}", 1, asset=USD, cause="d") for n in range(count)]


def test_a_server_that_dies_in_the_middle_of_a_batch_leaves_none_of_it(postgres, db) -> None:
    """After the restart the acknowledged batches are there, the interrupted one is not, and its retry books it once."""
    ledger = Ledger(db)
    ledger.post(drafts(500), key="first", at_ns=1)

    def interrupted() -> None:
        with db.transaction():
            ledger.post(drafts(500, 500), key="second", at_ns=2)
            postgres.stop("immediate")
            postgres.start()
            ledger.post(drafts(1), key="third", at_ns=3)

    with pytest.raises(UpstreamError) as lost:
        interrupted()
    assert lost.value.code == "database_unreachable"
    assert ledger.balance(CASH, USD).balance_units == 500
    assert ledger.check() == ()
    assert not ledger.post(drafts(500, 500), key="second", at_ns=2).replayed
    assert ledger.post(drafts(500), key="first", at_ns=1).replayed
    assert ledger.balance(CASH, USD).balance_units == 1_000


class Strict(PostgresDatabase):
    """Every transaction is serialisable; counts how often one had to be repeated."""

    def __init__(self, url: str, *, schema: str) -> None:
        self.repeated = 0
        super().__init__(url, schema=schema)

    def _run(self, sql, params):
        if sql.startswith("SELECT pg_advisory_xact_lock"):
            super()._run("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", ())
        return super()._run(sql, params)

    def _once(self, work):
        try:
            return super()._once(work)
        except RepeatError:
            self.repeated += 1
            raise


def test_serialisation_failures_are_repeated_until_they_succeed(postgres, schema) -> None:
    """A writer that waited reads what is old by then and is asked to repeat; none is lost and none is doubled."""
    repeated: list[int] = []

    def write(name: int) -> None:
        with Strict(postgres.url(), schema=schema) as db:
            ledger = Ledger(db)
            for number in range(12):
                posted = None
                while posted is None:
                    with suppress(RepeatError):  # more often than `run` repeats by itself: the caller's turn
                        posted = ledger.post(drafts(2), key=f"{name}:{number}", at_ns=1)
            repeated.append(db.repeated)

    with PostgresDatabase(postgres.url(), schema=schema) as db:
        Ledger(db)
    writers = [threading.Thread(target=write, args=(name,)) for name in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with PostgresDatabase(postgres.url(), schema=schema) as db:
        ledger = Ledger(db)
        assert ledger.balance(CASH, USD).balance_units == 3 * 12 * 2
        assert ledger.check() == ()
    assert len(repeated) == 3
    assert sum(repeated) > 0


def test_writers_on_several_connections_queue(postgres, schema) -> None:
    """Four connections post the same keys and their own: each key is booked once, and everything adds up."""
    with PostgresDatabase(postgres.url(), schema=schema) as db:
        Ledger(db)
    outcomes: list[bool] = []

    def write(name: int) -> None:
        with PostgresDatabase(postgres.url(), schema=schema) as db:
            ledger = Ledger(db)
            for number in range(10):
                batches = [Batch(f"shared:{number}", drafts(3)), Batch(f"own:{name}:{number}", drafts(20, 100 * name))]
                outcomes.extend(posted.replayed for posted in ledger.post_each(batches, at_ns=number))

    writers = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with PostgresDatabase(postgres.url(), schema=schema) as db:
        ledger = Ledger(db)
        assert outcomes.count(False) == 10 + 40
        assert ledger.balance(CASH, USD).balance_units == 10 * 3 + 40 * 20
        assert ledger.check() == ()


def test_both_engines_keep_the_same_books(db, tmp_path) -> None:
    """The same batches give the same transfers, balances and statements, field by field."""
    books = []
    for ledger in (Ledger(db), Ledger(Database(tmp_path / "headwater.db"))):
        ledger.post(drafts(40), key="many", at_ns=5)
        held = ledger.reserve("payer:key_1", 1, key="r", asset=USD, cause="c", at_ns=6, expires_at_ns=8)
        ledger.reserve("payer:key_2", 1, key="s", asset=USD, cause="c", at_ns=6, expires_at_ns=9)
        ledger.charge(held, 1, key="t", at_ns=7)
        ledger.expire(at_ns=9)
        books.append((list(ledger.transfers()), ledger.balances(), ledger.totals(), ledger.statement(CASH, USD)))
    assert books[0] == books[1]


def test_constraints_that_were_switched_off_are_found(db) -> None:
    """A ledger whose triggers sleep is not sound, even while its numbers are."""
    Ledger(db)
    assert db.integrity() == ()
    db.execute("ALTER TABLE transfers DISABLE TRIGGER transfers_kept")
    assert [problem.code for problem in db.integrity()] == ["constraint_off"]


def test_opening_again_applies_no_revision_twice(db, schema) -> None:
    """Alembic's record of revisions lives beside the tables."""
    Ledger(db)
    Ledger(db)
    assert db.query("SELECT version_num FROM revisions") == [("0001",)]


def test_what_cannot_be_is_said_with_a_fix(postgres, schema) -> None:
    """An unreachable server, a bad schema and a module that lives elsewhere."""
    with pytest.raises(UpstreamError) as unreachable:
        PostgresDatabase("postgresql://headwater@/postgres?host=/nonexistent")
    assert unreachable.value.code == "database_unreachable"
    with pytest.raises(InvalidError):
        PostgresDatabase(postgres.url(), schema="x; DROP")
    with PostgresDatabase(postgres.url(), schema=schema) as db, pytest.raises(InvalidError) as elsewhere:
        db.migrate("calls", ())
    assert elsewhere.value.code == "module_not_on_postgres"


def test_without_the_driver_the_error_names_the_extra(monkeypatch) -> None:
    """A base install has no PostgreSQL."""
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(MissingError, match="headwater\\[postgres\\]"):
        PostgresDatabase("postgresql://headwater@/postgres")


def test_placeholders_keep_their_numbers() -> None:
    """Numbered and plain parameters both find their value, and a percent sign stays one."""
    assert _translated("a = ? AND b % 2 = ?") == ("a = %s AND b %% 2 = %s", (0, 1))
    assert _translated("a = ?2 OR b = ?1 OR c = ?2") == ("a = %s OR b = %s OR c = %s", (1, 0, 1))
