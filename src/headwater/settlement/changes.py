"""What an epoch changes, as small as it can be said: who earned, how much more, and the addresses of new payees.

With the changes of every epoch anybody rebuilds every payout tree without asking the operator. A change set is
four columns, each of a fixed coding, and its digest is taken over these columns as they are, so that it does not
depend on how a compressor packed them:

    header       b"HWCH" | version u8 = 1 | epoch u32 | width before u32 | changed u32 | new u32, little-endian
    gaps         LEB128 of index - previous index - 1, of every changed payee in order, starting from -1
    exponents    one byte each: the number of bits of the increase (0..48)
    mantissas    the bits of each increase below its highest one, highest first, laid end to end, zeros to a byte
    addresses    20 bytes of each new payee, in the order of their indices: those from `width before` on

The packed form, which is published, is b"HWCP", the header without its magic, and the columns, each as a u32 length and
a zlib stream; mantissas and addresses do not shrink and are stored as they are.
Amounts are increases in token units: cumulative amounts never fall. Pure; knows nothing of files or accounts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError
from headwater.core.limits import PAYOUT_UNITS_MAX, TREE_WIDTH_MAX

VERSION: Final = 1
BODY_MAGIC, PACKED_MAGIC = b"HWCH", b"HWCP"
_HEAD = struct.Struct("<BIIII")
_LENGTH = struct.Struct("<I")
ADDRESS_BYTES = 20
EXPONENT_MAX = PAYOUT_UNITS_MAX.bit_length()
_GAP_BYTES_MAX = 5
_ZLIB_LEVEL = 9

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class ChangeSet:
    """The changed leaves of one epoch."""

    epoch: int  # 1..2^32-1
    width_before: int  # leaves of the epoch before; indices from here on are new
    indices: NDArray[np.int64]  # (n,) ascending, each once
    increases: NDArray[np.uint64]  # (n,) token units, 0..2^48-1
    addresses: Bytes  # (new, 20) of the indices >= width_before, in order

    def __post_init__(self) -> None:
        indices = self.indices
        if not (1 <= self.epoch < 2**32 and 0 <= self.width_before <= TREE_WIDTH_MAX):
            raise _invalid(f"epoch {self.epoch} after {self.width_before} leaves")
        if len(indices) and (indices[0] < 0 or indices[-1] >= TREE_WIDTH_MAX or (np.diff(indices) < 1).any()):
            raise _invalid(f"indices are not ascending within 0..{TREE_WIDTH_MAX - 1}")
        if len(self.increases) != len(indices) or (len(indices) and int(self.increases.max()) > PAYOUT_UNITS_MAX):
            raise _invalid(f"an increase is missing or above {PAYOUT_UNITS_MAX} token units")
        if self.addresses.shape != (int((indices >= self.width_before).sum()), ADDRESS_BYTES):
            raise _invalid(f"{self.addresses.shape} addresses do not fit the new payees")

    def body(self) -> bytes:
        """The columns as they are: what is hashed."""
        return BODY_MAGIC + self._head() + b"".join(self._columns())

    def digest(self) -> str:
        """``sha256:…`` of the body."""
        return "sha256:" + sha256(self.body()).hexdigest()

    def pack(self) -> bytes:
        """The bytes that are published; `unpack` reads them."""
        gaps, exponents, mantissas, addresses = self._columns()
        packed = (zlib.compress(gaps, _ZLIB_LEVEL), zlib.compress(exponents, _ZLIB_LEVEL), mantissas, addresses)
        return PACKED_MAGIC + self._head() + b"".join(_LENGTH.pack(len(one)) + one for one in packed)

    def _head(self) -> bytes:
        return _HEAD.pack(VERSION, self.epoch, self.width_before, len(self.indices), len(self.addresses))

    def _columns(self) -> tuple[bytes, bytes, bytes, bytes]:
        gaps = np.diff(self.indices, prepend=-1) - 1
        exponents = _bit_lengths(self.increases)
        return _leb128(gaps), exponents.tobytes(), _mantissas(self.increases, exponents), self.addresses.tobytes()


def unpack(packed: bytes) -> ChangeSet:
    """Read a published change set.

    Raises:
        InvalidError: not one, cut off, too long, or not coded as `ChangeSet.pack` codes.
    """
    start = len(PACKED_MAGIC) + _HEAD.size
    if len(packed) < start or packed[:4] != PACKED_MAGIC:
        raise _invalid("these bytes are no change set")
    version, epoch, width, changed, new = _HEAD.unpack(packed[4:start])
    if version != VERSION or changed > TREE_WIDTH_MAX or new > changed:
        raise _invalid(f"version {version} with {changed} changes and {new} new payees")
    streams, at = [], start
    for _ in range(4):
        if at + _LENGTH.size > len(packed):
            raise _invalid("it is cut off")
        (size,) = _LENGTH.unpack(packed[at : at + _LENGTH.size])
        at += _LENGTH.size
        streams.append(packed[at : at + size])
        at += size
    if at != len(packed):
        raise _invalid(f"it should have {at} bytes and has {len(packed)}")
    gaps = _read_leb128(_inflate(streams[0], _GAP_BYTES_MAX * changed), changed)
    exponents = np.frombuffer(_inflate(streams[1], changed), dtype=np.uint8)
    if len(exponents) != changed or (changed and int(exponents.max()) > EXPONENT_MAX):
        raise _invalid("its exponents do not fit")
    if len(streams[3]) != ADDRESS_BYTES * new:
        raise _invalid("its addresses do not fit")
    addresses = np.frombuffer(streams[3], dtype=np.uint8).reshape(new, ADDRESS_BYTES)
    indices = np.cumsum(gaps + 1) - 1
    found = ChangeSet(epoch, width, indices, _read_mantissas(streams[2], exponents), addresses)
    if found._columns()[::2] != (_leb128(gaps), streams[2]):
        raise _invalid("it has padding that is not zero")
    return found


def replay(sets: Iterable[ChangeSet]) -> list[tuple[int, str, int]]:
    """The leaves after these epochs, oldest first: (index, 0x address, cumulative token units).

    Raises:
        InvalidError: one does not follow from those before it, so an epoch is missing or is not as it was.
    """
    addresses: list[str] = []
    amounts: list[int] = []
    for one in sets:
        if one.width_before != len(addresses):
            raise _invalid(
                f"epoch {one.epoch} follows {one.width_before} payees, those before it have {len(addresses)}"
            )
        addresses += ["0x" + bytes(row).hex() for row in one.addresses]
        amounts += [0] * (len(addresses) - len(amounts))
        for index, rise in zip(one.indices.tolist(), one.increases.tolist(), strict=True):
            if index >= len(amounts):
                raise _invalid(f"epoch {one.epoch} has an index {index} that leaves a gap")
            amounts[index] += rise
    return [(index, address, amounts[index]) for index, address in enumerate(addresses)]


def _bit_lengths(values: NDArray[np.uint64]) -> Bytes:
    # frexp is exact below 2^53; amounts have 48 bits.
    return np.frexp(values.astype(np.float64))[1].astype(np.uint8)


def _leb128(values: NDArray[np.int64]) -> bytes:
    """Seven bits a byte, lowest first, the high bit says that more follow; five bytes hold every index."""
    places = np.arange(_GAP_BYTES_MAX)
    pieces = (values[:, None] >> (7 * places)) & 0x7F
    sizes = np.maximum(1, -(-_bit_lengths(values.astype(np.uint64)).astype(np.int64) // 7))
    pieces |= np.where(places < sizes[:, None] - 1, 0x80, 0)
    return pieces.astype(np.uint8)[places < sizes[:, None]].tobytes()


def _read_leb128(raw: bytes, count: int) -> NDArray[np.int64]:
    stream = np.frombuffer(raw, dtype=np.uint8)
    ends = np.flatnonzero(stream < 0x80)
    if len(ends) != count or (len(stream) and int(ends[-1]) != len(stream) - 1 if count else len(stream)):
        raise _invalid(f"its gaps are not {count} numbers")
    starts = np.concatenate([[0], ends[:-1] + 1]) if count else ends
    sizes = ends - starts + 1
    if count and int(sizes.max()) > _GAP_BYTES_MAX:
        raise _invalid("a gap is too large")
    if count and ((stream[ends] == 0) & (sizes > 1)).any():
        raise _invalid("a gap is not written in the shortest way")
    values = np.zeros(count, dtype=np.int64)
    for place in range(int(sizes.max()) if count else 0):
        has = sizes > place
        values[has] |= (stream[starts[has] + place].astype(np.int64) & 0x7F) << (7 * place)
    return values


def _mantissas(values: NDArray[np.uint64], exponents: Bytes) -> bytes:
    sizes = np.maximum(exponents.astype(np.int64) - 1, 0)
    which, place = _bit_places(sizes)
    bits = (values[which] >> place.astype(np.uint64)) & np.uint64(1)
    return np.packbits(bits.astype(np.uint8)).tobytes()


def _read_mantissas(raw: bytes, exponents: Bytes) -> NDArray[np.uint64]:
    sizes = np.maximum(exponents.astype(np.int64) - 1, 0)
    if len(raw) != -(-int(sizes.sum()) // 8):
        raise _invalid("its mantissas do not fit")
    which, place = _bit_places(sizes)
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=len(which)).astype(np.uint64)
    values = np.where(exponents > 0, np.uint64(1) << sizes.astype(np.uint64), np.uint64(0))
    np.bitwise_or.at(values, which, bits << place.astype(np.uint64))
    return values


def _bit_places(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every bit of the column: whose it is, and its place counted from that number's lowest bit."""
    which = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(sizes)
    return which, ends[which] - 1 - np.arange(len(which))


def _inflate(packed: bytes, size_max: int) -> bytes:
    engine = zlib.decompressobj()
    try:
        raw = engine.decompress(packed, size_max + 1)
    except zlib.error as error:
        raise _invalid(f"a column cannot be read ({error})") from None
    if len(raw) > size_max or not engine.eof or engine.unused_data:
        raise _invalid(f"a column holds more than {size_max} bytes or is cut off")
    return raw


def _invalid(what: str) -> InvalidError:
    return InvalidError(f"change set: {what}", code="changes_invalid", fix="take the file as the operator published it")
