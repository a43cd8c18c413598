"""What may enter the receipt log: bytes that name their call, once each, one chain of corrections per call.

Touches no file: given what the log holds, says what is new and where everything stands. Works on columns, a
batch at a time, because one Python step per receipt and column is what a batch costs. Signatures
are checked for form only; whoever issued the receipt made them.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

import msgspec

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError
from headwater.core.ids import ReceiptId, check_receipt_id, is_call_id
from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX, TRANSFER_UNITS_MAX
from headwater.receipts.signing import SIGNATURE_BYTES, parse_signature
from headwater.store.group_commit import Unit
from headwater.store.receipt_index import ReceiptIndex

_SIGNATURE_CHARS = 2 + 2 * SIGNATURE_BYTES
_CALL_CHARS = 37
_AMOUNT_DIGITS_SAFE = len(str(TRANSFER_UNITS_MAX)) - 1  # fewer digits than this are within the limit


class Entry(NamedTuple):
    """Where a receipt stands in the log."""

    index: int  # type: ignore[assignment]  # from 0, in order of appending; hides a method of tuples
    id: ReceiptId


def entries_of(indices: Sequence[int], ids: Sequence[bytes]) -> tuple[Entry, ...]:
    """The entries of a batch; made without a Python call for each, which is what they would cost most."""
    joined = b"".join(ids).hex()
    names = [joined[at : at + 64] for at in range(0, len(joined), 64)]
    return tuple(map(_new_entry, zip(indices, names, strict=True)))


_new_entry: Callable[[tuple[int, str]], Entry] = partial(tuple.__new__, Entry)


class _Head(msgspec.Struct, gc=False):
    """The fields of a receipt that the log keeps order by, and the one that bounds its amounts."""

    call_id: str
    supersedes: str | None
    price: str = "0"


_read_head = msgspec.json.Decoder(_Head).decode


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Receipts on their way in, column by column; all of length n."""

    ids: list[bytes]  # 32 each
    leaves: list[bytes]  # 32 each
    calls: list[bytes]  # 16 each
    supersedes: list[bytes | None]  # 32 each
    payloads: list[bytes]  # signature, then receipt
    crcs: list[int]  # of the payloads
    corrects: bool  # one of them supersedes another receipt

    def __len__(self) -> int:
        return len(self.ids)


class Fresh(msgspec.Struct, frozen=True, gc=False):
    """What is new of a group, in order: the columns that are written and kept."""

    ids: list[bytes] = msgspec.field(default_factory=list)
    leaves: list[bytes] = msgspec.field(default_factory=list)
    calls: list[bytes] = msgspec.field(default_factory=list)
    payloads: list[bytes] = msgspec.field(default_factory=list)
    crcs: list[int] = msgspec.field(default_factory=list)

    def extend(self, batch: Batch) -> None:
        """Take all of a batch."""
        self.ids.extend(batch.ids)
        self.leaves.extend(batch.leaves)
        self.calls.extend(batch.calls)
        self.payloads.extend(batch.payloads)
        self.crcs.extend(batch.crcs)

    def append(self, batch: Batch, at: int) -> None:
        """Take one row of a batch."""
        self.ids.append(batch.ids[at])
        self.leaves.append(batch.leaves[at])
        self.calls.append(batch.calls[at])
        self.payloads.append(batch.payloads[at])
        self.crcs.append(batch.crcs[at])

    def cut(self, size: int) -> None:
        """Drop what was taken after the first `size`."""
        for column in (self.ids, self.leaves, self.calls, self.payloads, self.crcs):
            del column[size:]


class Settled(msgspec.Struct, frozen=True, gc=False):
    """What a group comes to."""

    fresh: Fresh
    indices: list[Sequence[int]]  # per unit, per item; empty for a unit in conflict


Group = Sequence[Unit[Batch, tuple[Entry, ...]]]


def read_batch(receipts: Sequence[tuple[bytes, str]]) -> Batch:
    """Receipts' bytes and signatures, ready to be stored.

    Raises:
        InvalidError: one is too large, without a call id, of a price no transfer can hold, or its signature has another
            form.
    """
    raws = [raw for raw, _ in receipts]
    heads = _heads(raws)
    signatures = _signatures([signature for _, signature in receipts])
    payloads = list(map(bytes.__add__, signatures, raws))
    named = [head.supersedes for head in heads]
    corrects = any(named)
    sha256 = hashlib.sha256
    return Batch(
        ids=[sha256(raw).digest() for raw in raws],  # the bytes of core.ids.receipt_id
        leaves=[sha256(b"\x00" + raw).digest() for raw in raws],  # receipts.log.leaf_hash, without a call for each
        calls=_calls(heads),
        supersedes=[None if name is None else bytes.fromhex(check_receipt_id(name)) for name in named]
        if corrects
        else [None] * len(named),
        payloads=payloads,
        crcs=list(map(zlib.crc32, payloads)),
        corrects=corrects,
    )


def settle(group: Group, size: int, known: ReceiptIndex) -> Settled:
    """Give every item of the group its index. A unit in conflict gets its error and drops out by itself.

    Args:
        group: units in the order they came.
        size: how many receipts the log holds.
        known: ids and calls of those receipts.
    """
    return _settle_new(group, size, known) or _settle_each(group, size, known)


