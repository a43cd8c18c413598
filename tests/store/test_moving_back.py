"""Moving a home back to its file or on to another schema: the same guarantees, and none of it half, whatever dies."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest

from headwater.cli import main
from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, InvariantError, UpstreamError
from headwater.ledger import deposit
from headwater.store.database import Database
from headwater.store.database_address import PostgresAddress, parse_address
from headwater.store.home_database import open_home_database
from headwater.store.home_steps import HOME_STEPS
from headwater.store.ledger_store import Ledger
from headwater.store.moving import NOTE, move_home

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'headwater[postgres]'")
from whole_home import all_steps, content, fill, sound

from headwater.store.postgres import PostgresDatabase

pytestmark = pytest.mark.sqlite


@pytest.fixture
def addresses(postgres) -> tuple[str, str]:
    """Two schemas, in two databases of a server, that no other test uses."""
    return f"{postgres.url()}&schema=one_{uuid4().hex[:8]}", f"{postgres.fresh()}&schema=two_{uuid4().hex[:8]}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home in its file."""
    fill(tmp_path)
    return tmp_path


def held(folder: Path, setting: str) -> dict[str, list[str]]:
    """Everything that the home has where it is."""
    with open_home_database(folder, setting, create=False) as db:
        return content(db)


def to(address: str) -> PostgresAddress | None:
    """What `move_home` is told."""
    return parse_address(address) if address else None


def test_there_on_and_back_gives_the_same(home: Path, addresses) -> None:
    """File, schema, another server's schema, file, and there again: every row, table, index and trigger is the same."""
    one, two = addresses
    before = held(home, "")
    with sqlite3.connect(home / "headwater.db") as raw:
        made = sorted(raw.execute("SELECT type, name, sql FROM sqlite_master"), key=str)
    assert sum(map(len, before.values())) > 300
    places = ["", one, two, "", one]
    for source, target in pairwise(places):
        moved = move_home(home, to(target), setting=source, check=sound)
        assert held(home, target) == before
        assert moved.rows == sum(map(len, before.values()))
        assert not (home / NOTE).exists()
        if target == "":
            with sqlite3.connect(home / "headwater.db") as raw:
                assert sorted(raw.execute("SELECT type, name, sql FROM sqlite_master"), key=str) == made
            assert (home / "headwater.db").stat().st_mode & 0o077 == 0
            with pytest.raises(ConflictError) as differs:
                open_home_database(home, two)
            assert differs.value.code == "home_database_differs"
    assert {file.name for file in home.glob("headwater*.db")} == {"headwater.moved.db", "headwater.moved2.db"}
    with open_home_database(home, one) as db:  # and it goes on
        Ledger(db).post([deposit("payer:key_1", 5, asset="USD", cause="d")], key="after", at_ns=100)
        assert sound(db) == ()


def test_the_steps_are_those_that_the_stores_apply() -> None:
    """A store that is added or changed is known to a home that moves back."""
    assert dict(HOME_STEPS) == all_steps()


def test_who_still_writes_where_a_home_was_is_told(home: Path, addresses) -> None:
    """A process that had the schema open finds it gone; none of its bookings lands where nobody looks."""
    one, _ = addresses
    move_home(home, to(one), check=sound)
    with open_home_database(home, one) as stray:
        ledger = Ledger(stray)
        move_home(home, None, setting=one, check=sound)
        with pytest.raises(UpstreamError) as gone:
            ledger.post([deposit("payer:key_1", 5, asset="USD", cause="d")], key="stray", at_ns=100)
        assert gone.value.code == "database_gone"
        schema = to(one).schema
        assert stray.query("SELECT nspname FROM pg_namespace WHERE nspname LIKE ?", (f"{schema}%",)) == [
            (f"{schema}_moved",)
        ]


def refused(folder: Path, target: str, source: str) -> str:
    """The code with which a move is refused, that left no trace."""
    before = sorted(file.name for file in folder.iterdir())
    with pytest.raises(HeadwaterError) as caught:
        move_home(folder, to(target), setting=source, check=sound)
    assert caught.value.fix
    assert sorted(file.name for file in folder.iterdir()) == before
    return caught.value.code


