"""A home folder and its database belong together, wherever it is, and its address is shown without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from headwater.cli import main
from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.ledger import deposit
from headwater.settings import load
from headwater.store.database_address import parse_address, shown
from headwater.store.home_database import MARK, open_home_database
from headwater.store.ledger_store import Ledger

pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'headwater[postgres]'")


@pytest.fixture
def address(postgres) -> str:
    """A schema that no other test uses."""
    return f"{postgres.url()}&schema=home_{uuid4().hex[:12]}"


def refused(folder: Path, setting: str, **options: bool) -> HeadwaterError:
    """What opening a home is refused with."""
    with pytest.raises(HeadwaterError) as caught:
        open_home_database(folder, setting, **options).close()
    return caught.value


def test_a_home_on_a_server_is_made_once_and_found_again(address, tmp_path) -> None:
    """What was booked is there at the next opening, by whoever opens it, and the folder holds what is no table."""
    with open_home_database(tmp_path, address) as db:
        Ledger(db).post([deposit("payer:key_1", 5, asset="USD", cause="d")], key="k", at_ns=1)
        assert db.folder == tmp_path
    for create in (True, False):
        with open_home_database(tmp_path, address, create=create) as db:
            assert Ledger(db).balance("payer:key_1", "USD").balance_units == 5
    assert not (tmp_path / "headwater.db").exists()


def test_a_folder_and_a_database_that_do_not_belong_together_are_refused(address, postgres, tmp_path) -> None:
    """An empty database, one of another home and none at all: each refusal says what to do, and nothing is made."""
    first, second = tmp_path / "first", tmp_path / "second"
    other = f"{postgres.url()}&schema=home_{uuid4().hex[:12]}"
    for folder, setting in ((first, address), (second, other)):
        folder.mkdir()
        with open_home_database(folder, setting) as db:
            Ledger(db)
    assert refused(first, other).code == "home_database_differs"
    assert refused(first, "").code == "home_database_differs"
    empty = f"{postgres.url()}&schema=home_{uuid4().hex[:12]}"
    assert refused(first, empty).code == "database_missing"
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    error = refused(fresh, address)
    assert error.code == "home_database_differs"
    assert "holds records already" in error.message
    assert list(fresh.iterdir()) == []
    with open_home_database(first, address) as db:
        assert db.query("SELECT count(*) FROM home_marks") == [(1,)]


@pytest.mark.sqlite
def test_a_home_in_a_file_is_not_left_behind_for_an_empty_server(address, tmp_path) -> None:
    """Setting a server for a home that has its records in a file is refused with the way across."""
    with open_home_database(tmp_path, "") as db:
        Ledger(db)
    error = refused(tmp_path, address)
    assert error.code == "home_database_differs"
    assert "home move" in str(error)


def test_a_home_that_is_not_there_is_not_made_by_reading(address, tmp_path) -> None:
    """Neither folder, mark nor schema appear."""
    for setting in ("", address):
        with pytest.raises(MissingError):
            open_home_database(tmp_path / "home", setting, create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_death_between_the_two_marks_is_mended(address, tmp_path) -> None:
    """A schema that has a mark and nothing else belongs to the folder that comes next."""
    with open_home_database(tmp_path, address):
        pass
    before = json.loads((tmp_path / MARK).read_text())
    (tmp_path / MARK).unlink()
    with open_home_database(tmp_path, address) as db:
        Ledger(db)
    assert json.loads((tmp_path / MARK).read_text()) == before
    (tmp_path / MARK).write_text("{}")
    assert refused(tmp_path, address).code == "home_mark_invalid"


@pytest.mark.parametrize(
    ("address", "seen"),
    [
        ("postgresql://ada:s3cret@db/money", "postgresql://ada:***@db/money"),
        ("postgres://ada:s3:c@ret@db:5433/money?sslmode=require", "postgresql://ada:***@db:5433/money?sslmode=require"),
        ("postgresql:///money?password=s3cret&host=/run/pg", "postgresql:///money?password=***&host=/run/pg"),
        ("postgresql://ada@one:1,two:2/money?schema=east", "postgresql://ada@one:1,two:2/money?schema=east"),
    ],
)
def test_an_address_is_shown_without_its_password(address: str, seen: str) -> None:
    """Everything else of it stays readable, and what libpq is given has no word that it does not know."""
    parsed = parse_address(address)
    assert parsed.shown == shown(address) == seen
    assert "s3" not in repr(parsed) + seen
    assert "schema=" not in parsed.url
    assert urlsplit(parsed.url).hostname == urlsplit(address).hostname


@pytest.mark.parametrize(
    "address",
    ["mysql://ada:s3cret@db/x", "ada:s3cret@db", "postgresql://[s3cret", "postgresql://db/x?schema=Not;s3", "://s3"],
)
def test_an_address_that_cannot_be_read_is_not_repeated(address: str) -> None:
    """It might hold a password."""
    with pytest.raises(InvalidError) as caught:
        parse_address(address)
    assert caught.value.code == "database_address_invalid"
    assert "s3cret" not in str(caught.value)
    assert shown(address) == "***"


def test_a_server_that_refuses_does_not_tell_the_password(postgres, tmp_path) -> None:
    """Nor does one that libpq cannot make sense of."""
    for address, code in (
        ("postgresql://ada:s3cret@127.0.0.1:1/x", "database_unreachable"),
        ("postgresql://ada:s3cret@/x?host=/nonexistent&unknown=s3cret", "database_address_invalid"),
    ):
        error = refused(tmp_path, address)
        assert error.code == code
        assert "s3cret" not in f"{error!r} {error} {error.__cause__!r}"


def test_the_setting_is_shown_without_its_password(monkeypatch, capsys, tmp_path) -> None:
    """By the command, by a setting's refusal and by the settings as a value."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEADWATER_DATABASE", "postgresql://ada:s3cret@db/money?schema=east")
    with pytest.raises(SystemExit) as ended:
        main(["settings", "show", "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)["database"]
    assert found == {"value": "postgresql://ada:***@db/money?schema=east", "source": "environment HEADWATER_DATABASE"}
    assert "s3cret" not in repr(load().settings)
    monkeypatch.setenv("HEADWATER_DATABASE", "mysql://ada:s3cret@db/money")
    with pytest.raises(SystemExit):
        main(["settings", "show", "--json"])
    said = capsys.readouterr()
    assert "database_address_invalid" in said.err
    assert "s3cret" not in said.err + said.out
