"""`headwater invoice`: every command as an operator types it, and lists of payments as banks write them."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.main import main
from headwater.core.instants import SECOND_NS, format_instant
from headwater.core.money import format_units
from headwater.flow import CallRequest, Message
from headwater.models.backend import Sampling
from headwater.store.database import Database
from headwater.store.invoice_store import SETTLED_NS
from toy.home import open_home

HEAD = "reference,amount,currency,text\n"


class Commands:
    """Runs commands on a home."""

    def __init__(self, home: Path, capture: Callable[[], Any]) -> None:
        self.home, self._capture = home, capture

    def text(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Status, standard output and errors."""
        with pytest.raises(SystemExit) as end:
            main([*map(str, arguments), "--home", str(self.home)])
        shown = self._capture()
        return int(end.value.code or 0), shown.out, shown.err

    def __call__(self, *arguments: str | Path) -> tuple[int, Any]:
        """Status and JSON."""
        status, out, err = self.text(*arguments, "--json")
        return status, json.loads(out or err)

    def credit(self, key: str) -> str:
        """What a key may spend."""
        (found,) = [one for one in self("key", "list")[1] if one["key_id"] == key]
        return format_units(int(found["available_units"]))

    def match(self, text: str | bytes, *more: str) -> tuple[int, list[dict[str, Any]]]:
        """What becomes of a bank's list."""
        file = self.home.parent / "bank.csv"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return self("invoice", "match", file, *more)

    def clean(self) -> None:
        """The books hold."""
        status, found, error = self.text("ledger", "check")
        assert status == 0, found + error


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Commands:
    """Commands on a new home."""
    return Commands(tmp_path / "home", capsys.readouterr)


@pytest.fixture
def key(run: Commands) -> str:
    """A key."""
    return str(run("key", "create", "payer")[1]["key_id"])


@pytest.fixture
def currency(run: Commands, key: str) -> str:
    """The currency of the books."""
    return str(run("invoice", "create", key, "--amount", "50.00")[1]["currency"])


def test_credit_is_invoiced_listed_paid_and_exported(run: Commands, key: str):
    """As JSON and as text; the money is the key's credit once, whatever is typed twice."""
    _, made = run("invoice", "create", key, "--amount", "5.00")
    assert (made["invoice"], made["amount"], made["status"]) == ("HW-000001", "5.000000000", "open")
    assert [one["invoice"] for one in run("invoice", "list", "--open")[1]] == ["HW-000001"]

    first, again = (run("invoice", "paid", "HW-000001", "--reference", "transfer 1") for _ in range(2))
    assert (first[0], first[1]["status"], first[1]["replayed"], again[1]["replayed"]) == (0, "paid", False, True)
    assert run.credit(key) == "5.000000000"
    assert run("invoice", "list", "--open")[1] == []
    assert run("invoice", "list", "--key", "key_other")[1] == []

    status, out, _ = run.text("invoice", "export", "HW-000001")
    (line,) = csv.DictReader(io.StringIO(out))
    assert (status, line["model"], line["price"]) == (0, "credit", "5.000000000")
    assert json.loads(run.text("invoice", "export", "1", "--form", "json")[1])["reference"] == "transfer 1"
    assert run.text("invoice", "list")[1].split() == ["HW-000001", "paid", "5.000000000", made["currency"], key]
    assert "booked before" in run.text("invoice", "paid", "1", "--reference", "transfer 1")[1]
    run.clean()


