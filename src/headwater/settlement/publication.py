"""How a change set travels on a chain: parts with a header each, in calldata or in blobs, and what either costs.

    header      b"HWCD" | version u8 = 1 | kind u8 | epoch u32 | part u16 | parts u16 | bytes in this part u32 |
                sha256 of the whole 32 | Payout contract 20 | transaction of the part before 32, big-endian

The header is the beginning of a transaction's data; the part follows it (kind 0), or lies in the transaction's blobs
(kind 1), 31 bytes to a field element, so that every element is below the field's modulus. *The part before* is the
last one of the epoch before, or zeros: from one part everything earlier is found without a search.
The address it is sent to is nobody's: it follows from chain and contract, so a reader need not be told.
Pure: knows nothing of nodes or keys.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from headwater.core.address import format_address, parse_address
from headwater.core.errors import InvalidError
from headwater.core.keccak import keccak256
from headwater.settlement.fees import Fee, FeeParameters, l1_fee_unsigned, operator_fee

MAGIC: Final = b"HWCD"
VERSION: Final = 1
CALLDATA, BLOB = 0, 1
_HEAD = struct.Struct(">4sBBIHHI32s20s32s")
HEADER_BYTES: Final = _HEAD.size
PART_BYTES_MAX: Final = 120_000
"""Data in one transaction: nodes take up to 131,072 bytes of it, and 4.8 million gas stay below every limit."""

PARTS_MAX: Final = 2**16 - 1
ELEMENTS, ELEMENT_BYTES = 4_096, 32
BLOB_BYTES: Final = ELEMENTS * (ELEMENT_BYTES - 1)
"""Bytes of ours in a blob of 131,072."""

BLOB_GAS: Final = 131_072
BLOBS_MAX: Final = 6
"""Blobs in one transaction."""

_ENVELOPE: Final = bytes(range(1, 47))  # as many bytes as the fields around the data, which do not shrink either


@dataclass(frozen=True, slots=True)
class Part:
    """What the header of a part says."""

    kind: int  # CALLDATA or BLOB
    epoch: int
    part: int  # 0..parts-1
    parts: int
    size: int  # bytes of the change set in this part
    digest: bytes  # sha256 of the whole packed change set
    contract: str  # EIP-55
    previous: bytes  # 32, hash of the transaction with the part before, or zeros

    def to_bytes(self) -> bytes:
        """The header."""
        return _HEAD.pack(
            MAGIC,
            VERSION,
            self.kind,
            self.epoch,
            self.part,
            self.parts,
            self.size,
            self.digest,
            parse_address(self.contract),
            self.previous,
        )


@dataclass(frozen=True, slots=True)
class Cost:
    """What publishing costs in one way, by the prices of a moment."""

    transactions: int
    data_bytes: int  # of calldata or blobs, headers included
    gas: int
    blobs: int
    fee: Fee
    blob_wei: int

    @property
    def total_wei(self) -> int:
        """All of it."""
        return self.fee.total_wei + self.blob_wei


def read_part(data: bytes) -> tuple[Part, bytes] | None:
    """The header and what follows it, or None when these bytes are something else or do not fit their header."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return None
    _, version, kind, epoch, part, parts, size, digest, contract, previous = _HEAD.unpack(data[:HEADER_BYTES])
    body = data[HEADER_BYTES:]
    sizes = {CALLDATA: size, BLOB: 0}
    if version != VERSION or kind not in sizes or part >= parts or not epoch or len(body) != sizes[kind]:
        return None
    return Part(kind, epoch, part, parts, size, digest, format_address(contract), previous), body


def cut(packed: bytes, size_max: int) -> tuple[bytes, ...]:
    """`packed` in parts of at most `size_max` bytes, one at least.

    Raises:
        InvalidError: more parts than a header can count.
    """
    parts = tuple(packed[at : at + size_max] for at in range(0, len(packed), size_max)) or (b"",)
    if len(parts) > PARTS_MAX:
        raise InvalidError(
            f"{len(packed)} bytes are {len(parts)} parts, more than {PARTS_MAX}",
            code="changes_too_large",
            fix="publish to an object store",
        )
    return parts