def _settle_new(group: Group, size: int, known: ReceiptIndex) -> Settled | None:
    """The usual case, without a step per receipt: all are new and none corrects another. None when it is not so."""
    if any(unit.items.corrects for unit in group):
        return None
    fresh = Fresh()
    for unit in group:
        fresh.extend(unit.items)
    count = len(fresh.ids)
    if len(set(fresh.ids)) < count or len(set(fresh.calls)) < count or known.holds_any(fresh.ids, fresh.calls):
        return None
    indices: list[Sequence[int]] = []
    for unit in group:
        indices.append(range(size, size := size + len(unit.items)))
    return Settled(fresh, indices)


def _settle_each(group: Group, size: int, known: ReceiptIndex) -> Settled:
    fresh = Fresh()
    given: list[Sequence[int]] = []
    ids: dict[bytes, int] = {}
    calls: dict[bytes, tuple[int, ...]] = {}
    for unit in group:
        begin = len(fresh.ids)
        batch = unit.items
        earlier: list[tuple[bytes, tuple[int, ...] | None]] = []
        indices: list[int] = []
        try:
            for at, (identity, call, named) in enumerate(zip(batch.ids, batch.calls, batch.supersedes, strict=True)):
                index = _first(known.find(identity), ids.get(identity))
                if index is None:
                    staged = calls.get(call)
                    corrected = known.chain(call) if staged is None else staged
                    if corrected or named is not None:
                        superseded = None if named is None else _first(known.find(named), ids.get(named))
                        _check_supersedes(call, named, corrected, superseded)
                    index = size + len(fresh.ids)
                    ids[identity] = index
                    calls[call] = (*corrected, index)
                    earlier.append((call, staged))
                    fresh.append(batch, at)
                indices.append(index)
        except HeadwaterError as error:
            unit.error = error
            indices = []
            for identity in fresh.ids[begin:]:
                del ids[identity]
            for call, before in reversed(earlier):
                if before is None:
                    del calls[call]
                else:
                    calls[call] = before
            fresh.cut(begin)
        given.append(indices)
    return Settled(fresh, given)


def _first(first: int | None, second: int | None) -> int | None:
    return second if first is None else first


def read_call(raw: bytes) -> bytes | None:
    """The 16 bytes of the call a stored receipt belongs to, or None when it names none."""
    try:
        return bytes.fromhex(_read_head(raw).call_id[5:])
    except (msgspec.DecodeError, ValueError):
        return None


def _heads(raws: list[bytes]) -> list[_Head]:
    if max(map(len, raws)) > RECEIPT_SIZE_BYTES_MAX:
        raise InvalidError(
            f"receipt takes {max(map(len, raws))} bytes, the limit is {RECEIPT_SIZE_BYTES_MAX}",
            code="receipt_too_large",
            fix="append receipts as they were issued",
        )
    try:
        heads = list(map(_read_head, raws))
    except (msgspec.DecodeError, ValueError) as error:
        raise _not_a_receipt(str(error)) from None
    for head in heads:
        if len(head.price) > _AMOUNT_DIGITS_SAFE:
            _check_price(head.price)
    return heads


def _check_price(price: str) -> None:
    if len(price) > 38 or not (price.isascii() and price.isdecimal()):
        raise _not_a_receipt(f"its price is {price[:50]!r}")
    if int(price) > TRANSFER_UNITS_MAX:
        raise InvalidError(
            f"a receipt with a price of {price} nano units, a transfer holds at most {TRANSFER_UNITS_MAX}",
            code="price_too_large",
            fix="divide the call, or price it in a larger currency",
        )


def _calls(heads: list[_Head]) -> list[bytes]:
    names = [head.call_id for head in heads]
    joined = "".join([name[5:] for name in names])
    try:
        plain = bytes.fromhex(joined)
    except ValueError:
        plain = b""
    alike = set(map(len, names)) == {_CALL_CHARS} and all(map(str.startswith, names, repeat("call_")))
    if not alike or plain.hex() != joined:  # upper case, spaces or no hex at all
        wrong = next(name for name in names if not is_call_id(name))
        raise _not_a_receipt(f"{wrong[:80]!r} is not a call id")
    return [plain[at : at + 16] for at in range(0, len(plain), 16)]


def _signatures(texts: list[str]) -> list[bytes]:
    """The 65 bytes of each; decoded in one go, and one by one only to name the one that is wrong."""
    joined = "".join([text[2:] for text in texts])
    try:
        plain = bytes.fromhex(joined)
    except ValueError:
        plain = b""
    alike = all(map(str.startswith, texts, repeat("0x"))) and set(map(len, texts)) == {_SIGNATURE_CHARS}
    if not alike or plain.hex() != joined:
        return [parse_signature(text) for text in texts]
    return [plain[at : at + SIGNATURE_BYTES] for at in range(0, len(plain), SIGNATURE_BYTES)]


def _check_supersedes(call: bytes, named: bytes | None, corrected: tuple[int, ...], superseded: int | None) -> None:
    name = "call_" + call.hex()
    if named is None:
        raise ConflictError(
            f"{name} has a receipt already (entry {corrected[-1]}) with other content",
            code="call_receipted",
            fix="send the same bytes again, or issue a receipt that supersedes it",
        )
    if superseded not in corrected:
        raise ConflictError(
            f"{name}: the receipt {named.hex()} it supersedes is not one of that call in this log",
            code="superseded_missing",
            fix="name the call's latest receipt",
        )
    if superseded != corrected[-1]:
        raise ConflictError(
            f"{name}: the receipt {named.hex()} was superseded before (by entry {corrected[-1]})",
            code="superseded_twice",
            fix="name the call's latest receipt",
        )


def _not_a_receipt(reason: str) -> InvalidError:
    return InvalidError(f"not a receipt: {reason}", code="not_a_receipt", fix="append receipts as they were issued")
