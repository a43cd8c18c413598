"""A key's calls, newest first, a page at a time, found by what the ledger has set aside for them.

Every call, answered here or elsewhere, has one reservation from its payer's account, and the ledger finds an account's
transfers by an index it has anyway: the journal needs none of its own, which every booking would have to write to.
Reservations are numbered in the order they were committed, by one writer at a time. So calls that come while somebody
reads on stand before the page that was read, never in it or behind it: no call comes twice and none is left out.

Knows nothing of receipts; gives no text of a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter

from headwater.core.errors import InvalidError
from headwater.core.ids import CallId, ReceiptId, is_call_id
from headwater.ledger import Code, split_transfer_id
from headwater.store.call_store import CallState
from headwater.store.database import Sql


@dataclass(frozen=True, slots=True)
class ListedCall:
    """A call in short."""

    call_id: CallId
    state: CallState
    created_at_ns: int
    model: str
    asset: str
    price_units: int | None  # None until answered
    receipt_id: ReceiptId | None
    failure: str | None  # why it was released, a stable code


def calls_of(db: Sql, key_id: str, *, limit: int, before: str | None = None) -> tuple[ListedCall, ...]:
    """The newest calls of a key, or those older than its call `before`, newest first.

    Args:
        limit: how many at most, > 0.

    Raises:
        InvalidError: ``page_invalid``: `before` is no call of this key; one of another's looks like one that does not
            exist.
    """
    with db.snapshot():
        below = 2**63 - 1 if before is None else _reservation(db, key_id, before)
        found = []
        for (account,) in db.query("SELECT account FROM accounts WHERE name = ?", (f"payer:{key_id}",)):  # by currency
            found += db.query(
                "SELECT t.transfer, c.call_id, c.state, c.created_at_ns, c.model, c.asset, c.price_units, c.receipt_id,"
                " c.failure FROM transfers t JOIN calls c ON c.call_id = t.cause"
                " WHERE t.debit = ? AND t.code = ? AND t.transfer < ? ORDER BY t.transfer DESC LIMIT ?",
                (account, int(Code.RESERVE), below, limit),
            )
    newest = sorted(found, key=itemgetter(0), reverse=True)[:limit]
    return tuple(ListedCall(call_id, CallState(state), *rest) for _, call_id, state, *rest in newest)


def _reservation(db: Sql, key_id: str, call_id: str) -> int:
    """The number of the transfer that holds a call's ceiling."""
    if is_call_id(call_id):
        for (reserve_id,) in db.query(
            "SELECT reserve_id FROM calls WHERE call_id = ? AND key_id = ?", (call_id, key_id)
        ):
            key, place = split_transfer_id(reserve_id)
            for (first,) in db.query("SELECT first FROM batches WHERE key = ?", (key,)):
                return int(first) + place
    raise InvalidError(
        f"before {call_id[:80]!r}, which is no call of this key", code="page_invalid", fix="use `next` of a page"
    )
