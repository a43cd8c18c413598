"""Booking calls of one kind in great number: what they share is checked once, sums are taken once for the group.

Each call gets the same rows that `Ledger.post_each` would give it for a reservation, its charge and its payouts, in the
same order. Only groups are taken in which nothing can be refused: new keys, one asset, payouts that sum to their
price, balances and limits with room for the whole group. Anything else is left to the general way, which books it or
says what is wrong; so nothing here raises for what a caller has done. Tests hold the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headwater.core.ids import is_call_id
from headwater.core.limits import BATCH_TRANSFERS_MAX, TRANSFER_UNITS_MAX
from headwater.ledger import Code, TransferDraft, check_draft, transfer_id
from headwater.ledger.accounts import CLEARING
from headwater.ledger.transfers import check_key
from headwater.store.ledger_booking import LAST_NUMBERS, Row, account_rows, write_booking

if TYPE_CHECKING:
    from headwater.store.database import Sql
    from headwater.store.metered_store import Metered

_RESERVE, _CHARGE, _PAYOUT = int(Code.RESERVE), int(Code.CHARGE), int(Code.PAYOUT)


def book_group(db: Sql, calls: Sequence[Metered], keys: Sequence[str], at_ns: int) -> bool:
    """Book calls inside an open transaction; False, and nothing was written, when the general way has to.

    Args:
        keys: the ledger's key of each call.
    """
    asset = calls[0].call.asset
    sums = _sums(calls, keys)
    if sums is None or any(db.query_in("SELECT 1 FROM batches WHERE key IN ({})", keys)):
        return False
    spent, paid, most = sums
    ((last_batch, number, last_account),) = db.query(LAST_NUMBERS)
    rows = account_rows(db, {asset: {CLEARING, *spent, *paid}}, last_account)[asset]
    clearing = rows[CLEARING]
    if not _have_room(rows, spent, paid, clearing, most):
        return False
    through = clearing.number
    payers = {payer.removeprefix("payer:"): rows[payer].number for payer in spent}
    payees = {account: rows[account].number for account in paid}
    batches: list[tuple[int, str, str, int, int, int]] = []
    transfers: list[tuple[int, int, int, int, int, int, str, int | None]] = []
    for batch, (one, key) in enumerate(zip(calls, keys, strict=True), last_batch + 1):
        call, first = one.call, number + 1
        payer, price, cause, receipt = payers[call.key_id], call.price_units, call.call_id, call.receipt_id
        number += 2
        # A charge resolves the reservation before it, as its id in the journal says: the key and place 0.
        transfers.append((first, batch, payer, through, price, _RESERVE, cause, None))
        transfers.append((number, batch, payer, through, price, _CHARGE, cause, first))
        for account, amount in one.payouts:
            if amount:
                number += 1
                transfers.append((number, batch, through, payees[account], amount, _PAYOUT, receipt, None))
        batches.append((batch, key, "sha256:" + receipt, first, number - first + 1, at_ns))
    for payer_name, units in spent.items():
        rows[payer_name].balance -= units
    for account, units in paid.items():
        rows[account].balance += units
    write_booking(db, batches, rows.values(), last_account, transfers, reserved=False)
    return True


def _sums(calls: Sequence[Metered], keys: Sequence[str]) -> tuple[dict[str, int], dict[str, int], int] | None:
    """What each payer spends, what each account is paid, and the highest price; None when a call is not of the kind.

    Each form of transfer is checked once: who pays, and who is paid, in this asset.
    """
    spent: dict[str, int] = {}
    paid: dict[str, int] = {}
    most = size = 0
    asset = calls[0].call.asset
    for one, key in zip(calls, keys, strict=True):
        call, price, left = one.call, one.call.price_units, one.call.price_units
        if type(price) is not int or price < 0 or call.asset != asset or not is_call_id(call.call_id):
            return None
        if call.reserve_id != transfer_id(key, 0) or len(call.receipt_id) != 64 or not call.receipt_id.isalnum():
            return None
        payer = "payer:" + call.key_id
        spent[payer] = spent.get(payer, 0) + price
        for account, amount in one.payouts:
            if type(amount) is not int or amount < 0:
                return None
            if amount:
                paid[account] = paid.get(account, 0) + amount
                left -= amount
        if left:
            return None
        most = max(most, price)
        size += 2 + len(one.payouts)
    if size > BATCH_TRANSFERS_MAX or len(set(keys)) < len(keys):
        return None
    sample = calls[0].call
    check_key(keys[0])
    for payer in spent:
        check_draft(TransferDraft(payer, CLEARING, 0, asset, Code.RESERVE, sample.call_id))
    for account in paid:
        check_draft(TransferDraft(CLEARING, account, 1, asset, Code.PAYOUT, sample.receipt_id))
    return spent, paid, most


def _have_room(rows: dict[str, Row], spent: dict[str, int], paid: dict[str, int], clearing: Row, most: int) -> bool:
    """Whether no step of the group can pass a limit, in whatever order it is booked.

    A payer's prices only lower what is free, an account's pay only raises its balance, and what goes through the
    clearing account leaves it before the next call: so the sums, and the highest price, bound every step.
    """
    return (
        all(rows[payer].reserved_out + units <= rows[payer].balance for payer, units in spent.items())
        and all(rows[account].balance + units <= TRANSFER_UNITS_MAX for account, units in paid.items())
        and clearing.balance + most <= TRANSFER_UNITS_MAX
        and clearing.reserved_in + most <= TRANSFER_UNITS_MAX
        and spent.keys().isdisjoint(paid)
    )
