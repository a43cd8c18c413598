"""What a PostgreSQL server can refuse or lose, made to happen: each has its code and a fix, and no booking is half."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest
from postgres import STAND_IN, Cluster, cluster

from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.ledger import CASH, deposit
from headwater.store.ledger_store import Ledger

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'headwater[postgres]'")
import psycopg

from headwater.store.postgres import PostgresDatabase
from headwater.store.postgres_errors import refuse_unfit

pytestmark = pytest.mark.sqlite

USD = "USD"


@pytest.fixture
def schema() -> str:
    """A schema that no other test uses."""
    return f"test_{uuid4().hex[:12]}"


def drafts(count: int, first: int = 0) -> list:
    """Deposits of one unit to payers of their own."""
    return [deposit(f"payer:key_{first + n}", 1, asset=USD, cause="d") for n in range(count)]


def told(postgres: Cluster, *commands: str, database: str = "postgres") -> None:
    """Commands of the server's administrator."""
    with psycopg.connect(postgres.url(database), autocommit=True) as connection:
        for command in commands:
            connection.execute(command)


@contextmanager
def role(postgres: Cluster, *settings: str, options: str = "LOGIN") -> Iterator[str]:
    """A role for as long as the block runs, whose sessions have `settings`."""
    name = f"role_{uuid4().hex[:10]}"
    told(postgres, f"CREATE ROLE {name} {options}", *(f"ALTER ROLE {name} SET {one}" for one in settings))
    try:
        yield name
    finally:
        told(postgres, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def as_role(postgres: Cluster, name: str) -> str:
    """The address of the cluster for a role."""
    return postgres.url().replace("headwater@", f"{name}@")


def refused(act: Callable[[], object], code: str) -> HeadwaterError:
    """The error of an act, which has a code and says what to do."""
    with pytest.raises(UpstreamError) as caught:
        act()
    assert caught.value.code == code, caught.value
    assert caught.value.fix
    return caught.value


@contextmanager
def passwords(postgres: Cluster, name: str) -> Iterator[None]:
    """One role has to give its password while the block runs."""
    rules = postgres.data / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text(f"local all {name} scram-sha-256\n{before}")
    told(postgres, "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        rules.write_text(before)
        told(postgres, "SELECT pg_reload_conf()")


def test_who_may_not_come_in_is_told_why(postgres, schema) -> None:
    """A wrong password, none at all, a role or a database that is not there, too many at once: never the password."""
    with role(postgres, options="LOGIN PASSWORD 'right' CONNECTION LIMIT 1") as name, passwords(postgres, name):
        place = as_role(postgres, f"{name}:PASSWORD")
        deadline = time.monotonic() + 10
        while True:  # the server takes its new rules a moment later
            try:
                psycopg.connect(as_role(postgres, name)).close()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            except psycopg.OperationalError:
                break
        wrong = refused(lambda: PostgresDatabase(place.replace("PASSWORD", "wr0ng"), schema=schema), "database_refused")
        assert "wr0ng" not in str(wrong)
        refused(lambda: PostgresDatabase(place.replace(":PASSWORD", ""), schema=schema), "database_refused")
        with psycopg.connect(place.replace("PASSWORD", "right")):
            refused(lambda: PostgresDatabase(place.replace("PASSWORD", "right"), schema=schema), "database_busy")
    nobody = as_role(postgres, "nobody_at_all")
    refused(lambda: PostgresDatabase(nobody, schema=schema), "database_refused")
    refused(lambda: PostgresDatabase(postgres.url("nowhere_at_all"), schema=schema), "database_missing")


def test_a_database_that_cannot_hold_every_text_is_refused(postgres, schema) -> None:
    """Texts in Latin-1 would lose letters; an old server lacks what is used. Nothing is made there."""
    name = f"latin_{uuid4().hex[:8]}"
    told(postgres, f"CREATE DATABASE {name} ENCODING 'LATIN1' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    with pytest.raises(InvalidError) as caught:
        PostgresDatabase(postgres.url(name), schema=schema)
    assert caught.value.code == "database_encoding"
    assert "LATIN1" in str(caught.value)
    with psycopg.connect(postgres.url(name)) as connection:
        assert not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchall()
    with pytest.raises(InvalidError) as old:
        refuse_unfit("UTF8", 120_022)
    assert old.value.code == "database_old"


def test_missing_rights_are_named(postgres, schema) -> None:
    """To make the schema, to make tables in one that is there, to read and to write them; what was booked stays."""
    with PostgresDatabase(postgres.url(), schema=schema) as db:
        Ledger(db).post(drafts(3), key="first", at_ns=1)
    with role(postgres) as name:
        url = as_role(postgres, name)
        refused(lambda: PostgresDatabase(url, schema=f"{schema}_new"), "database_forbidden")
        told(postgres, f"CREATE SCHEMA {schema}_bare", f"GRANT USAGE ON SCHEMA {schema}_bare TO {name}")
        refused(lambda: PostgresDatabase(url, schema=f"{schema}_bare"), "database_forbidden")
        refused(lambda: PostgresDatabase(url, schema=schema), "database_forbidden")
        told(
            postgres,
            f"GRANT USAGE ON SCHEMA {schema} TO {name}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {name}",
        )
        with PostgresDatabase(url, schema=schema) as db:
            ledger = Ledger(db)
            refused(lambda: ledger.post(drafts(3), key="second", at_ns=2), "database_forbidden")
            assert ledger.balance(CASH, USD).balance_units == 3
            told(postgres, f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {name}")
            assert not ledger.post(drafts(3), key="second", at_ns=2).replayed


@pytest.mark.parametrize(
    ("option", "waits"),
    [
        ("statement_timeout", lambda db: db.query("SELECT pg_sleep(30)")),
        ("idle_in_transaction_session_timeout", lambda db: (db.query("SELECT 1"), time.sleep(1.2))),
    ],
    ids=["statement", "idle"],
)
def test_what_the_server_does_not_wait_for_is_booked_when_repeated(postgres, schema, option, waits) -> None:
    """A statement or a pause that is too long for the role ends the whole block, which says so; its retry is whole."""
    with (
        role(postgres, f"{option} TO 700", options="LOGIN SUPERUSER") as name,
        PostgresDatabase(as_role(postgres, name), schema=schema) as db,
    ):
        ledger = Ledger(db)

        def slow() -> None:
            with db.transaction():
                ledger.post(drafts(5), key="slow", at_ns=1)
                waits(db)
                ledger.post(drafts(1), key="after", at_ns=1)

        refused(slow, "database_timeout")
        assert ledger.balances() == ()
        assert not ledger.post(drafts(5), key="slow", at_ns=1).replayed
        assert ledger.check() == ()


def test_a_connection_that_was_ended_between_two_bookings_is_made_anew(postgres, schema) -> None:
    """An administrator, a firewall or an idle time ended it: neither a reader nor a writer notices."""
    with PostgresDatabase(postgres.url(), schema=schema) as db:
        ledger = Ledger(db)
        for number in range(3):
            ((process,),) = db.query("SELECT pg_backend_pid()")
            told(postgres, f"SELECT pg_terminate_backend({process}, 5000)")
            if number % 2:
                assert ledger.balance(CASH, USD).balance_units == number
            assert not ledger.post(drafts(1), key=f"{number}", at_ns=1).replayed
        assert ledger.balance(CASH, USD).balance_units == 3


def test_a_writer_that_may_only_read_is_told_so(postgres, schema) -> None:
    """A role that the server keeps from writing: it reads, its bookings are refused, and none is half there."""
    with PostgresDatabase(postgres.url(), schema=schema) as db:
        Ledger(db).post(drafts(2), key="first", at_ns=1)
    with (
        role(postgres, "default_transaction_read_only TO on", options="LOGIN SUPERUSER") as name,
        PostgresDatabase(as_role(postgres, name), schema=schema) as db,
    ):
        refused(lambda: Ledger(db).post(drafts(1), key="second", at_ns=2), "database_read_only")
        assert Ledger(db).balance(CASH, USD).balance_units == 2


@pytest.mark.slow
def test_a_standby_reads_and_books_once_it_is_the_primary(tmp_path: Path) -> None:
    """A real replica refuses to be written to, an address that asks for a primary refuses it; promoted, it goes on."""
    with cluster(durable=True) as primary:
        with PostgresDatabase(primary.url(), schema="headwater") as db:
            Ledger(db).post(drafts(2), key="first", at_ns=1)
        copy = primary.folder / "copy"
        primary._as_server(
            "pg_basebackup", "-D", str(copy), "-h", str(primary.folder), "-U", "headwater", "-R", "-c", "fast"
        )
        second = SimpleNamespace(folder=primary.folder / "second", data=copy, durable=True)
        second.folder.mkdir()
        second.folder.chmod(0o711)
        if os.getuid() == 0:
            shutil.chown(second.folder, STAND_IN)
        standby = Cluster.__new__(Cluster)
        standby.folder, standby.data, standby.durable = second.folder, second.data, second.durable
        standby.start()
        try:
            with PostgresDatabase(standby.url(), schema="headwater") as db:
                ledger = Ledger(db)
                refused(lambda: ledger.post(drafts(1), key="second", at_ns=2), "database_read_only")
                assert ledger.balance(CASH, USD).balance_units == 2
                asked = standby.url() + "&target_session_attrs=read-write"
                refused(lambda: PostgresDatabase(asked, schema="headwater"), "database_read_only")
                primary.stop("immediate")
                standby._as_server("pg_ctl", "-D", str(copy), "-w", "promote")
                assert not ledger.post(drafts(1), key="second", at_ns=2).replayed
                assert ledger.post(drafts(2), key="first", at_ns=1).replayed
                assert ledger.check() == ()
                both = f"postgresql://headwater@/postgres?host={primary.folder},{standby.folder}"
                with PostgresDatabase(both + "&target_session_attrs=read-write", schema="headwater") as found:
                    assert Ledger(found).balance(CASH, USD).balance_units == 3
        finally:
            standby.stop()
            primary.start()  # so that there is one to stop


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of four megabytes that the server may use, which runs as somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="hw-disk-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0777", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        folder.rmdir()
        pytest.skip("needs the right to mount a small disk")
    try:
        place = folder / "tables"
        place.mkdir()
        if os.getuid() == 0:
            shutil.chown(place, STAND_IN)
        yield place
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


@pytest.mark.slow
def test_a_full_disk_of_the_server_loses_nothing_that_was_booked(small_disk: Path) -> None:
    """The booking that no longer fits says so and is not there; those before it are; with room it is booked."""
    with cluster(durable=True) as server:
        told(
            server, f"CREATE TABLESPACE small LOCATION '{small_disk}'", "CREATE DATABASE full_one TABLESPACE pg_default"
        )
        told(server, "ALTER DATABASE full_one SET default_tablespace TO small")
        with PostgresDatabase(server.url("full_one"), schema="headwater") as db:
            ledger = Ledger(db)
            booked = 0

            def fill() -> None:
                nonlocal booked
                for booked in range(200):
                    ledger.post(drafts(500, 500 * booked), key=f"{booked}", at_ns=1)

            refused(fill, "disk_full")
            assert booked > 0
            assert ledger.balance(CASH, USD).balance_units == 500 * booked
            assert ledger.check() == ()
            subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk.parent)], check=True)
            assert not ledger.post(drafts(500, 500 * booked), key=f"{booked}", at_ns=1).replayed
            assert ledger.check() == ()
