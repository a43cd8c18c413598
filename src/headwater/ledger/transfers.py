"""Transfers: immutable moves of money between two accounts, each with a reason and a cause.

A transfer is *posted* (it moves balances), *pending* (it reserves), *voided* (it releases what a
pending one reserved) or *expired* (the same, at or after the pending one's deadline). Nothing is ever edited:
a pending transfer is resolved, once, by another that names it, which posts part or all of it (the rest is
released) or voids it. A mistake is put right by a correction. Which accounts each code may join is a table;
what is not in it is refused.

Knows nothing of keys, databases or who called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import lru_cache

from headwater.core.canonical import digest_of
from headwater.core.errors import InvalidError
from headwater.core.limits import CAUSE_CHARS_MAX, LEDGER_KEY_CHARS_MAX, TRANSFER_UNITS_MAX
from headwater.ledger.accounts import SETTLED_KINDS, Account, Kind, claimable, parse_account


class Code(IntEnum):
    """Why money moves. Numbers are stored: never reuse one."""

    DEPOSIT = 1  # a payer's money arrives: cash -> payer
    RESERVE = 2  # the ceiling of a call is set aside: payer -> clearing, pending
    CHARGE = 3  # the price of the call is taken from what was reserved, the rest released
    RELEASE = 4  # the call gave no answer: all that was reserved is released
    PAYOUT = 5  # a receipt's payout: clearing -> whoever supplied the answer
    SETTLE = 6  # a posted root holds it: account -> claimable:account
    FUND = 7  # money is sent to the settlement contract: debit chain:vault, credit cash
    PAID = 8  # paid on chain: claimable:account -> chain:vault
    ENROLL = 9  # somebody proved who they are: escrow:x -> contributor:x
    CORRECTION = 10  # a mistake is put right; the cause names the receipt or transfer it is about


class State(StrEnum):
    """What a transfer does to balances; it follows from the code and, for a release, from the deadline."""

    POSTED = "posted"
    PENDING = "pending"
    VOIDED = "voided"
    EXPIRED = "expired"  # voided at or after the deadline of what it resolves


@dataclass(frozen=True, slots=True)
class TransferDraft:
    """A transfer that is asked for."""

    debit_account: str
    credit_account: str
    amount_units: int  # nano units of the asset
    asset: str
    code: Code
    cause: str  # the call, receipt, epoch or deposit that made it happen
    pending_id: str | None = None  # the pending transfer this one resolves
    expires_at_ns: int | None = None  # of a RESERVE: from then on it cannot be charged

    @property
    def state(self) -> State:
        """Reserving is pending, releasing is voided, everything else is posted."""
        return _STATES.get(self.code, State.POSTED)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer that is booked."""

    id: str  # `transfer_id(key, place)` of its batch
    debit_account: str
    credit_account: str
    amount_units: int
    asset: str
    code: Code
    cause: str
    at_ns: int
    pending_id: str | None
    state: State
    expires_at_ns: int | None = None  # deadline of the reservation that this is or resolves


_STATES = {Code.RESERVE: State.PENDING, Code.RELEASE: State.VOIDED}
RESOLVES = (Code.CHARGE, Code.RELEASE)
"""Codes that resolve a pending transfer."""

_MAY_BE_ZERO = (Code.RESERVE, Code.CHARGE, Code.RELEASE)
"""A free call is reserved, charged and released like any other; nothing else moves nothing."""

_EARNERS = (Kind.CONTRIBUTOR, Kind.ESCROW, Kind.OPERATOR, Kind.COMMONS)


def _joins(debit: Sequence[Kind], credit: Sequence[Kind]) -> Callable[[Account, Account], bool]:
    return lambda d, c: d.kind in debit and c.kind in credit


_CALL = _joins([Kind.PAYER], [Kind.CLEARING])
_RULES: dict[Code, tuple[str, Callable[[Account, Account], bool]]] = {
    Code.DEPOSIT: ("cash -> payer", _joins([Kind.CASH], [Kind.PAYER])),
    Code.RESERVE: ("payer -> clearing:calls", _CALL),
    Code.CHARGE: ("payer -> clearing:calls", _CALL),
    Code.RELEASE: ("payer -> clearing:calls", _CALL),
    Code.PAYOUT: ("clearing:calls -> contributor, escrow, operator or commons", _joins([Kind.CLEARING], _EARNERS)),
    Code.SETTLE: ("account -> claimable:account", lambda d, c: d.kind in SETTLED_KINDS and c.id == claimable(d.id)),
    Code.FUND: ("chain:vault -> cash", _joins([Kind.CHAIN], [Kind.CASH])),
    Code.PAID: ("claimable -> chain:vault", _joins([Kind.CLAIMABLE], [Kind.CHAIN])),
    Code.ENROLL: (
        "escrow:x -> contributor:x",
        lambda d, c: (d.kind, c.kind) == (Kind.ESCROW, Kind.CONTRIBUTOR) and d.owner == c.owner,
    ),
    Code.CORRECTION: ("any two accounts", lambda _d, _c: True),
}
"""What each code may debit and credit: (in words, as a rule)."""

