"""What belongs to a key: a call of another's looks exactly like one that does not exist."""

from __future__ import annotations

from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import check_receipt_id, is_call_id, pseudonym
from headwater.receipts import Receipt
from headwater.store.call_store import CallRecord, CallState, CallStore
from headwater.store.key_store import KeyRecord
from headwater.store.receipt_log import LoggedReceipt, ReceiptLog


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
