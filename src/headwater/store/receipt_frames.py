"""The bytes of a receipt log: a header, then one frame per receipt, each with checksums that name its place.

    header   magic 8 | version u32 | crc32 of the 12 bytes before
    frame    length u32 | crc32 of payload u32 | crc32 of the 8 bytes before, seeded with the frame's index | payload
    payload  signature 65 | receipt

Integers are little-endian. A frame that is moved, repeated or taken out no longer fits its index. A
file that merely *ends* too early was cut by a crash during a write nobody was told of; anything else
that does not fit is damage to records that were promised, and is never skipped.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX
from headwater.receipts.signing import SIGNATURE_BYTES

VERSION: Final = 1
HEADER: Final = b"hwlog\r\n\x00" + struct.pack("<I", VERSION)
FILE_HEADER: Final = HEADER + struct.pack("<I", zlib.crc32(HEADER))
FRAME_HEADER_BYTES: Final = 12
PAYLOAD_BYTES_MAX: Final = SIGNATURE_BYTES + RECEIPT_SIZE_BYTES_MAX
WINDOW_BYTES: Final = 4 * 2**20  # a frame always fits into one

_frame_header = struct.Struct("<III")
_first_two = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Damage:
    """Where the good frames end, and why."""

    offset: int  # bytes from the start of the file
    reason: str
    torn: bool  # the file just ends too early: the mark of a write that was cut off


def frame_header(index: int, length: int, payload_crc: int) -> bytes:
    """The 12 bytes before the payload of the frame at `index`."""
    first = _first_two.pack(length, payload_crc)
    return first + struct.pack("<I", zlib.crc32(first, index & 0xFFFFFFFF))


def payload_crc(signature: bytes, raw: bytes) -> int:
    """The checksum of a payload, without joining its two parts."""
    return zlib.crc32(raw, zlib.crc32(signature))


def scan(handle: int, offset: int, index: int, size: int) -> Iterator[tuple[int, bytes] | Damage]:
    """Walk the frames of an open file from `offset`, where the frame `index` begins, up to `size`.

    Reads in windows and maps nothing into memory: a file that shrinks meanwhile is a short read, not a crash.

    Yields:
        (offset of the frame, receipt bytes) for each good frame; then at most one `Damage`, the last item.
    """
    while offset < size:
        window = os.pread(handle, min(WINDOW_BYTES, size - offset), offset)
        start, damage = 0, None
        while start < len(window) and (damage := _damage(window, start, index)) is None:
            content = start + FRAME_HEADER_BYTES
            length = _frame_header.unpack_from(window, start)[0]
            yield offset + start, window[content + SIGNATURE_BYTES : content + length]
            start, index = content + length, index + 1
        reaches_end = offset + len(window) >= size or not window
        offset += start
        if damage is None:
            continue
        if damage.torn and not reaches_end and start:
            continue  # a frame across the window's edge: the next window begins with it
        if damage.torn and not reaches_end and any(map(any, _windows(handle, offset, size))):
            damage = Damage(0, f"zero bytes where the frame {index} should be", torn=False)
        yield Damage(offset, damage.reason, damage.torn)
        return


def _windows(handle: int, offset: int, size: int) -> Iterator[bytes]:
    while offset < size and (window := os.pread(handle, WINDOW_BYTES, offset)):
        yield window
        offset += len(window)


def split_payload(data: bytes, index: int) -> tuple[bytes, bytes] | None:
    """(receipt, signature) of one whole frame, or None when a checksum does not fit."""
    if _damage(data, 0, index) is not None:
        return None
    start = FRAME_HEADER_BYTES + SIGNATURE_BYTES
    return data[start:], data[FRAME_HEADER_BYTES:start]


def _damage(data: bytes, offset: int, index: int) -> Damage | None:
    left = len(data) - offset
    if left < FRAME_HEADER_BYTES:
        return Damage(offset, f"{left} bytes of a frame's header", torn=True)
    length, crc, check = _frame_header.unpack_from(data, offset)
    if check != zlib.crc32(data[offset : offset + 8], index & 0xFFFFFFFF):
        # Some file systems lengthen a file before they write it: a tail of zeros is a cut write, too.
        if length == 0 and not any(data[offset:]):
            return Damage(offset, f"{left} zero bytes", torn=True)
        return Damage(offset, f"the header of frame {index} does not fit its checksum", torn=False)
    if not SIGNATURE_BYTES < length <= PAYLOAD_BYTES_MAX:
        return Damage(offset, f"frame {index} claims {length} bytes", torn=False)
    start = offset + FRAME_HEADER_BYTES
    if left - FRAME_HEADER_BYTES < length:
        return Damage(offset, f"{left} of {FRAME_HEADER_BYTES + length} bytes of frame {index}", torn=True)
    if crc != zlib.crc32(data[start : start + length]):
        return Damage(offset, f"the content of frame {index} does not fit its checksum", torn=False)
    return None
