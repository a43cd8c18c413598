"""Balances: what transfers add up to, and the statement that shows how.

Invariants: a balance counts on its account's normal side; what is reserved against it is not
available; a statement's opening plus its changes is its closing, to the unit.

Knows nothing of where transfers are kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headwater.core.ids import AccountId
from headwater.ledger.accounts import Side, parse_account
from headwater.ledger.transfers import Code, State, Transfer


@dataclass(frozen=True, slots=True)
class Balance:
    """What one account holds of one asset, in nano units, on its normal side."""

    account: AccountId
    asset: str
    balance_units: int = 0  # posted
    reserved_out_units: int = 0  # pending transfers that would lower it
    reserved_in_units: int = 0  # pending transfers that would raise it

    @property
    def available_units(self) -> int:
        """What may still be spent or reserved."""
        return self.balance_units - self.reserved_out_units


@dataclass(frozen=True, slots=True)
class Total:
    """All accounts of one asset. What we have equals what we owe, or the ledger is wrong."""

    asset: str
    have_units: int  # sum of debit-normal balances
    owe_units: int  # sum of credit-normal balances
    reserved_units: int  # sum of open reservations
    accounts_count: int


@dataclass(frozen=True, slots=True)
class Line:
    """One transfer as one account sees it."""

    at_ns: int
    transfer_id: str
    code: Code
    state: State
    other_account: AccountId
    amount_units: int
    change_units: int  # signed, on the account's normal side; zero unless posted
    balance_units: int  # after this line
    cause: str


@dataclass(frozen=True, slots=True)
class Statement:
    """An account over a period, oldest line first."""

    account: AccountId
    asset: str
    opening_units: int
    lines: tuple[Line, ...]
    closing_units: int  # opening plus the changes shown
    more: bool  # lines were left out at the end; ask again with `skip`


def change(account: str, transfer: Transfer) -> int:
    """What `transfer` does to `account`'s posted balance, in nano units on its normal side."""
    if transfer.state is not State.POSTED:
        return 0
    debited = account == transfer.debit_account
    raises = debited == (parse_account(account).side is Side.DEBIT)
    return transfer.amount_units if raises else -transfer.amount_units


def statement(account: str, asset: str, opening_units: int, transfers: Iterable[Transfer], *, more: bool) -> Statement:
    """A statement of `account` over `transfers`, which all touch it, in the order to show."""
    balance, lines = opening_units, []
    for transfer in transfers:
        moved = change(account, transfer)
        balance += moved
        other = transfer.credit_account if account == transfer.debit_account else transfer.debit_account
        lines.append(
            Line(
                transfer.at_ns,
                transfer.id,
                transfer.code,
                transfer.state,
                AccountId(other),
                transfer.amount_units,
                moved,
                balance,
                transfer.cause,
            )
        )
    return Statement(AccountId(account), asset, opening_units, tuple(lines), balance, more)
