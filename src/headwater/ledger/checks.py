"""What must be true of a ledger, as plain functions of one signature over everything booked.

Each check reads the transfers once, in order, and gives every problem it sees. None of them trusts the
stored balances: they are added up again. Memory grows with accounts, open reservations and calls, not
with transfers, so `Book.transfers` may read from disk each time it is iterated.

Knows nothing of databases; whoever keeps the ledger builds the `Book`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from headwater.core.errors import InvalidError, Problem
from headwater.ledger.accounts import CLEARING, Side, parse_account
from headwater.ledger.balances import Balance
from headwater.ledger.transfers import RESOLVES, Code, State, Transfer, TransferDraft, check_draft

_KEEP = "stop posting, keep the file as evidence and compare it with the last good copy"

Key = tuple[str, str]
"""(account, asset)."""


@dataclass(frozen=True, slots=True)
class CallFact:
    """What the journal of calls says about one call's money."""

    reserved: bool  # its reservation is still open
    price_units: int | None  # None until it was answered
    receipt_id: str | None  # None until its payouts were booked


@dataclass(frozen=True, slots=True)
class Book:
    """Everything booked, and what it is held against."""

    transfers: Iterable[Transfer]  # in booked order; can be iterated again
    balances: Mapping[Key, Balance]  # as stored
    calls: Mapping[str, CallFact] | None = None  # by call id; None leaves out the checks that need it


Check = Callable[[Book], tuple[Problem, ...]]


def every_asset_sums_to_zero(book: Book) -> tuple[Problem, ...]:
    """What we have equals what we owe, per asset, in the stored balances."""
    have, owe = Counter[str](), Counter[str]()
    for (account, asset), balance in book.balances.items():
        (have if parse_account(account).side is Side.DEBIT else owe)[asset] += balance.balance_units
    return tuple(
        _problem(f"asset {asset}", "asset_unbalanced", f"we have {have[asset]} nano and owe {owe[asset]}")
        for asset in sorted({*have, *owe})
        if have[asset] != owe[asset]
    )


def stored_balances_replay(book: Book) -> tuple[Problem, ...]:
    """Adding up all transfers gives the stored balances, and no account went below zero on the way."""
    problems: list[Problem] = []
    posted, outgoing, incoming = Counter[Key](), Counter[Key](), Counter[Key]()
    open_units: dict[str, int] = {}
    for t in book.transfers:
        sides = [(t.debit_account, Side.DEBIT), (t.credit_account, Side.CREDIT)]
        held = open_units.pop(t.pending_id, 0) if t.pending_id is not None else 0
        if t.state is State.PENDING:
            open_units[t.id] = t.amount_units
            held = -t.amount_units
        for account, side in sides:
            key, raises = (account, t.asset), parse_account(account).side is side
            (incoming if raises else outgoing)[key] -= held
            if t.state is State.POSTED:
                posted[key] += t.amount_units if raises else -t.amount_units
            if not raises and posted[key] < outgoing[key]:
                problems.append(
                    _problem(
                        f"transfer {t.id}",
                        "account_overdrawn",
                        f"{account} has {posted[key]} nano {t.asset} and {outgoing[key]} reserved against it",
                    )
                )
    for key in sorted({*posted, *outgoing, *incoming, *book.balances}):
        stored = book.balances.get(key)
        kept = (stored.balance_units, stored.reserved_out_units, stored.reserved_in_units) if stored else (0, 0, 0)
        replayed = (posted[key], outgoing[key], incoming[key])
        if kept != replayed:
            problems.append(
                _problem(
                    f"account {key[0]}",
                    "balance_differs",
                    f"stored (posted, reserved out, reserved in) {kept} nano {key[1]}, transfers give {replayed}",
                )
            )
    return tuple(problems)


def pendings_resolve_once(book: Book) -> tuple[Problem, ...]:
    """A reservation is resolved at most once, later, between the same accounts and for no more than it holds."""
    problems: list[Problem] = []
    still_open: dict[str, Transfer] = {}
    for t in book.transfers:
        if t.state is State.PENDING:
            still_open[t.id] = t
        if t.code not in RESOLVES:
            continue
        pending = still_open.pop(t.pending_id or "", None)
        if pending is None:
            wrong = f"resolves {t.pending_id}, which is not open"
        elif (t.debit_account, t.credit_account, t.asset) != (
            pending.debit_account,
            pending.credit_account,
            pending.asset,
        ):
            wrong = f"resolves {pending.id} between other accounts or in another asset"
        elif t.amount_units > pending.amount_units or (
            t.state in (State.VOIDED, State.EXPIRED) and t.amount_units != pending.amount_units
        ):
            wrong = f"{t.code.name} of {t.amount_units} nano, {pending.id} holds {pending.amount_units}"
        else:
            continue
        problems.append(_problem(f"transfer {t.id}", "pending_misresolved", wrong))
    return tuple(problems)


