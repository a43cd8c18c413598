"""Booking batches inside an open transaction: read the accounts they touch, apply each transfer in order, write.

Work is by set: accounts and reservations are read in a few queries and rows are written with one
statement per table, so the cost per transfer is small. Whatever is refused raises, and the transaction
around it undoes the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from headwater.core.errors import ConflictError, InvalidError, MissingError, RefusedError
from headwater.core.instants import format_instant
from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.core.money import format_units
from headwater.ledger import (
    Code,
    Kind,
    TransferDraft,
    body_digest,
    check_draft,
    parse_account,
    split_transfer_id,
    transfer_id,
)
from headwater.ledger.accounts import DEBIT_NORMAL
from headwater.ledger.transfers import check_key
from headwater.store.database import Params, Sql

LAST_NUMBERS: Final = (
    "SELECT (SELECT coalesce(max(batch), 0) FROM batches), (SELECT coalesce(max(transfer), 0) FROM transfers),"
    " (SELECT coalesce(max(account), 0) FROM accounts)"
)
"""The numbers given last, of batches, transfers and accounts; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Transfers that are booked together or not at all, under one key.

    `digest` says what "the same body" means; None takes the digest of the drafts.
    """

    key: str
    drafts: Sequence[TransferDraft]
    digest: str | None = None


@dataclass(slots=True)
class Row:
    """An account while batches are worked on: mutable, and it does not leave booking."""

    number: int
    name: str
    asset: str
    debit_sign: int  # +1 where debits raise the balance, -1 where they lower it
    balance: int
    reserved_out: int
    reserved_in: int

    def reserve(self, sign: int, units: int) -> None:
        """Count `units` (negative to release) on the side that would raise (+1) or lower (-1) the balance."""
        if sign > 0:
            self.reserved_in += units
        else:
            self.reserved_out += units


@dataclass(slots=True)
class _Pending:
    """A reservation that a batch resolves; mutable, and it does not leave this module."""

    number: int
    debit: str
    credit: str
    asset: str
    amount: int
    is_pending: bool
    resolved: bool
    expires_at_ns: int | None


def checked_digest(batch: Batch) -> str:
    """What "the same body" means for `batch`, once all of it was found bookable whatever the balances.

    Raises:
        InvalidError: a bad key, no transfers, or a transfer that could never be booked.
    """
    check_key(batch.key)
    if not batch.drafts:
        raise InvalidError(f"batch {batch.key} is empty", code="batch_empty", fix="post at least one transfer")
    for draft in batch.drafts:
        check_draft(draft)
    return body_digest(batch.drafts) if batch.digest is None else batch.digest


def book(db: Sql, batches: Sequence[tuple[Batch, str]], at_ns: int) -> None:
    """Book checked batches, each with its digest, whose keys are new. To be called inside a transaction.

    Raises:
        RefusedError, ConflictError, MissingError, InvalidError: as `Ledger.post` says.
    """
    drafts = [draft for batch, _ in batches for draft in batch.drafts]
    ((last_batch, number, last_account),) = db.query(LAST_NUMBERS)
    pendings = _pendings(db, [d.pending_id for d in drafts if d.pending_id is not None])
    names: dict[str, set[str]] = {}
    for draft in drafts:
        names.setdefault(draft.asset, set()).update((draft.debit_account, draft.credit_account))
    rows = account_rows(db, names, last_account)
    batch_rows: list[tuple[int, str, str, int, int, int]] = []
    transfer_rows: list[tuple[int, int, int, int, int, int, str, int | None]] = []
    deadline_rows: list[tuple[int, int]] = []
    for batch_number, (batch, digest) in enumerate(batches, last_batch + 1):
        batch_rows.append((batch_number, batch.key, digest, number + 1, len(batch.drafts), at_ns))
        for place, draft in enumerate(batch.drafts):
            number += 1
            code, amount, pending_number = draft.code, draft.amount_units, None
            of_asset = rows[draft.asset]
            debit, credit = of_asset[draft.debit_account], of_asset[draft.credit_account]
            if code is Code.RESERVE:
                debit.reserve(debit.debit_sign, amount)
                credit.reserve(-credit.debit_sign, amount)
                pendings[transfer_id(batch.key, place)] = _Pending(
                    number, debit.name, credit.name, draft.asset, amount, True, False, draft.expires_at_ns
                )
                if draft.expires_at_ns is not None:
                    deadline_rows.append((number, draft.expires_at_ns))
            else:
                if draft.pending_id is not None:
                    pending = _resolve(draft, draft.pending_id, pendings, at_ns)
                    pending_number = pending.number
                    debit.reserve(debit.debit_sign, -pending.amount)
                    credit.reserve(-credit.debit_sign, -pending.amount)
                if code is not Code.RELEASE:
                    debit.balance += debit.debit_sign * amount
                    credit.balance -= credit.debit_sign * amount
            for row in (debit, credit):
                if not row.reserved_out <= row.balance <= TRANSFER_UNITS_MAX or row.reserved_in > TRANSFER_UNITS_MAX:
                    raise _beyond_limit(row, draft, transfer_id(batch.key, place))
            transfer_rows.append(
                (number, batch_number, debit.number, credit.number, amount, int(code), draft.cause, pending_number)
            )
    accounts = [row for of_asset in rows.values() for row in of_asset.values()]
    write_booking(db, batch_rows, accounts, last_account, transfer_rows, deadline_rows)


def write_booking(
    db: Sql,
    batches: Sequence[Params],
    accounts: Iterable[Row],
    last_account: int,
    transfers: Sequence[Params],
    deadlines: Sequence[Params] = (),
    *,
    reserved: bool = True,
) -> None:
    """Write what was booked, in the order of their tables, so that each page is written once.

    Args:
        accounts: that were touched, as they are now; those with numbers above `last_account` are new.
        reserved: whether what is reserved of them may have changed.
    """
    touched = sorted(accounts, key=_number)
    new = [row for row in touched if row.number > last_account]
    columns, values = _RESERVED if reserved else _UNRESERVED
    with db.together():
        db.insert_rows("batches", batches)
        db.insert_rows("accounts", [(row.number, row.name, row.asset) for row in new])
        db.insert_rows("balances", [(row.number, row.balance, row.reserved_out, row.reserved_in) for row in new])
        db.update_rows("balances", columns, "account", [values(row) for row in touched if row.number <= last_account])
        db.insert_rows("transfers", transfers)
        db.insert_rows("deadlines", deadlines)


_number = attrgetter("number")
_RESERVED: Final = (
    ("balance_units", "reserved_out_units", "reserved_in_units"),
    attrgetter("balance", "reserved_out", "reserved_in", "number"),
)
_UNRESERVED: Final = (("balance_units",), attrgetter("balance", "number"))
"""Columns of a balance, and their values with the number of its account."""


def account_rows(db: Sql, names: Mapping[str, Set[str]], last_account: int) -> dict[str, dict[str, Row]]:
    """Accounts, asked for as names by asset, by asset and name; a new one has a number above `last_account`."""
    rows: dict[str, dict[str, Row]] = {}
    for asset in sorted(names):
        rows[asset] = known = {
            row[1]: Row(row[0], row[1], asset, _debit_sign(row[1]), row[2], row[3], row[4])
            for row in db.query_in(
                "SELECT account, name, balance_units, reserved_out_units, reserved_in_units"
                " FROM accounts JOIN balances USING (account) WHERE asset = ? AND name IN ({})",
                sorted(names[asset]),  # in the order of the index, and numbers do not depend on how sets are ordered
                asset,
            )
        }
        for name in sorted(set(names[asset]).difference(known)):
            last_account += 1
            known[name] = Row(last_account, name, asset, _debit_sign(name), 0, 0, 0)
    return rows


def _debit_sign(name: str) -> int:
    return 1 if name in DEBIT_NORMAL else -1


def _pendings(db: Sql, ids: Sequence[str]) -> dict[str, _Pending]:
    places: dict[str, list[int]] = {}
    for one in ids:
        key, place = split_transfer_id(one)
        places.setdefault(key, []).append(place)
    numbers: dict[int, str] = {}
    for key, first, size in db.query_in("SELECT key, first, size FROM batches WHERE key IN ({})", list(places)):
        for place in places[key]:
            if place < size:
                numbers[first + place] = transfer_id(key, place)
    return {
        numbers[number]: _Pending(number, debit, credit, asset, amount, code == Code.RESERVE, bool(resolved), expires)
        for number, debit, credit, asset, amount, code, resolved, expires in db.query_in(
            "SELECT t.transfer, d.name, c.name, d.asset, t.amount_units, t.code,"
            " EXISTS (SELECT 1 FROM transfers r WHERE r.pending = t.transfer), x.expires_at_ns"
            " FROM transfers t JOIN accounts d ON d.account = t.debit JOIN accounts c ON c.account = t.credit"
            " LEFT JOIN deadlines x ON x.transfer = t.transfer"
            " WHERE t.transfer IN ({})",
            list(numbers),
        )
    }


def _resolve(draft: TransferDraft, pending_id: str, pendings: dict[str, _Pending], at_ns: int) -> _Pending:
    """The reservation that `draft` resolves; it is marked resolved, so a second one in the commit is refused."""
    pending = pendings.get(pending_id)
    if pending is None:
        raise MissingError(
            f"no reservation {pending_id}", code="pending_unknown", fix="name a reservation by the id it was given"
        )
    accounts = (draft.debit_account, draft.credit_account, draft.asset)
    if not pending.is_pending or (pending.debit, pending.credit, pending.asset) != accounts:
        raise InvalidError(
            f"{draft.code.name} does not fit {pending_id}",
            code="pending_invalid",
            fix="name a RESERVE between the same accounts and in the same asset",
        )
    if pending.resolved:
        raise ConflictError(
            f"{pending_id} was already charged or released",
            code="already_resolved",
            fix="a reservation is resolved once; repeat the first request with its own key",
        )
    if draft.amount_units > pending.amount or (draft.code is Code.RELEASE and draft.amount_units != pending.amount):
        raise RefusedError(
            f"{draft.code.name} of {draft.amount_units} nano, {pending.amount} were reserved",
            code="charge_above_reserve" if draft.code is Code.CHARGE else "release_differs",
            fix="charge at most what was reserved; release all of it",
        )
    if draft.code is Code.CHARGE and pending.expires_at_ns is not None and at_ns >= pending.expires_at_ns:
        raise ConflictError(
            f"{pending_id} expired at {format_instant(pending.expires_at_ns)}",
            code="reservation_expired",
            fix="reserve again; what was set aside goes back to the payer",
        )
    pending.resolved = True
    return pending


def _beyond_limit(row: Row, draft: TransferDraft, id: str) -> RefusedError | InvalidError:
    if row.balance < row.reserved_out:
        payer = parse_account(row.name).kind is Kind.PAYER
        units, short = format_units(draft.amount_units), format_units(row.reserved_out - row.balance)
        return RefusedError(
            f"{draft.code.name} of {units} {row.asset}: {row.name} is short of {short} ({id})",
            code="insufficient_credit" if payer else "insufficient_funds",
            fix="deposit credit for this key, or ask for less" if payer else "move no more than the account holds",
        )
    return InvalidError(
        f"{row.name} would hold {row.balance} nano {row.asset} and {row.reserved_in} reserved ({id})",
        code="amount_out_of_range",
        fix=f"an account holds at most {TRANSFER_UNITS_MAX} nano units",
    )
