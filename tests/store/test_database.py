"""The database file: transactions, migrations and the errors a full, locked or damaged file gives."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headwater.core.errors import InvalidError, InvariantError, UpstreamError
from headwater.store.database import ConstraintError, Database

STEPS = ("CREATE TABLE t (k INTEGER PRIMARY KEY, v INTEGER NOT NULL CHECK (v >= 0))",)


@pytest.fixture
def db(tmp_path: Path) -> Database:
    """A database with one table."""
    database = Database(tmp_path / "home" / "headwater.db")
    database.migrate("t", STEPS)
    return database


def test_a_block_that_ends_well_is_seen_by_another_connection(db: Database) -> None:
    """What a transaction wrote is in the file when its block ends."""
    with db.transaction():
        db.execute("INSERT INTO t VALUES (1, 10)")

    assert Database(db.path).query("SELECT k, v FROM t") == [(1, 10)]


def test_a_block_that_fails_leaves_no_trace(db: Database) -> None:
    """An error undoes everything in its block."""

    def fail() -> None:
        with db.transaction():
            db.execute("INSERT INTO t VALUES (1, 10)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert db.query("SELECT * FROM t") == []


def test_an_inner_failure_that_is_caught_undoes_only_the_inner_block(db: Database) -> None:
    """A caught inner error leaves no half of the inner block and all of the outer one."""

    def fail() -> None:
        with db.transaction():
            db.execute("INSERT INTO t VALUES (2, 2)")
            db.execute("INSERT INTO t VALUES (1, 3)")

    with db.transaction():
        db.execute("INSERT INTO t VALUES (1, 1)")
        with pytest.raises(ConstraintError):
            fail()
        db.execute("INSERT INTO t VALUES (3, 3)")

    assert db.query("SELECT k FROM t ORDER BY k") == [(1,), (3,)]


def test_an_outer_failure_undoes_inner_blocks_that_ended_well(db: Database) -> None:
    """Only the outermost end is durable."""

    def fail() -> None:
        with db.transaction():
            with db.transaction():
                db.execute("INSERT INTO t VALUES (1, 1)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert db.query("SELECT * FROM t") == []


def test_threads_take_turns(db: Database) -> None:
    """Read-then-write blocks of many threads do not interleave."""
    db.execute("INSERT INTO t VALUES (1, 0)")

    def add() -> None:
        for _ in range(50):
            with db.transaction():
                ((value,),) = db.query("SELECT v FROM t WHERE k = 1")
                db.execute("UPDATE t SET v = ? WHERE k = 1", (value + 1,))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert db.query("SELECT v FROM t") == [(200,)]


def test_a_step_is_applied_once_and_later_steps_follow(db: Database) -> None:
    """Opening again applies only what is new."""
    with_column = (*STEPS, "ALTER TABLE t ADD COLUMN note TEXT; CREATE INDEX t_note ON t (note);")
    db.migrate("t", with_column)
    db.migrate("t", with_column)

    db.execute("INSERT INTO t VALUES (1, 1, 'x')")
    assert db.query("SELECT step FROM migrations WHERE module = 't' ORDER BY step") == [(0,), (1,)]


def test_a_trigger_in_a_step_stays_whole(db: Database) -> None:
    """Semicolons inside a trigger do not split it."""
    trigger = "CREATE TRIGGER fixed BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'rows stay'); END; DELETE FROM t"
    db.migrate("t", (*STEPS, trigger))
    db.execute("INSERT INTO t VALUES (1, 1)")

    with pytest.raises(ConstraintError, match="rows stay") as caught:
        db.execute("DELETE FROM t")
    assert caught.value.kind == "trigger"


def test_a_failing_step_leaves_nothing_of_itself(db: Database) -> None:
    """A migration is all or nothing."""
    with pytest.raises(InvariantError):
        db.migrate("u", ("CREATE TABLE u (k INTEGER); CREATE TABLE t (k INTEGER)",))

    with pytest.raises((InvariantError, UpstreamError)):
        db.query("SELECT * FROM u")


def test_an_edited_step_is_refused(db: Database) -> None:
    """A step that was applied may not change afterwards."""
    with pytest.raises(InvariantError) as caught:
        db.migrate("t", ("CREATE TABLE t (k INTEGER)",))
    assert caught.value.code == "migration_changed"


def test_a_file_of_a_newer_version_is_refused(db: Database) -> None:
    """Fewer known steps than applied ones means the program is too old for the file."""
    with pytest.raises(InvalidError) as caught:
        db.migrate("t", ())
    assert caught.value.code == "database_newer"


def test_a_broken_rule_of_a_table_names_its_kind(db: Database) -> None:
    """Unique and check failures can be told apart."""
    db.execute("INSERT INTO t VALUES (1, 1)")
    with pytest.raises(ConstraintError) as unique:
        db.execute("INSERT INTO t VALUES (1, 1)")
    with pytest.raises(ConstraintError) as check:
        db.execute("INSERT INTO t VALUES (2, -1)")
    assert (unique.value.kind, check.value.kind) == ("unique", "check")


def test_a_number_beyond_64_bits_is_refused_not_wrapped(db: Database) -> None:
    """Values and sums past 2^63 - 1 raise."""
    with pytest.raises(InvalidError) as value:
        db.execute("INSERT INTO t VALUES (1, ?)", (2**63,))
    db.executemany("INSERT INTO t VALUES (?, ?)", [(1, 2**63 - 1), (2, 1)])
    with pytest.raises(InvalidError) as total:
        db.query("SELECT sum(v) FROM t")
    assert value.value.code == total.value.code == "amount_out_of_range"


def test_executemany_is_all_or_nothing(db: Database) -> None:
    """One bad row refuses them all."""
    with pytest.raises(ConstraintError):
        db.executemany("INSERT INTO t VALUES (?, ?)", [(1, 1), (2, 2), (1, 3)])
    assert db.query("SELECT * FROM t") == []


def fill(db: Database) -> None:
    """Write more than the page limit allows, after one row that fits."""
    with db.transaction():
        db.execute("INSERT INTO t VALUES (0, 0)")
        db.executemany("INSERT INTO t VALUES (?, ?)", ((k, k) for k in range(1, 10_000)))


def allow_pages(db: Database, more: int) -> None:
    """Let the file grow by `more` pages; SQLite's own limit stands in for a full disk."""
    ((pages,),) = db.query("PRAGMA page_count")
    db.query(f"PRAGMA max_page_count = {pages + more}")