def part_bytes_max(kind: int, part_bytes: int = PART_BYTES_MAX) -> int:
    """The most that one transaction carries."""
    return BLOBS_MAX * BLOB_BYTES if kind == BLOB else part_bytes


def header(
    kind: int, epoch: int, pieces: Sequence[bytes], number: int, digest: bytes, contract: str, previous: bytes
) -> Part:
    """The header of piece `number` of a change set."""
    return Part(kind, epoch, number, len(pieces), len(pieces[number]), digest, contract, previous)


def to_blobs(piece: bytes) -> tuple[bytes, ...]:
    """`piece` as blobs of 4,096 elements, each a zero byte and 31 bytes; the last is filled with zeros."""
    blobs = []
    for at in range(0, max(1, len(piece)), BLOB_BYTES):
        inside = piece[at : at + BLOB_BYTES].ljust(BLOB_BYTES, b"\0")
        step = ELEMENT_BYTES - 1
        blobs.append(b"".join(b"\0" + inside[i : i + step] for i in range(0, BLOB_BYTES, step)))
    return tuple(blobs)


def from_blobs(blobs: Sequence[bytes], size: int) -> bytes:
    """The first `size` bytes that blobs hold.

    Raises:
        InvalidError: they are too few, or not blobs of ours.
    """
    if any(len(blob) != ELEMENTS * ELEMENT_BYTES for blob in blobs) or size > len(blobs) * BLOB_BYTES:
        raise InvalidError(
            f"{len(blobs)} blobs do not hold {size} bytes", code="blob_invalid", fix="ask another node for the blobs"
        )
    whole = b"".join(blob[at + 1 : at + ELEMENT_BYTES] for blob in blobs for at in range(0, len(blob), ELEMENT_BYTES))
    return whole[:size]


def whole_digest(packed: bytes) -> bytes:
    """sha256 of a packed change set, as the headers have it."""
    return sha256(packed).digest()


def data_address(chain_id: int, contract: str) -> str:
    """Where the change sets of a deployment are sent to: an address that nobody has the key of."""
    seed = b"headwater.changes" + chain_id.to_bytes(32, "big") + parse_address(contract)
    return format_address(keccak256(seed)[12:])


def data_gas(data: bytes) -> int:
    """Gas of a transaction that only carries data, by the floor of EIP-7623: 10 for a zero byte, 40 for another."""
    zeros = data.count(0)
    return 21_000 + 10 * zeros + 40 * (len(data) - zeros)


def calldata_cost(packed: bytes, prices: FeeParameters, *, part_bytes: int = PART_BYTES_MAX) -> Cost:
    """What a change set costs as calldata."""
    pieces = cut(packed, part_bytes)
    datas = [_headed(CALLDATA, pieces, number, packed) + piece for number, piece in enumerate(pieces)]
    return _cost(datas, prices, blobs=0, blob_wei=0)


def blob_cost(packed: bytes, prices: FeeParameters, blob_base_fee_wei: int) -> Cost:
    """What a change set costs in blobs, on a chain that takes them."""
    pieces = cut(packed, part_bytes_max(BLOB))
    blobs = sum(max(1, -(-len(piece) // BLOB_BYTES)) for piece in pieces)
    datas = [_headed(BLOB, pieces, number, packed) for number in range(len(pieces))]
    return _cost(datas, prices, blobs=blobs, blob_wei=blobs * BLOB_GAS * blob_base_fee_wei)


def _headed(kind: int, pieces: Sequence[bytes], number: int, packed: bytes) -> bytes:
    """A header as large and as dense as the real one."""
    digest = whole_digest(packed)
    return header(kind, 1, pieces, number, digest, format_address(digest[:20]), digest).to_bytes()


def _cost(datas: Sequence[bytes], prices: FeeParameters, *, blobs: int, blob_wei: int) -> Cost:
    gas = [data_gas(data) for data in datas]
    fee = Fee(
        sum(gas) * prices.gas_price_wei,
        sum(l1_fee_unsigned(_ENVELOPE + data, prices) for data in datas),
        sum(operator_fee(one, prices) for one in gas),
    )
    return Cost(len(datas), sum(map(len, datas)) + blobs * BLOB_GAS, sum(gas), blobs, fee, blob_wei)
