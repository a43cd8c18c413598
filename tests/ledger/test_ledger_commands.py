"""`headwater ledger`: answers for people and programs, and the exit status that tells them apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.ledger import app
from headwater.core.ids import call_id
from headwater.ledger import deposit, payouts
from headwater.store.call_store import CallStore
from headwater.store.database import Database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger

USD = "USD"
RECEIPT = "ab" * 32


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with one paid call of 0.00000006 and one that is still being answered."""
    db = Database(tmp_path / "headwater.db")
    ledger, keys = Ledger(db), KeyStore(db)
    _, key = keys.create("demo", bytes(32), 0)
    ledger.post([deposit(key.account, 10**9, asset=USD, cause="deposit:1")], key="d", at_ns=0)
    calls = CallStore(db, ledger, keys, run_id="run")
    for number in (1, 2):
        calls.begin(
            call_id=call_id(number.to_bytes(16, "big")),
            key_id=key.key_id,
            idempotency_key=None,
            request_digest="d",
            model="m",
            ceiling_units=100,
            asset=USD,
            at_ns=number,
        )
    first = call_id((1).to_bytes(16, "big"))
    calls.answered(first, answer=b"a", evidence=b"{}", price_units=60, at_ns=3)
    drafts = payouts([("contributor:ctr_1", 50), ("commons", 10)], asset=USD, receipt_id=RECEIPT)
    calls.attributed(first, RECEIPT, drafts, at_ns=1_700_000_000_000_000_000)
    calls.close()
    db.close()
    return tmp_path


def run(*words: str, home: Path) -> int:
    """The exit status of `headwater ledger …`."""
    status = app([*words, "--home", str(home)], result_action="return_value", exit_on_error=False)
    assert isinstance(status, int)
    return status


def answer(words: Sequence[str], home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command prints with --json."""
    assert run(*words, "--json", home=home) == 0
    return json.loads(capsys.readouterr().out)


def test_balances_of_every_account_with_totals(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Amounts are decimal strings of nano units, and what we have equals what we owe."""
    value = answer(["balance"], home, capsys)
    held = {b["account"]: (b["balance_units"], b["available_units"]) for b in value["balances"]}
    assert held["cash"] == ("1000000000", "1000000000")
    assert held["commons"] == ("10", "10")
    (payer,) = [units for name, units in held.items() if name.startswith("payer:")]
    assert payer == ("999999940", "999999840")
    assert value["totals"] == [
        {
            "asset": USD,
            "have_units": "1000000000",
            "owe_units": "1000000000",
            "reserved_units": "100",
            "accounts_count": 5,
        }
    ]
    assert run("balance", home=home) == 0
    assert "USD: have 1.000000000 = owe 1.000000000, 5 accounts" in capsys.readouterr().out


def test_the_balance_of_one_account(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only that account is shown; one that was never used shows nothing."""
    (one,) = answer(["balance", "contributor:ctr_1"], home, capsys)["balances"]
    assert (one["balance_units"], one["side"]) == ("50", "credit")
    assert answer(["balance", "contributor:ctr_9"], home, capsys) == {"balances": []}


def test_a_statement_shows_each_line_with_its_cause(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Opening, lines and closing agree, and a period cuts what is outside it."""
    (page,) = answer(["statement", "commons"], home, capsys)
    assert (page["opening_units"], page["closing_units"], page["more"]) == ("0", "10", False)
    (line,) = page["lines"]
    assert (line["code"], line["change_units"], line["cause"]) == ("payout", "10", RECEIPT)
    assert line["at"] == "2023-11-14T22:13:20.000000000Z"
    (late,) = answer(["statement", "commons", "--since", "2024-01-01T00:00:00Z"], home, capsys)
    assert (late["opening_units"], late["lines"], late["closing_units"]) == ("10", [], "10")
    assert run("statement", "commons", home=home) == 0
    assert "closing 0.000000010" in capsys.readouterr().out


def test_reservations_past_their_deadline_are_given_back_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what is past its deadline is released, a second run finds nothing, and the ledger stays sound."""
    with Database(home / "headwater.db") as db:
        ledger = Ledger(db)
        (payer,) = [b.account for b in ledger.balances() if b.account.startswith("payer:")]
        for number, deadline in enumerate((2_000, 3_000, 2**62)):
            ledger.reserve(
                payer, 7, key=f"r{number}", asset=USD, cause=f"block:{number}", at_ns=1_000, expires_at_ns=deadline
            )
        before = ledger.available(payer, USD)
    found = answer(["expire"], home, capsys)["expired"]
    assert [(one["payer"], one["units"], one["cause"]) for one in found] == [
        (payer, "7", "block:0"),
        (payer, "7", "block:1"),
    ]
    assert answer(["expire"], home, capsys) == {"expired": []}
    assert run("expire", home=home) == 0
    assert "no reservation is past its deadline" in capsys.readouterr().out
    with Database(home / "headwater.db") as db:
        assert Ledger(db).available(payer, USD) == before + 14
        assert Ledger(db).check() == ()


def test_a_deadline_is_not_brought_forward(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An instant that has not come is refused."""
    assert run("expire", "--at", "2200-01-01T00:00:00Z", "--json", home=home) == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "instant_invalid"


def test_check_passes_on_a_sound_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, the transfers counted, no problems; a call at work is no problem."""
    value = answer(["check", "--books-only"], home, capsys)
    assert value == {
        "sound": True,
        "problems": [],
        "transfers": {"charge": 1, "deposit": 1, "payout": 2, "reserve": 2},
        "balanced": True,
        "chain": "receipts, epochs and chain were not looked at",
    }
    assert run("check", "--books-only", home=home) == 0
    assert "everything adds up" in capsys.readouterr().out


def test_check_exits_with_one_when_something_does_not_add_up(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed balance is a problem that names its account."""
    with Database(home / "headwater.db") as db:
        db.execute("UPDATE balances SET balance_units = 11 WHERE balance_units = 10")
    assert run("check", "--books-only", "--json", home=home) == 1
    value = json.loads(capsys.readouterr().out)
    assert {p["code"] for p in value["problems"]} == {"asset_unbalanced", "balance_differs"}
    assert any(p["where"] == "account commons" for p in value["problems"])
    assert run("check", "--books-only", home=home) == 1
    assert "2 problems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["balance", "bank:x"], "account_invalid"),
        (["statement", "nobody"], "account_invalid"),
        (["statement", "commons", "--since", "yesterday"], "instant_invalid"),
        (["statement", "commons", "--limit", "0"], "page_invalid"),
    ],
)
def test_a_wrong_question_exits_with_two(
    home: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: str
) -> None:
    """The error goes to standard error with its code and fix, and nothing to standard output."""
    assert run(*words, "--json", home=home) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    error = json.loads(printed.err)["error"]
    assert error["code"] == code
    assert error["fix"]


def test_a_missing_home_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Reading from a folder that is not there says so and leaves nothing behind."""
    assert run("check", "--json", home=tmp_path / "none") == 2
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "home_missing"
    assert not (tmp_path / "none").exists()


def test_the_home_comes_from_the_environment(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HEADWATER_HOME names the folder when no flag does."""
    monkeypatch.setenv("HEADWATER_HOME", str(home))
    assert app(["check", "--books-only", "--json"], result_action="return_value") == 0
    assert json.loads(capsys.readouterr().out)["sound"] is True
