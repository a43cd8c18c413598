"""A contributor's statement: what was used, in how many answers, measured by what, and where the money is now.

Built from two sources that must agree: the ledger's lines say what was booked, the receipts they name say what for.
A contributor's money stands in three accounts in turn: *escrow* until its owner has enrolled, *due* (their own
account) until a posted root holds it, *claimable* until the chain has paid it.

Invariants: opening plus earned plus corrected minus claimed is closing; the rows of what was used add up to what was
earned. Knows nothing of databases or of how lines are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from headwater.core.errors import InvariantError
from headwater.core.ids import AccountId, ContributorId
from headwater.ledger.accounts import Kind, claimable, parse_account
from headwater.ledger.balances import Line, Statement
from headwater.ledger.transfers import Code
from headwater.receipts import Receipt


@dataclass(frozen=True, slots=True)
class Used:
    """One contribution in the answers of a period, as one estimator measured it."""

    contribution: str  # id; empty for what is paid without naming one
    channels: tuple[str, ...]  # grounded, learned, reproduced
    estimator: str
    version: str
    grade: str
    answers_count: int
    earned_units: int


@dataclass(frozen=True, slots=True)
class Earnings:
    """A contributor's statement over a period, nano units."""

    contributor: ContributorId
    asset: str
    opening_units: int  # escrow, due and claimable together
    used: tuple[Used, ...]  # most earned first
    answers_count: int
    price_units: int  # what callers paid for those answers
    fees_units: int  # what the operator's lines took of that
    earned_units: int
    corrected_units: int  # signed; moved by corrections of receipts
    claimed_units: int  # paid on chain
    escrow_units: int  # at the end: waits until its owner enrols
    due_units: int  # at the end: waits for the next root
    claimable_units: int  # at the end: in a posted root, not yet paid

    @property
    def closing_units(self) -> int:
        """What is owed at the end."""
        return self.escrow_units + self.due_units + self.claimable_units


def accounts_of(contributor: ContributorId) -> tuple[AccountId, AccountId, AccountId]:
    """Where a contributor's money may be: escrow, due, claimable."""
    due = AccountId(f"contributor:{contributor}")
    return AccountId(f"escrow:{contributor}"), due, claimable(due)


def earnings(
    contributor: ContributorId, asset: str, statements: Iterable[Statement], receipts: Mapping[str, Receipt]
) -> Earnings:
    """The statement of a contributor.

    Args:
        statements: whole statements of `accounts_of` over the period, in that order.
        receipts: by id, every receipt that a PAYOUT line names.

    Raises:
        InvariantError: what a receipt pays is not what the ledger booked for it.
    """
    escrow, due, claimed = statements
    booked: dict[str, int] = {}
    corrected = 0
    for line in (*escrow.lines, *due.lines):
        if line.code is Code.PAYOUT:
            booked[line.cause] = booked.get(line.cause, 0) + line.change_units
        elif line.code is Code.CORRECTION:
            corrected += line.change_units
    corrected += sum(line.change_units for line in claimed.lines if line.code is Code.CORRECTION)
    mine = {escrow.account, due.account}
    rows: dict[tuple[str, str, str, str], tuple[set[str], set[str], int]] = {}
    price = fees = 0
    for id, units in booked.items():
        receipt = receipts[id]
        paid = [payout for payout in receipt.payouts if payout.account in mine]
        if sum(payout.amount for payout in paid) != units:
            raise InvariantError(
                f"receipt {id} pays {contributor} {sum(payout.amount for payout in paid)} nano, {units} are booked",
                code="payouts_differ",
                fix="run `headwater ledger check`",
            )
        price += receipt.price
        fees += sum(p.amount for p in receipt.payouts if parse_account(p.account).kind is Kind.OPERATOR)
        account = receipt.attribution
        channels: dict[str, set[str]] = {}
        for share in account.shares:
            channels.setdefault(share.contribution, set()).add(share.channel)
        for payout in paid:
            name = payout.contribution or ""
            key = (name, account.estimator, account.version, account.grade)
            answers, seen, earned = rows.get(key, (set(), set(), 0))
            rows[key] = (answers | {id}, seen | channels.get(name, set()), earned + payout.amount)
    used = [
        Used(key[0], tuple(sorted(seen)), *key[1:], len(answers), earned)
        for key, (answers, seen, earned) in rows.items()
    ]
    return Earnings(
        contributor,
        asset,
        escrow.opening_units + due.opening_units + claimed.opening_units,
        tuple(sorted(used, key=lambda row: (-row.earned_units, row.contribution, row.estimator, row.version))),
        len(booked),
        price,
        fees,
        sum(booked.values()),
        corrected,
        -sum(line.change_units for line in claimed.lines if line.code is Code.PAID),
        escrow.closing_units,
        due.closing_units,
        claimed.closing_units,
    )


def causes(lines: Iterable[Line]) -> tuple[str, ...]:
    """The receipts that payouts among `lines` name, each once, in order."""
    return tuple(dict.fromkeys(line.cause for line in lines if line.code is Code.PAYOUT))