@pytest.mark.sqlite
def test_a_full_disk_is_reported_and_nothing_is_written(db: Database) -> None:
    """The transaction that met the limit leaves no trace, and one after some space is freed works."""
    allow_pages(db, 2)
    with pytest.raises(UpstreamError) as caught:
        fill(db)
    assert caught.value.code == "disk_full"
    assert db.query("SELECT count(*) FROM t") == [(0,)]

    allow_pages(db, 2000)
    db.execute("INSERT INTO t VALUES (1, 1)")
    assert db.query("SELECT * FROM t") == [(1, 1)]


def test_statements_after_an_undone_transaction_do_not_land_alone(db: Database) -> None:
    """When SQLite has undone the whole block by itself, going on inside it is refused."""

    def go_on() -> None:
        with db.transaction():
            db.execute("INSERT INTO t VALUES (1, 1)")
            # What a full disk may do on its own, brought about by hand.
            db._connection.execute("ROLLBACK")
            db.execute("INSERT INTO t VALUES (2, 2)")

    with pytest.raises(UpstreamError) as caught:
        go_on()
    assert caught.value.code == "transaction_undone"
    assert db.query("SELECT * FROM t") == []


@pytest.mark.sqlite
def test_a_lock_held_by_another_process_is_reported(db: Database) -> None:
    """A second writer waits for the time given, then is told that somebody is in the way; readers go on."""
    other = sqlite3.connect(db.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    second = Database(db.path, busy_timeout_ms=20)
    second.migrate("t", STEPS)
    with pytest.raises(UpstreamError) as caught:
        second.execute("INSERT INTO t VALUES (1, 1)")
    other.execute("ROLLBACK")

    assert caught.value.code == "database_locked"
    assert second.execute("INSERT INTO t VALUES (1, 1)") == 1


@pytest.mark.sqlite
def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Foreign bytes are never overwritten."""
    path = tmp_path / "headwater.db"
    path.write_bytes(b"notes, not a database\n" * 100)
    with pytest.raises(InvalidError) as caught:
        Database(path)
    assert caught.value.code == "not_a_database"
    assert path.read_bytes().startswith(b"notes")


@pytest.mark.sqlite
def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    """Overwritten pages are reported by the integrity check or by the first read that meets them."""
    path = tmp_path / "headwater.db"
    with Database(path) as db:
        db.migrate("t", STEPS)
        db.executemany("INSERT INTO t VALUES (?, ?)", ((k, k) for k in range(5_000)))
        assert db.integrity() == ()
        db.query("PRAGMA wal_checkpoint(TRUNCATE)")
    raw = bytearray(path.read_bytes())
    raw[3 * 4096 : 6 * 4096] = b"\xa5" * (3 * 4096)
    path.write_bytes(raw)

    with Database(path) as damaged:
        assert [problem.code for problem in damaged.integrity()][:1] == ["database_corrupt"]


def test_a_missing_file_is_made_only_when_asked(tmp_path: Path) -> None:
    """Reading commands do not leave empty databases behind."""
    with pytest.raises(InvalidError) as caught:
        Database(tmp_path / "none.db", create=False)
    assert caught.value.code == "database_missing"
    assert not (tmp_path / "none.db").exists()


@pytest.mark.sqlite
def test_a_path_that_cannot_be_opened_is_reported(tmp_path: Path) -> None:
    """A folder in the place of the file is an error that names the path."""
    with pytest.raises(UpstreamError, match=str(tmp_path)) as caught:
        Database(tmp_path)
    assert caught.value.code == "database_unopenable"


def test_the_file_is_readable_by_its_owner_only(db: Database) -> None:
    """Prompts and hashes are nobody else's business."""
    assert db.path.stat().st_mode & 0o077 == 0


def test_processes_that_make_the_same_file_at_once_agree(tmp_path: Path) -> None:
    """Four processes open a file that is not there yet, and each finds it set up once."""
    program = (
        "import sys; from headwater.store.database import Database;"
        "db = Database(sys.argv[1]); db.migrate('t', ('CREATE TABLE t (k INTEGER PRIMARY KEY)',));"
        "db.execute('INSERT INTO t DEFAULT VALUES')"
    )
    path = tmp_path / "home" / "headwater.db"
    workers = [subprocess.Popen([sys.executable, "-c", program, str(path)], stderr=subprocess.PIPE) for _ in range(4)]
    assert [(worker.communicate()[1], worker.returncode) for worker in workers] == [(b"", 0)] * 4
    with Database(path) as db:
        assert db.query("SELECT count(*) FROM t") == [(4,)]
        assert db.query("SELECT count(*) FROM migrations WHERE module = 't'") == [(1,)]


def test_a_snapshot_sees_one_moment_while_another_connection_writes(db: Database) -> None:
    """Reads inside agree with each other, and the writer is not held up."""
    other = Database(db.path)
    with db.snapshot():
        before = db.query("SELECT count(*) FROM t")
        other.execute("INSERT INTO t VALUES (1, 1)")
        assert db.query("SELECT count(*) FROM t") == before == [(0,)]
    assert db.query("SELECT count(*) FROM t") == [(1,)]


@pytest.mark.sqlite
def test_a_replace_counts_as_a_delete(db: Database) -> None:
    """Triggers that forbid deleting also stop REPLACE, which deletes silently by default."""
    db.migrate("t", (*STEPS, "CREATE TRIGGER stay BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'rows stay'); END;"))
    db.execute("INSERT INTO t VALUES (1, 1)")
    with pytest.raises(ConstraintError, match="rows stay"):
        db.execute("REPLACE INTO t VALUES (1, 2)")
