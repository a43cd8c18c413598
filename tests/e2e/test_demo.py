"""The main job, as a newcomer runs it: a process of its own, a new home, real model, documents, client and chain."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headwater.store.receipt_log import ReceiptLog

pytestmark = pytest.mark.model


def headwater(home: Path, *arguments: str, status: int = 0) -> Any:
    """Run a command with `--json` on a home; gives what it printed."""
    command = [sys.executable, "-m", "headwater", *arguments, "--home", str(home), "--json"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADWATER_")}
    done = subprocess.run(
        command, cwd=home.parent, env=clean, capture_output=True, text=True, timeout=1_500, check=False
    )
    assert done.returncode == status, done.stderr[-2_000:] + done.stdout[-500:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The demo run once: its home and what it said."""
    home = tmp_path_factory.mktemp("demo") / "home"
    return home, headwater(home, "demo")


def test_everything_of_the_corpus_is_registered_or_reported(told):
    """533 proposals with their authors, and a gate that keeps out what states no licence."""
    _, facts = told

    assert facts["registered"]["documents"] == 533
    assert facts["registered"]["authors"] > 200
    assert facts["registered"]["not_permitted_to_ground"] == 33
    assert facts["registered"]["problems"] == []


def test_at_least_four_of_five_questions_pay_the_proposal_that_answers_them_most(told):
    """Credit goes where the answer came from."""
    _, facts = told
    led = [
        answer["expected_source_leads"] for answer in facts["answers"] if answer["expected_source_leads"] is not None
    ]

    assert len(led) == 5
    assert sum(led) >= 4


def test_a_greeting_leaves_at_least_nine_tenths_with_the_residual(told):
    """Nobody is paid at random for a generic answer."""
    _, facts = told
    (greeting,) = [answer for answer in facts["answers"] if answer["question"] == "Say hello."]

    assert greeting["residual_ppb"] >= 900_000_000


def test_every_price_is_divided_to_the_unit_and_the_groups_add_up(told):
    """Payouts of each receipt sum to its price; take, contributors, escrow and residual to what was paid in."""
    _, facts = told

    for answer in facts["answers"]:
        assert sum(int(p["amount_units"]) for p in answer["payouts"]) == int(answer["price_units"]) > 0
        assert sum(s["weight_ppb"] for s in answer["shares"]) + answer["residual_ppb"] == 10**9
    closing = facts["closing"]
    groups = sum(int(v) for g in ("take", "enrolled", "escrow", "residual") for v in closing[g].values())
    assert groups == int(closing["paid_in_units"]) == sum(int(a["price_units"]) for a in facts["answers"])


def test_the_prompt_author_claims_coins_and_nobody_is_paid_more_than_was_funded(told):
    """The enrolled author holds what it earned; the vault covers everything promised."""
    _, facts = told
    epoch, chain = facts["epoch"], facts["chain"]

    assert epoch["claim"]["holds_token_units"] == epoch["claim"]["token_units"] > 0
    assert sum(push["payees"] for push in epoch["pushes"]) >= 1
    assert int(chain["paid_token_units"]) <= int(chain["funded_token_units"])
    assert int(chain["funded_token_units"]) == int(epoch["promised_token_units"])


def test_a_stranger_verifies_one_receipt_and_a_flipped_byte_is_refused(told):
    """Checked by a process without a database."""
    _, facts = told

    assert facts["verified"]["as_issued"] is True
    assert facts["verified"]["one_byte_changed"] is False


def test_the_ledger_check_finds_nothing_afterwards(told):
    """Every asset sums to zero and every receipt is booked once, as a process of its own sees it."""
    home, facts = told

    assert headwater(home, "ledger", "check")["problems"] == []
    assert headwater(home, "epoch", "sync")["problems"] == []
    shown = headwater(home, "epoch", "show")
    assert int(shown["paid_units"]) == int(facts["closing"]["paid_in_units"])
    assert len(headwater(home, "receipt", "list")) == len(facts["answers"])


def test_the_ledger_check_sees_a_receipt_that_is_gone_and_an_epoch_that_does_not_follow(told, tmp_path):
    """A log that lost its last receipt is found out by the payouts that name it and by the epoch that counts it."""
    home, _ = told
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    with ReceiptLog.open(home / "receipts.log", read_only=True) as log:
        kept = [(logged.raw, logged.signature) for logged in log.entries(0)][:-1]
    (copy / "receipts.log").unlink()
    with ReceiptLog.open(copy / "receipts.log") as log:
        log.append_many(kept)
    found = {problem["code"] for problem in headwater(copy, "ledger", "check", status=1)["problems"]}

    assert {"receipt_not_logged", "paid_units_differs"} <= found


def test_nothing_of_the_demo_shows_an_address_of_the_authors(told):
    """Names are public bylines; addresses are stripped before anything is kept."""
    home, facts = told

    assert "@" not in json.dumps(facts, ensure_ascii=False).replace("`@", "")
    assert "@" not in json.dumps(headwater(home, "contributor", "list"), ensure_ascii=False)


def test_measuring_again_in_another_process_gives_every_share_to_the_micro_bit(told):
    """A receipt replays: same bits, from the journal's evidence and the stored weights."""
    home, facts = told
    receipt = facts["answers"][3]["receipt"]
    file = home.parent / "again.json"
    headwater(home, "receipt", "bundle", receipt, "--to", str(file))
    checks = headwater(home, "receipt", "verify", str(file), "--recompute")["checks"]

    assert [check["name"] for check in checks if check["passed"]][-1] == "measured"
    assert all(check["passed"] for check in checks)


@pytest.mark.slow
def test_running_it_again_goes_on_with_the_next_epoch(told):
    """Nothing is registered twice, amounts are cumulative, and the books still balance."""
    home, facts = told
    again = headwater(home, "demo")

    assert again["registered"]["new"] == 0
    assert again["epoch"]["epoch"] == facts["epoch"]["epoch"] + 1
    assert again["epoch"]["contract"] == facts["epoch"]["contract"]
    assert int(again["epoch"]["promised_token_units"]) > int(facts["epoch"]["promised_token_units"])
    assert headwater(home, "ledger", "check")["problems"] == []
