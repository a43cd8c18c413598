"""PostgreSQL only: what a server can do to a ledger that a file cannot."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

import pytest

from headwater.core.errors import InvalidError, MissingError, UpstreamError
from headwater.ledger import CASH, deposit
from headwater.store.database import ConstraintError, Database
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
        self._begin_writing = self._begin_writing.replace("BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE")

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
    db.execute("ALTER TABLE transfers DISABLE TRIGGER transfers_stay")
    assert [problem.code for problem in db.integrity()] == ["constraint_off"]


LEDGER_BEFORE = """
    CREATE TABLE accounts (account bigint PRIMARY KEY, name text COLLATE "C" NOT NULL, asset text COLLATE "C" NOT NULL,
      UNIQUE (name, asset));
    CREATE TABLE balances (account bigint PRIMARY KEY REFERENCES accounts, balance_units bigint NOT NULL,
      reserved_out_units bigint NOT NULL, reserved_in_units bigint NOT NULL) WITH (fillfactor = 70);
    CREATE TABLE batches (batch bigint PRIMARY KEY, key text COLLATE "C" NOT NULL UNIQUE,
      body_digest text COLLATE "C" NOT NULL, first bigint NOT NULL, size bigint NOT NULL, at_ns bigint NOT NULL);
    CREATE TABLE transfers (transfer bigint PRIMARY KEY, batch bigint NOT NULL REFERENCES batches,
      debit bigint NOT NULL REFERENCES accounts, credit bigint NOT NULL REFERENCES accounts,
      amount_units bigint NOT NULL, code smallint NOT NULL, cause text COLLATE "C" NOT NULL,
      pending bigint REFERENCES transfers);
    CREATE TABLE deadlines (transfer bigint PRIMARY KEY REFERENCES transfers, expires_at_ns bigint NOT NULL);
    CREATE TABLE revisions (version_num varchar(32) PRIMARY KEY);
    INSERT INTO revisions VALUES ('0001');
    INSERT INTO accounts VALUES (1, 'cash', 'USD'), (2, 'payer:key_0', 'USD');
    INSERT INTO balances VALUES (1, 7, 0, 0), (2, 7, 0, 0);
    INSERT INTO batches VALUES (1, 'first', 'sha256:x', 1, 1, 5);
    INSERT INTO transfers VALUES (1, 1, 1, 2, 7, 1, 'd', NULL);
"""
"""A ledger as it was made before its tables came from the stores' own steps."""


def test_a_ledger_whose_tables_another_tool_made_is_taken_over(postgres, schema) -> None:
    """Its money stays, it goes on, and from then on it is known by its steps; opening it again changes nothing."""
    import psycopg

    with psycopg.connect(postgres.url(), autocommit=True) as before:
        before.execute(f"CREATE SCHEMA {schema}; SET search_path TO {schema}; {LEDGER_BEFORE}")
    for _ in range(2):
        with PostgresDatabase(postgres.url(), schema=schema) as db:
            ledger = Ledger(db)
            assert ledger.balance("payer:key_0", USD).balance_units == 7
            assert db.query("SELECT step FROM migrations WHERE module = 'ledger' ORDER BY step") == [(0,), (1,)]
            assert db.query("SELECT 1 FROM pg_tables WHERE schemaname = ? AND tablename = 'revisions'", (schema,)) == []
    with PostgresDatabase(postgres.url(), schema=schema) as db:
        Ledger(db).post(drafts(3), key="second", at_ns=6)
        assert Ledger(db).balance(CASH, USD).balance_units == 10
        assert Ledger(db).check() == ()


def test_what_cannot_be_is_said_with_a_fix(postgres, schema) -> None:
    """An unreachable server, a bad schema and one that is not there."""
    with pytest.raises(UpstreamError) as unreachable:
        PostgresDatabase("postgresql://headwater@/postgres?host=/nonexistent")
    assert unreachable.value.code == "database_unreachable"
    with pytest.raises(InvalidError):
        PostgresDatabase(postgres.url(), schema="x; DROP")
    with pytest.raises(InvalidError) as missing:
        PostgresDatabase(postgres.url(), schema=schema, create=False)
    assert missing.value.code == "database_missing"


def test_without_the_driver_the_error_names_the_extra(monkeypatch) -> None:
    """A base install has no PostgreSQL."""
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(MissingError, match="headwater\\[postgres\\]"):
        PostgresDatabase("postgresql://headwater@/postgres")