def every_transfer_is_allowed(book: Book) -> tuple[Problem, ...]:
    """Each transfer has a cause and an amount, and joins accounts that its code may join."""
    problems: list[Problem] = []
    for t in book.transfers:
        draft = TransferDraft(t.debit_account, t.credit_account, t.amount_units, t.asset, t.code, t.cause, t.pending_id)
        try:
            check_draft(draft)
        except InvalidError as error:
            problems.append(_problem(f"transfer {t.id}", error.code, error.message))
        allowed = (State.VOIDED, State.EXPIRED) if t.code is Code.RELEASE else (draft.state,)
        if t.state not in allowed:
            problems.append(_problem(f"transfer {t.id}", "state_invalid", f"{t.code.name} is {t.state}"))
    return tuple(problems)


def calls_are_charged_and_paid_out(book: Book) -> tuple[Problem, ...]:
    """The price of each answered call was charged once and its receipt's payouts sum to it; clearing holds the rest.

    Reserves and charges are caused by their call, payouts by the receipt of the call.
    """
    if book.calls is None:
        return ()
    problems: list[Problem] = []
    charged, paid, charges = Counter[str](), Counter[str](), Counter[str]()
    waiting: dict[str, str] = {}  # open reservation -> call
    for t in book.transfers:
        if t.code is Code.RESERVE:
            waiting[t.id] = t.cause
        elif t.code in RESOLVES:
            waiting.pop(t.pending_id or "", None)
            if t.code is Code.CHARGE:
                charges[t.cause] += 1
                charged[t.cause] += t.amount_units
        elif t.code is Code.PAYOUT:
            paid[t.cause] += t.amount_units
    receipts = {fact.receipt_id for fact in book.calls.values() if fact.receipt_id is not None}
    for receipt in sorted({*paid} - receipts):
        problems.append(
            _problem(f"receipt {receipt}", "payout_unexplained", f"{paid[receipt]} nano paid, no call has this receipt")
        )
    for call in sorted({*charged, *waiting.values()} - {*book.calls}):
        problems.append(
            _problem(f"call {call}", "call_unknown", f"{charged[call]} nano charged, no such call is known")
        )
    open_calls = {*waiting.values()}
    for call, fact in sorted(book.calls.items()):
        price = fact.price_units or 0
        out = paid[fact.receipt_id] if fact.receipt_id is not None else 0
        if charged[call] != price or charges[call] != (fact.price_units is not None):
            problems.append(
                _problem(
                    f"call {call}",
                    "charge_differs",
                    f"price {fact.price_units} nano, charged {charged[call]} in {charges[call]} charges",
                )
            )
        if fact.receipt_id is not None and out != price:
            problems.append(_problem(f"call {call}", "payouts_differ", f"price {price} nano, payouts {out}"))
        if fact.reserved != (call in open_calls):
            stands = "open" if call in open_calls else "resolved"
            problems.append(
                _problem(
                    f"call {call}", "reservation_differs", f"its reservation is {stands}, the journal says otherwise"
                )
            )
    return tuple(problems)


def clearing_holds_only_calls_at_work(book: Book) -> tuple[Problem, ...]:
    """Clearing is zero but for the prices of calls that are charged and not yet paid out."""
    if book.calls is None:
        return ()
    due = sum(fact.price_units or 0 for fact in book.calls.values() if fact.receipt_id is None)
    held = sum(b.balance_units for (account, _), b in book.balances.items() if account == CLEARING)
    if held == due:
        return ()
    return (
        _problem(f"account {CLEARING}", "clearing_not_zero", f"holds {held} nano, calls at work account for {due}"),
    )


CHECKS: tuple[Check, ...] = (
    every_asset_sums_to_zero,
    stored_balances_replay,
    pendings_resolve_once,
    every_transfer_is_allowed,
    calls_are_charged_and_paid_out,
    clearing_holds_only_calls_at_work,
)


def check(book: Book) -> tuple[Problem, ...]:
    """Every problem of every check; empty when the ledger is sound."""
    return tuple(problem for one in CHECKS for problem in one(book))


def _problem(where: str, code: str, message: str) -> Problem:
    return Problem(where, code, message, _KEEP)
