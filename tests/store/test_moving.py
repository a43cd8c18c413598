"""Moving a home from its file to PostgreSQL: all of it arrives, in the same tables as fresh ones, or nothing does."""

from __future__ import annotations

import importlib
import sqlite3
from pathlib import Path
from uuid import uuid4

import pytest

from headwater.cli import main
from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, InvariantError, MissingError
from headwater.core.ids import call_id
from headwater.store.call_store import CallStore
from headwater.store.database_address import parse_address
from headwater.store.home_database import open_home_database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.moving import move_home

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'headwater[postgres]'")
from whole_home import fill, sound, with_every_table

from headwater.store.postgres import PostgresDatabase

pytestmark = pytest.mark.sqlite


def schema_of(db: PostgresDatabase) -> list[list[tuple]]:
    """Columns, indexes, constraints, triggers and views, as the server has them, without the schema's name."""
    asked = (
        "SELECT table_name, column_name, data_type, collation_name, is_nullable,"
        " replace(column_default, '{0}.', ''), ordinal_position FROM information_schema.columns"
        " WHERE table_schema = '{0}' ORDER BY 1, 7",
        "SELECT indexname, replace(indexdef, '{0}.', '') FROM pg_indexes WHERE schemaname = '{0}' ORDER BY 1",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = '{0}'::regnamespace ORDER BY 1, 2",
        "SELECT tgname, replace(pg_get_triggerdef(t.oid), '{0}.', ''), prosrc FROM pg_trigger t"
        " JOIN pg_class c ON c.oid = tgrelid JOIN pg_proc p ON p.oid = tgfoid"
        " WHERE relnamespace = '{0}'::regnamespace AND NOT tgisinternal ORDER BY 1",
        "SELECT viewname, definition FROM pg_views WHERE schemaname = '{0}' ORDER BY 1",
    )
    return [db.query(sql.replace("{0}", db.schema)) for sql in asked]


@pytest.fixture
def address(postgres) -> str:
    """A schema that no other test uses."""
    return f"{postgres.url()}&schema=moved_{uuid4().hex[:12]}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the tables of every store, a call that was paid and a call at work."""
    fill(tmp_path)
    return tmp_path


def test_everything_arrives_and_works(home: Path, address: str) -> None:
    """Balances, calls and their texts are as they were, the next call goes on, and the file is put aside."""
    with open_home_database(home, "") as db:
        before = Ledger(db).balances(), CallStore(db, Ledger(db), KeyStore(db)).get(call_id(bytes(16)))
        numbers = db.query("SELECT max(number) FROM calls")
    moved = move_home(home, parse_address(address), check=sound)
    assert moved.before == str(home / "headwater.moved.db")
    assert not (home / "headwater.db").exists()
    with open_home_database(home, address, create=False) as db:
        ledger, keys = Ledger(db), KeyStore(db)
        calls = CallStore(db, ledger, keys, run_id="after")
        assert (ledger.balances(), calls.get(call_id(bytes(16)))) == before
        assert calls.recover(at_ns=99).released == (call_id((39).to_bytes(16, "big")),)
        (key,) = keys.list()
        calls.begin(call_id=call_id(b"n" * 16), key_id=key.key_id, idempotency_key=None, request_digest=digest(b"r"),
                    model="m", ceiling_units=20, asset="USD", at_ns=100)  # fmt: skip
        assert db.query("SELECT max(number) FROM calls") == [(numbers[0][0] + 1,)]
        assert calls.check() == ()
        assert db.integrity() == ()
        calls.close()
    with pytest.raises(ConflictError) as again:
        move_home(home, parse_address(address), check=sound)
    assert again.value.code == "home_moved_already"


def test_tables_that_were_moved_are_the_same_as_fresh_ones(home: Path, address: str, postgres) -> None:
    """Whatever steps made them: columns, defaults, indexes, constraints, triggers and views do not differ."""
    parsed = parse_address(address)
    move_home(home, parsed, check=sound)
    fresh = f"fresh_{uuid4().hex[:12]}"
    with (
        PostgresDatabase(parsed.url, schema=parsed.schema) as moved,
        with_every_table(PostgresDatabase(postgres.url(), schema=fresh)) as made,
    ):
        assert isinstance(made, PostgresDatabase)
        made.migrate("home", importlib.import_module("headwater.store.home_database").STEPS)
        found, expected = schema_of(moved), schema_of(made)
        for of_one, of_other in zip(found, expected, strict=True):
            assert sorted(map(str, of_one)) == sorted(map(str, of_other))
        assert len(found[0]) > 200
        assert len(found[3]) > 60


def test_what_is_unsound_or_taken_is_not_moved(home: Path, address: str, postgres) -> None:
    """A balance that does not add up, or a schema with something in it: the home stays as it was."""
    parsed = parse_address(address)
    with sqlite3.connect(home / "headwater.db") as raw:
        raw.execute("UPDATE balances SET balance_units = balance_units + 1 WHERE account = 1")
    with pytest.raises(InvariantError) as unsound:
        move_home(home, parsed, check=sound)
    assert unsound.value.code == "move_unsound"
    with PostgresDatabase(parsed.url, schema=parsed.schema) as db:
        assert db.query("SELECT tablename FROM pg_tables WHERE schemaname = ?", (parsed.schema,)) == [("migrations",)]
        db.execute("CREATE TABLE something (k bigint)")
    with pytest.raises(ConflictError) as taken:
        move_home(home, parsed, check=sound)
    assert taken.value.code == "home_target_taken"
    with open_home_database(home, "") as db:
        assert len(KeyStore(db).list()) == 1
    with pytest.raises(MissingError):
        move_home(home / "elsewhere", parsed, check=sound)


def test_a_home_is_moved_and_shown_by_its_commands(home: Path, address: str, capsys, monkeypatch) -> None:
    """The way an operator goes, and what a wrong setting says afterwards."""
    given = ["--home", str(home), "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["home", "move", "--to", address, *given])
    assert ended.value.code == 0
    assert f'"database": "{parse_address(address).shown}"' in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["ledger", "check", *given])
    assert ended.value.code == 2
    assert "home_database_differs" in capsys.readouterr().err
    monkeypatch.setenv("HEADWATER_DATABASE", address)
    for command in (["key", "list"], ["home", "show"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, *given])
        assert ended.value.code == 0