def test_placeholders_keep_their_numbers() -> None:
    """Numbered and plain parameters both find their value; percent signs stay what they are, and so do texts."""
    assert _translated("a = ? AND b % 2 = ?") == ("a = %s AND b %% 2 = %s", (0, 1))
    assert _translated("a LIKE '%?' AND b = ?") == ("a LIKE '%%?' AND b = %s", (0,))
    assert _translated("a LIKE '%'") == ("a LIKE '%'", ())
    assert _translated("a = ?2 OR b = ?1 OR c = ?2") == ("a = %s OR b = %s OR c = %s", (1, 0, 1))


def test_a_writer_that_waits_too_long_is_told_that_another_is_at_work(postgres, schema) -> None:
    """It has changed nothing; readers of another connection go on meanwhile, and writers of other schemas too."""
    with (
        PostgresDatabase(postgres.url(), schema=schema) as first,
        PostgresDatabase(postgres.url(), schema=schema, lock_wait_ms=20) as second,
        PostgresDatabase(postgres.url(), schema=f"{schema}_b", lock_wait_ms=20) as apart,
    ):
        Ledger(first)
        with first.transaction():
            with pytest.raises(UpstreamError) as caught:
                Ledger(second).post(drafts(1), key="late", at_ns=1)
            assert Ledger(second).balances() == ()
            Ledger(apart).post(drafts(1), key="elsewhere", at_ns=1)
        assert caught.value.code == "database_locked"
        assert not Ledger(second).post(drafts(1), key="late", at_ns=1).replayed


def test_a_failed_statement_that_nobody_heeded_undoes_the_whole_block(db) -> None:
    """The server has given the transaction up; what looks like a commit must not pass for one."""
    db.migrate("t", ("CREATE TABLE t (k INTEGER PRIMARY KEY)",))

    def heedless() -> None:
        with db.transaction():
            db.execute("INSERT INTO t VALUES (1)")
            with suppress(ConstraintError):
                db.execute("INSERT INTO t VALUES (1)")

    with pytest.raises(UpstreamError) as caught:
        heedless()
    assert caught.value.code == "transaction_undone"
    assert db.query("SELECT * FROM t") == []
    with db.transaction():
        db.execute("INSERT INTO t VALUES (2)")
        with suppress(ConstraintError), db.transaction():
            db.execute("INSERT INTO t VALUES (2)")
    assert db.query("SELECT * FROM t") == [(2,)]


def test_values_come_back_as_the_file_gives_them(db, tmp_path) -> None:
    """Integers, flags, sums, bytes, texts and floats are the same on both engines, in the same order."""
    step = "CREATE TABLE t (k INTEGER PRIMARY KEY, name TEXT, big INTEGER, raw BLOB, part REAL)"
    rows = [(None, 2**63 - 1, b"\x00\\x41'", 0.1), ("Zebra", -(2**63), b"", -1e300), ("ähre", 7, None, 2.0)]
    rows += [("%s ?1 '' \\", 8, bytes(range(256)), 0.0), ("apfel", 0, b"z", None)]
    many = [(f"n{number}", number, None, None) for number in range(10, 40)]
    asked = (
        "SELECT k, name, big, raw, part FROM t WHERE name IS NOT NULL ORDER BY name",
        "SELECT big = 7, big > 7, raw IS NULL, k FROM t ORDER BY k",
        "SELECT sum(big), count(*), max(name), 7 / 2, -7 / 2, -7 % 3 FROM t WHERE big BETWEEN 0 AND 100",
        "SELECT instr('abcabc', 'ca'), max(2, 3), min(2, 3), max(k, 5), NULL FROM t ORDER BY k",
        "SELECT k, '?', '%' FROM t WHERE big = ?2 OR big = ?1 ORDER BY k",
    )
    answers = []
    for one in (db, Database(tmp_path / "headwater.db")):
        one.migrate("t", (step,))
        for some in (rows, many):  # one by one, and by COPY
            one.insert_rows("t (name, big, raw, part)", some)
        seen = [one.query(sql, (7, 8) if "?2" in sql else ()) for sql in asked]
        seen.append(list(one.query_in("SELECT k FROM t WHERE raw IN ({})", [b"", b"z"])))
        seen.append(one.query("INSERT INTO t (name, big) VALUES (?, ?) RETURNING k, big = 1", ("last", True)))
        answers.append(seen)
    assert answers[0] == answers[1]
    kinds = [[[[type(value) for value in row] for row in found] for found in seen] for seen in answers]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_a_text_that_cannot_be_kept_is_refused(db, text: str) -> None:
    """The server holds no NUL characters and nobody halves of surrogate pairs."""
    db.migrate("t", ("CREATE TABLE t (name TEXT)",))
    with pytest.raises(InvalidError) as caught:
        db.execute("INSERT INTO t VALUES (?)", (text,))
    assert caught.value.code == "text_invalid"
    assert db.query("SELECT * FROM t") == []