def test_what_is_unsound_taken_or_there_already_does_not_move(home: Path, addresses) -> None:
    """Each is refused with a code; the home stays where it was, whole."""
    one, two = addresses
    assert refused(home, "", "") == "home_moved_already"
    move_home(home, to(one), check=sound)
    before = held(home, one)
    assert refused(home, one, one) == "home_moved_already"
    renamed = one.replace("headwater@/", "headwater@/", 1) + "&application_name=other"
    assert refused(home, renamed, one) == "home_moved_already"  # the same schema by another address
    assert refused(home, "", two) == "database_missing"
    assert refused(home, "", "") == "home_database_differs"
    (home / "headwater.db").write_bytes(b"somebody's")
    assert refused(home, "", one) == "home_target_taken"
    assert (home / "headwater.db").read_bytes() == b"somebody's"
    (home / "headwater.db").unlink()
    with PostgresDatabase(to(two).url, schema=to(two).schema) as other:
        other.execute("CREATE TABLE something (k bigint)")
    assert refused(home, two, one) == "home_target_taken"
    with open_home_database(home, one) as db:
        db.execute("UPDATE balances SET balance_units = balance_units + 1 WHERE account = 1")
    assert refused(home, "", one) == "move_unsound"
    with open_home_database(home, one) as db:
        db.execute("UPDATE balances SET balance_units = balance_units - 1 WHERE account = 1")
        db.execute("INSERT INTO migrations VALUES ('tomorrow', 0, 'x')")
    with pytest.raises(InvalidError) as newer:
        move_home(home, None, setting=one, check=sound)
    assert newer.value.code == "database_newer"
    with open_home_database(home, one) as db:
        db.execute("DELETE FROM migrations WHERE module = 'tomorrow'")
        db.execute("UPDATE migrations SET digest = 'x' WHERE module = 'calls' AND step = 0")
    with pytest.raises(InvariantError) as edited:
        move_home(home, None, setting=one, check=sound)
    assert edited.value.code == "migration_changed"
    with open_home_database(home, one) as db:
        db.execute("UPDATE migrations SET digest = ? WHERE module = 'calls' AND step = 0", (digest_of(before),))
    assert held(home, one) == before


def digest_of(rows: dict[str, list[str]]) -> str:
    """The digest of the first step of the calls."""
    (row,) = (row for row in rows["migrations"] if row.startswith("('calls', 0, "))
    return row.split("'")[3]


def test_the_commands_of_the_way_back(home: Path, addresses, capsys, monkeypatch) -> None:
    """The way an operator goes: there, back, and once more for nothing."""
    one, _ = addresses
    given = ["--home", str(home), "--json"]

    def run(*tokens: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main([*tokens, *given])
        return int(ended.value.code or 0)

    assert run("home", "move", "--to", one) == 0
    monkeypatch.setenv("HEADWATER_DATABASE", one)
    assert run("key", "list") == 0
    assert run("home", "move", "--to", "file") == 0
    assert f'"database": "{home / "headwater.db"}"' in capsys.readouterr().out
    assert run("home", "move", "--to", "file") == 1
    assert "home_moved_already" in capsys.readouterr().err
    assert run("key", "list") == 1
    assert "leave the setting empty" in capsys.readouterr().err
    monkeypatch.setenv("HEADWATER_DATABASE", "")
    assert run("key", "list") == 0


# Death


def killed(act: Callable[[], object], at: int) -> int:
    """Let a process of its own do something and die before its effect number `at`; how many effects it had.

    Effects are what others could see: files that are forced to the disk, renamed or removed, commands of a server, and
    commits of a file.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        seen = 0

        def counted(of: object, name: str) -> None:
            done = getattr(of, name)

            def instead(*given: object, **named: object) -> object:
                nonlocal seen
                seen += 1
                if seen == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done(*given, **named)

            setattr(of, name, instead)

        for of, name in (
            *((os, name) for name in ("rename", "fsync")),
            *((Path, name) for name in ("replace", "unlink")),
            (PostgresDatabase, "_tell"),
            (Database, "query"),
        ):
            counted(of, name)
        with suppress(BaseException):
            act()
            os.write(writer, seen.to_bytes(4, "big"))
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    told = os.read(reader, 4)
    os.close(reader)
    return int.from_bytes(told, "big")


@pytest.mark.slow
def test_killed_at_any_moment_the_home_is_in_one_place_and_the_same_command_ends_it(tmp_path: Path, addresses) -> None:
    """To a schema, on to another and back to the file: whole where it was or whole where it goes, and never in both."""
    fill(tmp_path)
    one, two = addresses
    before = held(tmp_path, "")
    trips = [("", one), (one, two), (two, "")]
    sizes = {}
    for source, target in trips:
        sizes[source, target] = killed(lambda s=source, t=target: move_home(tmp_path, to(t), setting=s, check=sound), 0)
        assert sizes[source, target] > 20, (source, target)
    deaths = 0
    for part in (0.5, *range(-14, 0)):
        for source, target in trips:
            size = sizes[source, target]
            at = int(part * size) if isinstance(part, float) else size + 1 + part
            killed(lambda s=source, t=target: move_home(tmp_path, to(t), setting=s, check=sound), at)
            found = []
            for place in (source, target):
                with suppress(HeadwaterError):
                    found.append(held(tmp_path, place))
            assert found == [before], (source, target, at, size)
            with suppress(ConflictError):  # all was done when it died
                deaths += move_home(tmp_path, to(target), setting=source, check=sound).rows > 0
            assert held(tmp_path, target) == before, (source, target, at, size)
            assert not list(tmp_path.glob("headwater.moving*"))
            assert not (tmp_path / NOTE).exists()
    assert deaths > 30
