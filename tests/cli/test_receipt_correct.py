"""`headwater receipt correct`: a dearer, a repeated and a refused correction, over a home with a paid call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headwater.cli.ledger import app as ledger_app
from headwater.cli.receipt import app
from headwater.flow import CallRequest, Message
from headwater.models import Sampling
from headwater.receipts import Receipt
from headwater.store.receipt_log import ReceiptLog
from toy.home import open_home


@pytest.fixture
def home(tmp_path: Path) -> tuple[Path, Receipt]:
    """A home with the receipt of one answered call."""
    with open_home(tmp_path / "home") as toy:
        _, key = toy.key()
        opened = toy.flow.open(
            CallRequest("toy", (Message("user", "what does a river do?"),), Sampling(12), "sha256:" + "0" * 64), key
        )
        for _ in toy.flow.answer(opened):
            pass
        return toy.path, toy.flow.attribute(opened.record.call_id)


def run(home: Path, *words: str) -> int:
    """The exit status of `headwater receipt …`."""
    status = app([*words, "--home", str(home)], result_action="return_value", exit_on_error=False)
    assert isinstance(status, int)
    return status


def edited(home: Path, receipt: Receipt, capsys: pytest.CaptureFixture[str], **changes: Any) -> Path:
    """What `receipt show --json` prints, with some fields changed."""
    assert run(home, "show", receipt.id, "--json") == 0
    file = home.parent / "edited.json"
    file.write_text(json.dumps(json.loads(capsys.readouterr().out) | changes, indent=2))
    return file


def test_a_dearer_receipt_takes_its_place_and_is_paid_by_the_caller(home, capsys):
    """A dry run logs nothing; the real one divides the new price and books it; repeating changes nothing."""
    path, old = home
    file = edited(path, old, capsys, price=str(old.price * 2))
    assert run(path, "correct", str(file), "--dry-run", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    with ReceiptLog.open(path / "receipts.log", read_only=True) as log:
        assert len(log) == 1

    assert run(path, "correct", str(file), "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert done["moves"] == planned["moves"]
    assert sum(int(m["units"]) for m in done["moves"] if m["from"].startswith("payer:")) == old.price
    with ReceiptLog.open(path / "receipts.log", read_only=True) as log:
        newest = Receipt.from_bytes(log.in_force(old.call_id).raw)
    assert (newest.id, newest.supersedes, newest.price) == (done["receipt"], old.id, old.price * 2)
    assert sum(p.amount for p in newest.payouts) == old.price * 2

    assert run(path, "correct", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "in force already"
    with ReceiptLog.open(path / "receipts.log", read_only=True) as log:
        assert len(log) == 2
    status = ledger_app(["check", "--json", "--home", str(path)], result_action="return_value", exit_on_error=False)
    assert (status, json.loads(capsys.readouterr().out)["problems"]) == (0, [])


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"payer": "pay_somebody_else"}, "correction_differs"),
        ({"price": str(10**15)}, "insufficient_credit"),
        ({"call_id": "call_" + "9" * 32}, "receipt_missing"),
        ({"policy_digest": "sha256:" + "1" * 64}, "policy_missing"),
        ({"price": "-5"}, None),
    ],
)
def test_what_is_no_correction_is_refused_before_anything_is_logged(home, capsys, changes, code):
    """Another caller, more than the payer has, an unknown call or policy: an error, and the log stays as it was."""
    path, old = home
    file = edited(path, old, capsys, **changes)
    assert run(path, "correct", str(file), "--json") == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["fix"]
    assert code in (None, error["code"])
    with ReceiptLog.open(path / "receipts.log", read_only=True) as log:
        assert len(log) == 1
