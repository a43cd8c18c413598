"""What a transaction costs on an OP-Stack rollup, to the wei: L2 gas, L1 data, operator fee.

    L2          gas x (base fee + tip)
    L1 data     Ecotone: 16 gas a non-zero byte, 4 a zero byte, over 16, times the price of a byte
                Fjord and later: max(100, 0.8365 x FastLZ size - 42.5856) bytes times the same price
    operator    Isthmus: gas x scalar / 10^6 + constant; Jovian: gas x scalar x 100 + constant
    footprint   Jovian: the estimated bytes times a scalar also count against the block's gas limit

Price of a byte: 16 x base fee scalar x L1 base fee + blob scalar x blob base fee, in millionths of a wei. All of it in
integers, rounded down where the protocol rounds down. A chain without L1 data fee has `Fork.NONE`.
Source: the OP-Stack specifications of these upgrades, execution engine. Pure: parameters are arguments
(`headwater.chain.oracle` reads them from a chain).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from headwater.core.errors import InvalidError

FASTLZ_INTERCEPT: Final = -42_585_600  # millionths of a byte
FASTLZ_SLOPE: Final = 836_500  # millionths of a byte per FastLZ byte
SIZE_MIN: Final = 100 * 10**6  # millionths of a byte
UNSIGNED_BYTES: Final = 68
"""What the chain's oracle adds for the signature that an unsigned transaction lacks."""

DEPOSIT_TYPE: Final = 0x7E
"""First byte of a deposit, which was paid for on L1."""

FOOTPRINT_SCALAR_DEFAULT: Final = 400
"""Gas per estimated byte when the chain's operator has set 0."""

_WINDOW, _BUCKETS, _TAIL = 0x1FFF, 0x2000, 13
_LITERAL_RUN, _MATCH_RUN = 0x20, 262


class Fork(IntEnum):
    """Which rule of the data fee is in force; later ones are greater."""

    NONE = 0  # no data fee: an L1, a sidechain, a development node
    ECOTONE = 1
    FJORD = 2
    ISTHMUS = 3
    JOVIAN = 4


@dataclass(frozen=True, slots=True)
class FeeParameters:
    """The prices of a moment; wei unless the name says otherwise."""

    base_fee_wei: int  # per L2 gas
    tip_wei: int = 0
    fork: Fork = Fork.NONE
    l1_base_fee_wei: int = 0
    l1_blob_base_fee_wei: int = 0
    base_fee_scalar: int = 0  # millionths
    blob_base_fee_scalar: int = 0  # millionths
    operator_fee_scalar: int = 0
    operator_fee_constant: int = 0
    da_footprint_scalar: int = 0  # gas per estimated byte; 0 stands for 400

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value < 0 or value >= 2**256:
                raise InvalidError(f"{name} is {value}", code="fee_invalid", fix="give a value from 0 to 2^256 - 1")

    @property
    def gas_price_wei(self) -> int:
        """What a gas costs on L2."""
        return self.base_fee_wei + self.tip_wei


@dataclass(frozen=True, slots=True)
class Fee:
    """What a transaction costs, in wei."""

    l2_wei: int
    l1_wei: int
    operator_wei: int

    @property
    def total_wei(self) -> int:
        """All of it."""
        return self.l2_wei + self.l1_wei + self.operator_wei


def fee_of(raw: bytes, gas: int, parameters: FeeParameters) -> Fee:
    """What a signed transaction costs that uses `gas`.

    Args:
        raw: its bytes as they are sent.
    """
    return Fee(gas * parameters.gas_price_wei, l1_fee(raw, parameters), operator_fee(gas, parameters))


def fee_of_size(fastlz_bytes: int, gas: int, parameters: FeeParameters) -> Fee:
    """What a transaction costs of which only the FastLZ size is known, by the rule of Fjord and later."""
    data = fjord_fee(fastlz_bytes, parameters) if parameters.fork else 0
    return Fee(gas * parameters.gas_price_wei, data, operator_fee(gas, parameters))


def l1_fee(raw: bytes, parameters: FeeParameters) -> int:
    """The data fee of a signed transaction, wei; 0 for a deposit and for nothing."""
    if parameters.fork is Fork.NONE or not raw or raw[0] == DEPOSIT_TYPE:
        return 0
    if parameters.fork is Fork.ECOTONE:
        return calldata_gas(raw) * _byte_price(parameters) // (16 * 10**6)
    return fjord_fee(fastlz_size(raw), parameters)


