"""What may enter the receipt log: bytes that name their call, once each, one chain of corrections per call.

Touches no file: given what the log holds, says what is new and where everything stands. Signatures
are checked for form only; whoever issued the receipt made them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError
from headwater.core.ids import ReceiptId, check_receipt_id, is_call_id
from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX
from headwater.receipts.log import leaf_hash
from headwater.receipts.signing import parse_signature
from headwater.store.group_commit import Unit
from headwater.store.receipt_frames import payload_crc


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a receipt stands in the log."""

    index: int  # from 0, in order of appending
    id: ReceiptId


class _Head(msgspec.Struct):
    """The two fields of a receipt that the log keeps order by."""

    call_id: str
    supersedes: str | None


Indices = int | tuple[int, ...]  # most calls have one receipt, so one index is kept bare

_read_head = msgspec.json.Decoder(_Head).decode


class Item(NamedTuple):
    """A receipt on its way in; a tuple because a frozen dataclass costs a microsecond more for each."""

    id: bytes  # 32
    leaf: bytes  # 32
    call: bytes  # 16
    supersedes: bytes | None  # 32
    signature: bytes  # 65
    raw: bytes
    crc: int  # of the frame's payload


@dataclass(frozen=True, slots=True)
class Settled:
    """What a group comes to."""

    fresh: list[Item]  # what is new, in order
    indices: list[list[int]]  # per unit, per item; empty for a unit in conflict


Group = Sequence[Unit[Item, tuple[Entry, ...]]]


def read_item(raw: bytes, signature: str) -> Item:
    """A receipt's bytes and signature, ready to be stored.

    Raises:
        InvalidError: too large, without a call id, or a signature of another form.
    """
    if len(raw) > RECEIPT_SIZE_BYTES_MAX:
        raise InvalidError(
            f"receipt takes {len(raw)} bytes, the limit is {RECEIPT_SIZE_BYTES_MAX}",
            code="receipt_too_large",
            fix="append receipts as they were issued",
        )
    try:
        head = _read_head(raw)
        if not is_call_id(head.call_id):
            raise ValueError(f"{head.call_id!r} is not a call id")
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidError(
            f"not a receipt: {error}", code="not_a_receipt", fix="append receipts as they were issued"
        ) from None
    signed = parse_signature(signature)
    return Item(
        id=hashlib.sha256(raw).digest(),  # the bytes of core.ids.receipt_id
        leaf=leaf_hash(raw),
        call=bytes.fromhex(head.call_id[5:]),
        supersedes=None if head.supersedes is None else bytes.fromhex(check_receipt_id(head.supersedes)),
        signature=signed,
        raw=raw,
        crc=payload_crc(signed, raw),
    )


def settle(group: Group, size: int, known_ids: Mapping[bytes, int], known_calls: Mapping[bytes, Indices]) -> Settled:
    """Give every item of the group its index. A unit in conflict gets its error and drops out by itself.

    Args:
        group: units in the order they came.
        size: how many receipts the log holds.
        known_ids: index of each stored receipt by its 32-byte id.
        known_calls: indices of each call's stored receipts by the 16 bytes of the call id.
    """
    fresh: list[Item] = []
    given: list[list[int]] = []
    ids: dict[bytes, int] = {}
    calls: dict[bytes, Indices] = {}
    for unit in group:
        begin = len(fresh)
        earlier: list[tuple[bytes, Indices | None]] = []
        indices: list[int] = []
        try:
            for item in unit.items:
                index = known_ids.get(item.id, ids.get(item.id))
                if index is None:
                    staged = calls.get(item.call)
                    chain = chain_of(known_calls.get(item.call) if staged is None else staged)
                    if chain or item.supersedes is not None:
                        named = item.supersedes or b""
                        _check_supersedes(item, chain, known_ids.get(named, ids.get(named)))
                    index = size + len(fresh)
                    ids[item.id] = index
                    calls[item.call] = (*chain, index) if chain else index
                    earlier.append((item.call, staged))
                    fresh.append(item)
                indices.append(index)
        except HeadwaterError as error:
            unit.error = error
            indices = []
            for item in fresh[begin:]:
                del ids[item.id]
            for call, staged in reversed(earlier):
                if staged is None:
                    del calls[call]
                else:
                    calls[call] = staged
            del fresh[begin:]
        given.append(indices)
    return Settled(fresh, given)


def read_call(raw: bytes) -> bytes | None:
    """The 16 bytes of the call a stored receipt belongs to, or None when it names none."""
    try:
        return bytes.fromhex(_read_head(raw).call_id[5:])
    except (msgspec.DecodeError, ValueError):
        return None


def chain_of(found: Indices | None) -> tuple[int, ...]:
    """The indices of a call's receipts, oldest first."""
    return () if found is None else (found,) if isinstance(found, int) else found


def _check_supersedes(item: Item, chain: tuple[int, ...], superseded: int | None) -> None:
    call = "call_" + item.call.hex()
    if item.supersedes is None:
        raise ConflictError(
            f"{call} has a receipt already (entry {chain[-1]}) with other content",
            code="call_receipted",
            fix="send the same bytes again, or issue a receipt that supersedes it",
        )
    if superseded not in chain:
        raise ConflictError(
            f"{call}: the receipt {item.supersedes.hex()} it supersedes is not one of that call in this log",
            code="superseded_missing",
            fix="name the call's latest receipt",
        )
    if superseded != chain[-1]:
        raise ConflictError(
            f"{call}: the receipt {item.supersedes.hex()} was superseded before (by entry {chain[-1]})",
            code="superseded_twice",
            fix="name the call's latest receipt",
        )