_VISIBLE = re.compile(r"[\x21-\x7e]+")
_PLACE = re.compile(r"0|[1-9][0-9]{0,8}")
_ASSET = re.compile(r"[A-Za-z0-9:_.-]{1,64}")


def check_draft(draft: TransferDraft) -> None:
    """Refuse a transfer that could never be booked, whatever the balances.

    Raises:
        InvalidError: a bad name, an amount out of range, or accounts its code may not join.
    """
    code, amount, pending_id = draft.code, draft.amount_units, draft.pending_id
    _check_accounts(code, draft.debit_account, draft.credit_account)
    least = 0 if code in _MAY_BE_ZERO else 1
    if type(amount) is not int or not least <= amount <= TRANSFER_UNITS_MAX:
        raise InvalidError(
            f"{code.name} of {amount!r} nano units",
            code="amount_out_of_range",
            fix=f"move a whole number of nano units from {least} to {TRANSFER_UNITS_MAX}; leave out empty payouts",
        )
    _check_words(draft.asset, draft.cause)
    if (pending_id is not None) != (code in RESOLVES):
        raise InvalidError(
            f"{code.name} with pending_id {pending_id!r}",
            code="pending_invalid",
            fix="CHARGE and RELEASE name the transfer they resolve, the others none",
        )
    if pending_id is not None:
        check_key(split_transfer_id(pending_id)[0])
    expires = draft.expires_at_ns
    if expires is not None and (code is not Code.RESERVE or not 0 < expires < 2**63):
        raise InvalidError(
            f"{code.name} that expires at {expires}",
            code="deadline_invalid",
            fix="only a RESERVE has a deadline, in nanoseconds since 1970",
        )


@lru_cache(maxsize=2**12)  # few pairs are used much
def _check_accounts(code: Code, debit_account: str, credit_account: str) -> None:
    debit, credit = parse_account(debit_account), parse_account(credit_account)
    words, allowed = _RULES[code]
    if debit.id == credit.id or not allowed(debit, credit):
        raise InvalidError(
            f"{code.name} from {debit.id} to {credit.id}", code="accounts_invalid", fix=f"{code.name} is {words}"
        )


@lru_cache(maxsize=2**12)  # the same ones come again and again within a batch
def _check_words(asset: str, cause: str) -> None:
    if not _ASSET.fullmatch(asset):
        raise InvalidError(f"asset {asset[:80]!r}", code="asset_invalid", fix="name the currency like USD")
    if len(cause) > CAUSE_CHARS_MAX or not _VISIBLE.fullmatch(cause):
        raise InvalidError(
            f"cause {cause[:80]!r}",
            code="cause_invalid",
            fix=f"name the call, receipt or epoch in at most {CAUSE_CHARS_MAX} visible ASCII characters",
        )


def check_key(key: str) -> None:
    """Refuse a key that cannot be kept.

    Raises:
        InvalidError: empty, too long or not visible ASCII.
    """
    if len(key) > LEDGER_KEY_CHARS_MAX or not _VISIBLE.fullmatch(key):
        raise InvalidError(
            f"idempotency key {key[:80]!r}",
            code="idempotency_key_invalid",
            fix=f"use 1 to {LEDGER_KEY_CHARS_MAX} visible ASCII characters, made from what the batch is about",
        )


def transfer_id(key: str, place: int) -> str:
    """The id of the transfer at `place` of the batch posted under `key`: the same retry names the same transfer.

    >>> transfer_id("call_1:charge", 0)
    'call_1:charge#0'
    """
    return f"{key}#{place}"


def split_transfer_id(text: str) -> tuple[str, int]:
    """The batch key and place that a transfer id names.

    Raises:
        InvalidError: not a transfer id.
    """
    key, mark, place = text.rpartition("#")
    if not mark or not key or not _PLACE.fullmatch(place):
        raise InvalidError(
            f"{text[:80]!r} is not a transfer id", code="transfer_id_invalid", fix="give an id as `post` returned it"
        )
    return key, int(place)


def body_digest(drafts: Sequence[TransferDraft]) -> str:
    """SHA-256 of the canonical JSON of checked drafts, in order: what "the same body" means."""
    rows: list[list[str | int | None]] = [
        [d.debit_account, d.credit_account, str(d.amount_units), d.asset, int(d.code), d.cause, d.pending_id]
        for d in drafts
    ]
    for row, draft in zip(rows, drafts, strict=True):
        if draft.expires_at_ns is not None:  # only then, so that digests of old bodies stay what they were
            row.append(str(draft.expires_at_ns))
    return digest_of(rows)
