"""Drafts for each thing that happens to money, so that no caller has to remember which side is debited.

Reserving and charging a call need what is already booked, so they live with the booked ledger.
"""

from __future__ import annotations

from collections.abc import Iterable

from headwater.ledger.accounts import CASH, CLEARING, VAULT, claimable
from headwater.ledger.transfers import Code, TransferDraft


def deposit(payer: str, amount_units: int, *, asset: str, cause: str) -> TransferDraft:
    """A payer's money arrived and becomes prepaid credit."""
    return TransferDraft(CASH, payer, amount_units, asset, Code.DEPOSIT, cause)


def payouts(amounts: Iterable[tuple[str, int]], *, asset: str, receipt_id: str) -> tuple[TransferDraft, ...]:
    """What a receipt pays, (account, nano units) each; empty amounts are left out."""
    return tuple(
        TransferDraft(CLEARING, account, amount, asset, Code.PAYOUT, receipt_id)
        for account, amount in amounts
        if amount
    )


def settle(account: str, amount_units: int, *, asset: str, cause: str) -> TransferDraft:
    """A posted root holds this much of an account's money: from now on it is claimed on chain."""
    return TransferDraft(account, claimable(account), amount_units, asset, Code.SETTLE, cause)


def fund(amount_units: int, *, asset: str, cause: str) -> TransferDraft:
    """Money went from cash to the settlement contract. Both are ours, so the receiving one is debited."""
    return TransferDraft(VAULT, CASH, amount_units, asset, Code.FUND, cause)


def paid(account: str, amount_units: int, *, asset: str, cause: str) -> TransferDraft:
    """The contract paid what `account` had claimable; `cause` names the transaction."""
    return TransferDraft(claimable(account), VAULT, amount_units, asset, Code.PAID, cause)


def enroll(contributor_id: str, amount_units: int, *, asset: str, cause: str) -> TransferDraft:
    """Somebody proved who they are: what waited in escrow is theirs."""
    return TransferDraft(
        f"escrow:{contributor_id}", f"contributor:{contributor_id}", amount_units, asset, Code.ENROLL, cause
    )


def correction(debit_account: str, credit_account: str, amount_units: int, *, asset: str, cause: str) -> TransferDraft:
    """Put a mistake right; `cause` names what it is about."""
    return TransferDraft(debit_account, credit_account, amount_units, asset, Code.CORRECTION, cause)