def l1_fee_unsigned(raw: bytes, parameters: FeeParameters) -> int:
    """The data fee that the chain's oracle tells for an unsigned transaction: 68 bytes are added for the signature."""
    if parameters.fork is Fork.NONE:
        return 0
    if parameters.fork is Fork.ECOTONE:
        return (calldata_gas(raw) + 16 * UNSIGNED_BYTES) * _byte_price(parameters) // (16 * 10**6)
    return fjord_fee(fastlz_size(raw) + UNSIGNED_BYTES, parameters)


def fjord_fee(fastlz_bytes: int, parameters: FeeParameters) -> int:
    """The data fee of a transaction with this FastLZ size, from Fjord on, wei."""
    return _size(fastlz_bytes) * _byte_price(parameters) // 10**12


def estimated_size(fastlz_bytes: int) -> int:
    """Bytes that a transaction is taken to need in a compressed batch, from Fjord on; at least 100."""
    return _size(fastlz_bytes) // 10**6


def data_gas(raw: bytes, fork: Fork) -> int:
    """The *L1 gas used* that a receipt shows: of the bytes until Ecotone, of the estimated size from Fjord on."""
    if fork is Fork.NONE or not raw or raw[0] == DEPOSIT_TYPE:
        return 0
    return calldata_gas(raw) if fork is Fork.ECOTONE else _size(fastlz_size(raw)) * 16 // 10**6


def calldata_gas(raw: bytes) -> int:
    """16 for a byte that is not zero, 4 for one that is."""
    zeros = raw.count(0)
    return 4 * zeros + 16 * (len(raw) - zeros)


def operator_fee(gas: int, parameters: FeeParameters) -> int:
    """What the chain's operator adds to a transaction that uses `gas`, wei."""
    if parameters.fork < Fork.ISTHMUS:
        return 0
    scaled = gas * parameters.operator_fee_scalar
    return (scaled * 100 if parameters.fork >= Fork.JOVIAN else scaled // 10**6) + parameters.operator_fee_constant


def da_footprint(raw: bytes, parameters: FeeParameters) -> int:
    """Gas of the block's limit that a transaction's data takes up, beside the gas it uses; 0 before Jovian."""
    if parameters.fork < Fork.JOVIAN or not raw or raw[0] == DEPOSIT_TYPE:
        return 0
    return estimated_size(fastlz_size(raw)) * (parameters.da_footprint_scalar or FOOTPRINT_SCALAR_DEFAULT)


def fastlz_size(data: bytes) -> int:
    """How long `data` is after FastLZ level 1, in the greedy form that the protocol fixes.

    A match needs three equal bytes at most 8,191 back, found through a table of 8,192 buckets in which a later place
    replaces an earlier one; the last thirteen bytes start no match.
    """
    limit = len(data) - _TAIL
    places: dict[int, int] = {}
    size, written, at = 0, 0, 2
    while at < limit:
        three = data[at : at + 3]
        bucket = _bucket(three)
        found = places.get(bucket, 0)
        places[bucket] = at
        if at - found > _WINDOW or data[found : found + 3] != three:
            at += 1
            continue
        size += _literals(at - written)
        length = _match_length(data, found + 3, at + 3, limit + 9)
        size += 3 * ((length - 1) // _MATCH_RUN) + (3 if (length - 1) % _MATCH_RUN >= 6 else 2)
        at += length
        for place in (at, at + 1):
            places[_bucket(data[place : place + 3])] = place
        at += 2
        written = at
    return size + _literals(len(data) - written)


def _bucket(three: bytes) -> int:
    return (2_654_435_769 * int.from_bytes(three, "little") & 0xFFFFFFFF) >> 19 & (_BUCKETS - 1)


def _match_length(data: bytes, back: int, ahead: int, end: int) -> int:
    """How far `ahead` repeats `back`, and one more for the byte that differs unless `end` comes first."""
    for step in range(end - ahead):
        if data[back + step] != data[ahead + step]:
            return step + 1
    return end - ahead


def _literals(count: int) -> int:
    whole, rest = divmod(count, _LITERAL_RUN)
    return whole * (_LITERAL_RUN + 1) + (rest + 1 if rest else 0)


def _size(fastlz_bytes: int) -> int:
    """Millionths of a byte."""
    return max(SIZE_MIN, FASTLZ_INTERCEPT + FASTLZ_SLOPE * fastlz_bytes)


def _byte_price(parameters: FeeParameters) -> int:
    """Millionths of a wei for an estimated byte."""
    return (
        16 * parameters.base_fee_scalar * parameters.l1_base_fee_wei
        + parameters.blob_base_fee_scalar * parameters.l1_blob_base_fee_wei
    )
