"""A contributor's statement: its numbers are the ledger's, its reasons are the receipts'."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from headwater.cli.ledger import app
from headwater.core.errors import InvariantError
from headwater.flow import CallRequest, Message
from headwater.ledger import claimable, enroll, fund, paid, settle
from headwater.ledger.earnings import Earnings, accounts_of, causes, earnings
from headwater.models import Sampling
from headwater.receipts import Receipt
from toy.home import ToyHome, open_home


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[ToyHome]:
    """A home with three answered calls, two of them from sources."""
    with open_home(tmp_path / "home") as home:
        for question, model in [
            ("what does a river do in the sea?", "toy-grounded"),
            ("is a cloud water in the air?", "toy-grounded"),
            ("say hello", "toy"),
        ]:
            _, key = home.key()
            request = CallRequest(model, (Message("user", question),), Sampling(12), "sha256:" + "0" * 64)
            opened = home.flow.open(request, key)
            for _ in home.flow.answer(opened):
                pass
            home.flow.attribute(opened.record.call_id)
        yield home


def statement_of(toy: ToyHome, contributor: str, **period: int) -> Earnings:
    """The statement of a contributor over a period."""
    pages = [toy.ledger.statement(account, toy.currency, **period) for account in accounts_of(contributor)]
    named = causes(line for page in pages for line in page.lines)
    return earnings(contributor, toy.currency, pages, {id: Receipt.from_bytes(toy.log.get(id).raw) for id in named})


def contributors(toy: ToyHome) -> list[str]:
    """Everybody who is paid by a receipt."""
    accounts = {p.account for entry in toy.log for p in Receipt.from_bytes(entry.raw).payouts}
    return sorted({a.split(":")[1] for a in accounts if a.startswith(("escrow:", "contributor:"))})


def test_every_statement_equals_ledger_and_receipts(toy: ToyHome) -> None:
    """What was used adds up to what was earned, that to what the accounts hold, and all of it to the receipts."""
    receipts = [Receipt.from_bytes(entry.raw) for entry in toy.log]
    assert len(contributors(toy)) > 2
    for contributor in contributors(toy):
        one = statement_of(toy, contributor)
        names = {f"escrow:{contributor}", f"contributor:{contributor}"}
        by_contribution: Counter[str] = Counter()
        for receipt in receipts:
            for payout in receipt.payouts:
                if payout.account in names:
                    by_contribution[payout.contribution or ""] += payout.amount
        held = sum(toy.ledger.balance(account, toy.currency).balance_units for account in accounts_of(contributor))

        assert {row.contribution: row.earned_units for row in one.used} == dict(by_contribution)
        assert one.earned_units == sum(by_contribution.values()) == held == one.closing_units
        using = [r for r in receipts if any(p.account in names and p.amount for p in r.payouts)]
        assert (one.answers_count, one.price_units) == (len(using), sum(r.price for r in using))
        assert one.fees_units == sum(p.amount for r in using for p in r.payouts if p.account.startswith("operator:"))


def test_money_is_followed_from_escrow_to_the_chain(toy: ToyHome) -> None:
    """Enrolling, settling and claiming move it between the parts; opening, earned and claimed always give closing."""
    contributor = next(
        one for one in contributors(toy) if toy.ledger.balance(f"escrow:{one}", toy.currency).balance_units > 100
    )
    before = statement_of(toy, contributor)
    units, asset = before.escrow_units, toy.currency
    later = 2 * 10**18
    toy.ledger.post([enroll(contributor, units, asset=asset, cause="proof")], key="enroll", at_ns=later)
    account = f"contributor:{contributor}"
    drafts = [settle(account, units - 10, asset=asset, cause="epoch:1"), fund(units, asset=asset, cause="epoch:1")]
    toy.ledger.post(drafts, key="settle", at_ns=later + 1)
    toy.ledger.post([paid(account, 60, asset=asset, cause="epoch:1")], key="paid", at_ns=later + 2)
    after, period = statement_of(toy, contributor), statement_of(toy, contributor, since_ns=later)

    assert (after.escrow_units, after.due_units, after.claimable_units) == (0, 10, units - 70)
    assert (after.claimed_units, after.earned_units) == (60, units)
    assert (period.opening_units, period.earned_units, period.used) == (units, 0, ())
    for one in (before, after, period):
        total = one.opening_units + one.earned_units + one.corrected_units - one.claimed_units
        assert total == one.closing_units
    assert toy.ledger.balance(claimable(account), asset).balance_units == after.claimable_units


def test_a_receipt_that_says_something_else_than_the_ledger_is_not_shown(toy: ToyHome) -> None:
    """A statement never mixes numbers that disagree."""
    contributor = contributors(toy)[0]
    pages = [toy.ledger.statement(account, toy.currency) for account in accounts_of(contributor)]
    named = causes(line for page in pages for line in page.lines)
    receipts = {id: Receipt.from_bytes(toy.log.get(id).raw) for id in named}
    names = {f"escrow:{contributor}", f"contributor:{contributor}"}
    first = receipts[named[0]]
    less = tuple(replace(p, amount=p.amount - 1) if p.account in names else p for p in first.payouts)
    object.__setattr__(first, "payouts", less)
    with pytest.raises(InvariantError) as caught:
        earnings(contributor, toy.currency, pages, receipts)
    assert caught.value.code == "payouts_differ"


def shown(toy: ToyHome, *words: str) -> str:
    """What the command prints."""
    text = io.StringIO()
    with redirect_stdout(text):
        status = app(["statement", *words, "--home", str(toy.path)], result_action="return_value", exit_on_error=False)
    assert status == 0
    return text.getvalue()


def test_the_command_shows_the_same_numbers_in_every_form(toy: ToyHome) -> None:
    """JSON, CSV and plain text of a contributor and of an account agree with the ledger."""
    contributor = max(contributors(toy), key=lambda one: statement_of(toy, one).earned_units)
    one = statement_of(toy, contributor)
    (as_json,) = json.loads(shown(toy, contributor, "--json"))
    rows = list(csv.DictReader(io.StringIO(shown(toy, contributor, "--format", "csv"))))
    text = shown(toy, contributor, "--format", "text")

    assert int(as_json["earned_units"]) == one.earned_units == sum(int(row["earned_units"]) for row in rows)
    assert f"in {one.answers_count} answers" in text
    assert "estimate" in text
    account = next(name for name in accounts_of(contributor) if toy.ledger.balance(name, toy.currency).balance_units)
    lines = list(csv.DictReader(io.StringIO(shown(toy, account, "--format", "csv"))))
    assert sum(int(line["change_units"]) for line in lines) == one.closing_units
    assert shown(toy, account, "--format", "text").count("payout") == len(lines)
