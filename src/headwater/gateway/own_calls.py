"""What belongs to a key: a call of another's looks exactly like one that does not exist."""

from __future__ import annotations

from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.ids import check_receipt_id, is_call_id
from headwater.store.call_store import CallRecord, CallStore
from headwater.store.key_store import KeyRecord


def own_call(calls: CallStore, id: str, key: KeyRecord) -> CallRecord:
    """A call of a key, by its id or its receipt's.

    Raises:
        MissingError: ``receipt_unknown``: there is none, or another key paid for it.
    """
    call = None
    try:
        call = calls.get(id) if is_call_id(id) else calls.by_receipt(check_receipt_id(id))
    except HeadwaterError as error:
        if error.code not in ("call_unknown", "receipt_unknown", "receipt_id_invalid"):
            raise
    if call is None or call.key_id != key.key_id:
        raise MissingError(
            f"no receipt {id[:80]!r} of this key",
            code="receipt_unknown",
            fix="use the Headwater-Receipt header of an answer, with the key that paid for it",
        )
    return call
