"""What belongs to a key: a call of another's looks exactly like one that does not exist."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.core.ids import check_receipt_id, is_call_id, pseudonym
from headwater.core.instants import format_instant
from headwater.core.limits import CALLS_PAGE_MAX
from headwater.core.money import format_units
from headwater.receipts import Receipt
from headwater.store.call_pages import ListedCall, calls_of
from headwater.store.call_store import CallRecord, CallState, CallStore
from headwater.store.key_store import KeyRecord
from headwater.store.receipt_log import LoggedReceipt, ReceiptLog

PAGE: Final = 20
"""Calls on a page, unless the request says how many."""

STATUS: Final = {
    CallState.RESERVED: "pending",
    CallState.ANSWERED: "pending",
    CallState.ATTRIBUTED: "final",
    CallState.RELEASED: "released",
}
"""What a payer is told of how far a call has come."""

_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


class _Used(msgspec.Struct, frozen=True):
    """What a list says of a receipt; the rest of it is passed over."""

    usage: dict[str, int]


def own_call(calls: CallStore, id: str, key: KeyRecord, log: ReceiptLog | None = None) -> CallRecord:
    """A call of a key, by its id or its receipt's.

    Args:
        log: where a receipt is found whose call is not booked yet: books follow a relayed call by moments.

    Raises:
        MissingError: ``receipt_unknown``: there is none, or another key paid for it.
    """
    call = None
    try:
        call = calls.get(id) if is_call_id(id) else calls.by_receipt(check_receipt_id(id))
    except HeadwaterError as error:
        if error.code not in ("call_unknown", "receipt_unknown", "receipt_id_invalid"):
            raise
    if call is None and log is not None:
        call = _unbooked(log, id, key)
    if call is None or call.key_id != key.key_id:
        raise MissingError(
            f"no receipt {id[:80]!r} of this key",
            code="receipt_unknown",
            fix="use the Headwater-Receipt header of an answer, with the key that paid for it",
        )
    return call


def _unbooked(log: ReceiptLog, id: str, key: KeyRecord) -> CallRecord | None:
    """What the log says of a key's call that the journal does not have yet."""
    logged: LoggedReceipt | None = None
    if is_call_id(id):
        logged = log.in_force(id)
    elif id in log:
        logged = log.get(id)
    receipt = None if logged is None else Receipt.from_bytes(logged.raw)
    if logged is None or receipt is None or receipt.payer != pseudonym(key.key_id):
        return None
    return CallRecord(
        call_id=receipt.call_id,
        key_id=key.key_id,
        idempotency_key=None,
        request_digest=receipt.request_digest,
        state=CallState.ATTRIBUTED,
        created_at_ns=receipt.issued_at_ns,
        updated_at_ns=receipt.issued_at_ns,
        model=receipt.model.name,
        asset=receipt.currency,
        reserve_id="",
        ceiling_units=receipt.price,
        price_units=receipt.price,
        evidence=None,
        answer=None,
        evidence_digest=receipt.request_digest,
        answer_digest=receipt.answer_digest,
        receipt_id=logged.entry.id,
        failure=None,
    )


def own_page(
    calls: CallStore, log: ReceiptLog, key: KeyRecord, *, limit: str | None, before: str | None
) -> dict[str, Any]:
    """A page of a key's calls in short, newest first, with the `before` of the next one, or null on the last.

    Args:
        limit: as the request says it, 1 to `CALLS_PAGE_MAX`; `PAGE` when it does not.
        before: the id of a call of this key: only older ones are listed.

    Raises:
        InvalidError: ``page_invalid``: either is none of that.
    """
    size = PAGE if limit is None else int(limit) if _COUNT.fullmatch(limit) else 0
    if not 1 <= size <= CALLS_PAGE_MAX:
        raise InvalidError(f"limit {(limit or '')[:80]!r}", code="page_invalid", fix=f"use 1 to {CALLS_PAGE_MAX}")
    # One more than is shown tells whether anything follows.
    found = calls_of(calls.db, key.key_id, limit=size + 1, before=before)
    shown = found[:size]
    return {
        "data": [short_json(call, log) for call in shown],
        "next": shown[-1].call_id if len(found) > size else None,
    }


def short_json(call: ListedCall, log: ReceiptLog) -> dict[str, Any]:
    """A call in short: the fields of one alone, without its receipt and proof, and the tokens it was charged for."""
    usage = None if call.receipt_id is None else _used(log, call.receipt_id)
    return {**call_json(call), "id": call.receipt_id, "usage": usage}


def call_json(call: CallRecord | ListedCall) -> dict[str, Any]:
    """What there is to tell of a call, whether or not it has a receipt."""
    body: dict[str, Any] = {
        "call": call.call_id,
        "status": STATUS[call.state],
        "model": call.model,
        "created_at": format_instant(call.created_at_ns),
        "price": None if call.price_units is None else format_units(call.price_units),
        "currency": call.asset,
    }
    if call.state is CallState.RELEASED:
        body["failure"] = call.failure
    return body


def _used(log: ReceiptLog, id: str) -> dict[str, int]:
    return msgspec.json.decode(log.get(id).raw, type=_Used).usage