def test_a_period_is_invoiced_as_the_ledger_charged_it(run: Commands, tmp_path: Path):
    """Every call of it is a line of the export, and the lines sum to the invoice."""
    with open_home(tmp_path / "home") as toy:
        _, key = toy.key()
        for number in range(3):
            request = CallRequest("toy", (Message("user", f"x{number}"),), Sampling(5), f"sha256:{number:064d}")
            list(toy.flow.answer(toy.flow.open(request, key)))  # type: ignore[arg-type]
        long_ago = time.time_ns() - 3 * SETTLED_NS
        with toy.db.transaction():
            toy.db.execute("UPDATE calls SET created_at_ns = ?", (long_ago,))
        spent = toy.spent(key)
    ends = ("--from", format_instant(long_ago - SECOND_NS), "--until", format_instant(long_ago + SECOND_NS))
    _, made = run("invoice", "create", key.key_id, *ends)
    rows = list(csv.DictReader(io.StringIO(run.text("invoice", "export", "1")[1])))

    assert made["lines"] == [{"model": "toy", "calls": 3, "amount": made["amount"]}]
    assert int(made["amount"].replace(".", "")) == spent
    assert len(rows) == 3
    assert sum(int(row["price"].replace(".", "")) for row in rows) == spent
    assert run("invoice", "create", key.key_id, *ends)[1]["error"]["code"] == "period_invoiced"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("create", "KEY"), "period_invalid"),
        (("create", "KEY", "--amount", "0"), "amount_out_of_range"),
        (("create", "KEY", "--amount", "much"), "amount_invalid"),
        (("create", "KEY", "--from", "yesterday", "--until", "2026-01-01T00:00:00Z"), "instant_invalid"),
        (("create", "key_none", "--amount", "1"), "key_unknown"),
        (("paid", "7", "--reference", "x"), "invoice_unknown"),
        (("paid", "none", "--reference", "x"), "invoice_invalid"),
        (("paid", "1", "--reference", ""), "reference_invalid"),
        (("match", "nowhere.csv"), "file_missing"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_code(run: Commands, key: str, arguments: tuple[str, ...], code: str):
    """Status 1, and nothing is made, numbered or booked."""
    run("invoice", "create", key, "--amount", "5")
    status, told = run("invoice", *(key if one == "KEY" else one for one in arguments))

    assert (status, told["error"]["code"]) == (1, code)
    assert [one["status"] for one in run("invoice", "list")[1]] == ["open"]


def test_a_list_of_payments_books_each_of_them_once(run: Commands, key: str, currency: str):
    """Two invoices in one list; the list again, and one that overlaps it, book only what is new."""
    run("invoice", "create", key, "--amount", "7.50")
    head = HEAD + f"bank/1,50.00,{currency},Invoice HW-000001 thank you\n"
    first = run.match(head + f"bank/2,7.5,{currency},hw-2\n")
    again = run.match(head + f"bank/2,7.50,{currency},hw-2\nbank/2,7.50,{currency},hw-2\n")

    assert (first[0], [(one["invoice"], one["status"], one["is"]) for one in first[1]]) == (
        0,
        [("HW-000001", "booked", "paid"), ("HW-000002", "booked", "paid")],
    )
    assert (again[0], [one["status"] for one in again[1]]) == (0, ["repeated"] * 3)
    assert run.credit(key) == "57.500000000"
    run.clean()


def test_part_of_an_invoice_and_more_than_it_are_credit_too(run: Commands, key: str, currency: str):
    """What came is booked, no more and no less; the invoice says how much came and is paid when it is whole."""
    states = []
    for number, amount in enumerate(("20.00", "29.99", "0.01", "3.00")):
        _, (line,) = run.match(HEAD + f"bank/{number},{amount},{currency},HW-000001\n")
        (listed,) = run("invoice", "list")[1]
        states.append((line["is"], listed["received"], run.credit(key)))

    assert states == [
        ("part", "20.000000000", "20.000000000"),
        ("part", "49.990000000", "49.990000000"),
        ("paid", "50.000000000", "50.000000000"),
        ("overpaid", "53.000000000", "53.000000000"),
    ]
    assert listed["reference"] == "bank/2"
    assert run("invoice", "list", "--open")[1] == []
    run.clean()


def test_paid_books_what_is_still_due(run: Commands, key: str, currency: str):
    """After a part; a payment in the list that `paid` has booked by hand is not booked again."""
    run.match(HEAD + f"bank/1,20.00,{currency},HW-000001\n")
    status, paid = run("invoice", "paid", "HW-000001", "--reference", "bank/2")
    _, (line,) = run.match(HEAD + f"bank/2,30.00,{currency},HW-000001\n")

    assert (status, paid["status"], paid["received"]) == (0, "paid", "50.000000000")
    assert line["status"] == "repeated"
    assert run("invoice", "paid", "HW-000001", "--reference", "bank/3")[1]["error"]["code"] == "invoice_paid"
    assert run.credit(key) == "50.000000000"
    run.clean()


def test_wrong_lines_are_told_by_number_and_the_others_are_booked(run: Commands, key: str, currency: str):
    """Status 1; each wrong line has a code and says what is wrong with it."""
    run("invoice", "create", key, "--amount", "1")
    lines = [
        (f"bank/1,50.00,{currency},HW-000001", "booked"),
        (f"bank/2,1.00,{currency},thank you", "invoice_not_named"),
        (f"bank/3,1.00,{currency},HW-000001 and HW-000002", "invoice_not_named"),
        (f"bank/4,1.00,{currency},HW-000099", "invoice_unknown"),
        (f"bank/5,-1.00,{currency},HW-000002", "amount_out_of_range"),
        (f"bank/6,1.00.0,{currency},HW-000002", "amount_invalid"),
        ("bank/7,1.00,XXX,HW-000002", "currency_other"),
        (f",1.00,{currency},HW-000002", "reference_invalid"),
        (f"bank/1,49.00,{currency},HW-000001", "reference_used"),
        (f"bank/1,50.00,{currency},HW-000002", "reference_used"),
        ("bank/8", "currency_other"),
        (f'"bank/9","1.00",{currency},"two\nlines, HW-000002"', "booked"),
    ]
    text = HEAD + "\n".join(line for line, _ in lines) + "\n"
    dry = run.match(text, "--dry-run")
    status, found = run.match(text)

    assert (status, [one["status"] for one in found]) == (1, [what for _, what in lines])
    assert [one["line"] for one in found[:11]] == list(range(2, 13))
    assert all(one["problem"] for one in found if "problem" in one)
    assert dry == (status, found)
    assert run.credit(key) == "51.000000000"
    run.clean()


def test_a_dry_run_books_nothing(run: Commands, key: str, currency: str):
    """And says what it would."""
    status, (line,) = run.match(HEAD + f"bank/1,50.00,{currency},HW-000001\n", "--dry-run")

    assert (status, line["status"], line["is"]) == (0, "booked", "paid")
    assert [one["status"] for one in run("invoice", "list")[1]] == ["open"]
    assert run.credit(key) == "0.000000000"


def test_lists_come_with_semicolons_marks_and_in_utf_8_or_not_at_all(run: Commands, key: str, currency: str):
    """What is no list books nothing."""
    spread = b"\xef\xbb\xbfdate;reference;amount;currency;text\r\n2026-11-02;bank/\xc3\xa91;50.00;CCC;HW-000001\r\n"
    status, (line,) = run.match(spread.replace(b"CCC", currency.encode()))

    assert (status, line["reference"], line["status"]) == (0, "bank/é1", "booked")
    for raw in (b"", b"a,b\n", HEAD.encode() + b"\xff,1,X,HW-1\n", b"x" * (8 * 2**20 + 1)):
        status, told = run.match(raw)
        assert (status, told["error"]["code"]) == (1, "list_invalid")  # type: ignore[call-overload]
    assert run.credit(key) == "50.000000000"


def test_the_table_of_a_list_is_readable(run: Commands, key: str, currency: str):
    """A line each, and the sum of what is new; what the bank wrote is shown as text."""
    file = run.home.parent / "bank.csv"
    file.write_text(HEAD + f"[red]1,50.00,{currency},HW-000001\nb2,1.00,{currency},?\n")
    status, out, _ = run.text("invoice", "match", file)

    assert status == 1
    assert "[red]1" in out
    assert "1 of 2 lines, 50.00 new" in out


def test_invoices_paid_before_payments_had_rows_keep_theirs(run: Commands, key: str, currency: str):
    """A home of the version before: its paid invoice is paid, by the same reference."""
    run("invoice", "paid", "HW-000001", "--reference", "old transfer")
    with Database(run.home / "headwater.db") as db, db.transaction():
        db.execute("DROP TABLE invoice_payments")
        db.execute("DELETE FROM migrations WHERE module = 'invoices' AND step = 1")
    (listed,) = run("invoice", "list")[1]

    assert (listed["status"], listed["received"]) == ("paid", "50.000000000")
    assert run("invoice", "paid", "HW-000001", "--reference", "old transfer")[1]["replayed"] is True
    assert run.credit(key) == "50.000000000"
