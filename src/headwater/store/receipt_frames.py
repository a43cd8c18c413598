"""The bytes of a receipt log: a header, then one frame per receipt, each with checksums that name its place.

    header   magic 8 | version u32 | crc32 of the 12 bytes before
    frame    length u32 | crc32 of payload u32 | check u32 | payload
    payload  signature 65 | receipt

Integers are little-endian. A frame's check is the crc32 of the 8 bytes before it, continued from the
check of the frame before (the first one: from the header's), so a frame that is moved, repeated,
replaced or taken out no longer fits, and equal last checks mean equal files. A file that merely
*ends* too early was cut by a crash during a write nobody was told of; anything else that does not
fit is damage to records that were promised, and is never skipped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Final, NamedTuple

from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX
from headwater.receipts.signing import SIGNATURE_BYTES

VERSION: Final = 1
HEADER: Final = b"hwlog\r\n\x00" + struct.pack("<I", VERSION)
FIRST_CHECK: Final = zlib.crc32(HEADER)
FILE_HEADER: Final = HEADER + struct.pack("<I", FIRST_CHECK)
FRAME_HEADER_BYTES: Final = 12
PAYLOAD_BYTES_MAX: Final = SIGNATURE_BYTES + RECEIPT_SIZE_BYTES_MAX
WINDOW_BYTES: Final = 4 * 2**20  # a frame always fits into one

_frame_header = struct.Struct("<III")
_check = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Damage:
    """Where the good frames end, and why."""

    offset: int  # bytes from the start of the file
    reason: str
    torn: bool  # the file just ends too early: the mark of a write that was cut off


class Frame(NamedTuple):
    """One good frame; a tuple because opening a log makes one per receipt."""

    offset: int  # bytes from the start of the file
    raw: bytes  # the receipt
    end: int  # where the next frame begins
    check: int  # from which the next frame's check continues


def encode(payloads: Sequence[bytes], crcs: Sequence[int], before: int) -> tuple[bytes, list[int], int]:
    """The frames of a batch as one buffer.

    Args:
        payloads: signature and receipt of each, joined.
        crcs: crc32 of each payload.
        before: check of the frame before the first.

    Returns:
        (buffer, where each frame begins in it, check of the last frame).
    """
    lengths = [len(payload) for payload in payloads]
    first_two = struct.pack(f"<{2 * len(lengths)}I", *chain.from_iterable(zip(lengths, crcs, strict=True)))
    parts: list[bytes] = []
    check, crc32, pack = before, zlib.crc32, _check.pack
    for at, payload in zip(range(0, len(first_two), 8), payloads, strict=True):
        words = first_two[at : at + 8]
        check = crc32(words, check)
        parts += (words, pack(check), payload)
    starts = list(accumulate([FRAME_HEADER_BYTES + length for length in lengths[:-1]], initial=0))
    return b"".join(parts), starts, check


def scan(handle: int, offset: int, before: int, size: int) -> Iterator[Frame | Damage]:
    """Walk the frames of an open file from `offset` up to `size`; `before` is the check of the frame that ends there.

    Reads in windows and maps nothing into memory: a file that shrinks meanwhile just ends earlier.

    Yields:
        Each good frame; then at most one `Damage`, the last item.
    """
    while offset < size:
        window = os.pread(handle, wanted := min(WINDOW_BYTES, size - offset), offset)
        if len(window) < wanted:
            size = offset + len(window)
        start, damage = 0, None
        while start < len(window) and (damage := _damage(window, start, before)) is None:
            length, _, before = _frame_header.unpack_from(window, start)
            end = start + FRAME_HEADER_BYTES + length
            raw = window[start + FRAME_HEADER_BYTES + SIGNATURE_BYTES : end]
            yield Frame(offset + start, raw, offset + end, before)
            start = end
        reaches_end = offset + len(window) >= size
        offset += start
        if damage is None:
            continue
        if damage.torn and not reaches_end and start:
            continue  # a frame across the window's edge: the next window begins with it
        if damage.torn and not reaches_end and any(map(any, _windows(handle, offset, size))):
            damage = Damage(0, "zero bytes where a frame should be", torn=False)
        yield Damage(offset, damage.reason, damage.torn)
        return


def _windows(handle: int, offset: int, size: int) -> Iterator[bytes]:
    while offset < size and (window := os.pread(handle, WINDOW_BYTES, offset)):
        yield window
        offset += len(window)


def split_frame(data: bytes) -> tuple[bytes, bytes] | None:
    """(receipt, signature) of the bytes of one frame, or None when its length or its content does not fit."""
    if len(data) < FRAME_HEADER_BYTES:
        return None
    length, crc, _ = _frame_header.unpack_from(data)
    content = data[FRAME_HEADER_BYTES:]
    if len(content) != length or zlib.crc32(content) != crc:
        return None
    return content[SIGNATURE_BYTES:], content[:SIGNATURE_BYTES]


def _damage(data: bytes, offset: int, before: int) -> Damage | None:
    left = len(data) - offset
    if left < FRAME_HEADER_BYTES:
        return Damage(offset, f"{left} bytes of a frame's header", torn=True)
    length, crc, check = _frame_header.unpack_from(data, offset)
    if check != zlib.crc32(data[offset : offset + 8], before):
        # Some file systems lengthen a file before they write it: a tail of zeros is a cut write, too.
        if length == 0 and not any(data[offset:]):
            return Damage(offset, f"{left} zero bytes", torn=True)
        return Damage(offset, "a frame's header does not fit its checksum or the frame before", torn=False)
    if not SIGNATURE_BYTES < length <= PAYLOAD_BYTES_MAX:
        return Damage(offset, f"a frame claims {length} bytes", torn=False)
    start = offset + FRAME_HEADER_BYTES
    if left - FRAME_HEADER_BYTES < length:
        return Damage(offset, f"{left} of {FRAME_HEADER_BYTES + length} bytes of a frame", torn=True)
    if crc != zlib.crc32(data[start : start + length]):
        return Damage(offset, "a frame's content does not fit its checksum", torn=False)
    return None
