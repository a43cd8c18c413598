"""Fees against the published vectors of the OP-Stack's own clients, and against receipts of its main network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.settlement.fees import (
    FeeParameters,
    Fork,
    calldata_gas,
    da_footprint,
    data_gas,
    estimated_size,
    fastlz_size,
    fee_of,
    fjord_fee,
    l1_fee,
    l1_fee_unsigned,
    operator_fee,
)

VECTORS = json.loads((Path(__file__).parent / "data/op_stack_fees.json").read_text("ascii"))
RAW = {name: bytes.fromhex(raw) for name, raw in VECTORS["transactions"].items()}


def parameters(fork, **values):
    """Parameters of one fork."""
    return FeeParameters(base_fee_wei=0, fork=Fork[fork.upper()], **values)


@pytest.mark.parametrize("vector", VECTORS["fastlz"], ids=lambda v: f"{v['of']}")
def test_fastlz_sizes_are_the_published_ones(vector):
    """Empty and repeated bytes, an empty transaction and a contract call of the main network."""
    raw = RAW[vector["of"]] if vector["of"] in RAW else bytes([vector["byte"]]) * vector["count"]

    assert fastlz_size(raw) == vector["size"]


@pytest.mark.parametrize("vector", VECTORS["l1"], ids=lambda v: f"{v['source']}")
def test_data_fees_are_the_published_ones(vector):
    """Fee and L1 gas to the wei, for the clients' test cases and for receipts of the main network."""
    raw, given_ = RAW[vector["of"]], parameters(vector["fork"], **vector["parameters"])

    assert l1_fee(raw, given_) == vector["fee_wei"]
    if "gas" in vector:
        assert data_gas(raw, given_.fork) == vector["gas"]


@pytest.mark.parametrize("vector", VECTORS["receipts"], ids=lambda v: v["source"])
def test_a_receipt_with_the_least_size_is_charged_as_published(vector):
    """A small transaction of a main network pays for 100 bytes, whatever it holds."""
    assert fjord_fee(0, parameters("jovian", **vector["parameters"])) == vector["fee_wei"]


@pytest.mark.parametrize("vector", VECTORS["operator"], ids=lambda v: f"{v['fork']}-{v['gas']}")
def test_operator_fees_are_the_published_ones(vector):
    """Millionths until Jovian, hundreds since."""
    given_ = parameters(vector["fork"], operator_fee_scalar=vector["scalar"], operator_fee_constant=vector["constant"])

    assert operator_fee(vector["gas"], given_) == vector["fee_wei"]


def test_what_is_not_charged():
    """Deposits, nothing at all, chains without data fee, operators before Isthmus, footprints before Jovian."""
    rich = {"l1_base_fee_wei": 10**9, "base_fee_scalar": 1_000, "operator_fee_scalar": 5, "operator_fee_constant": 7}
    for fork in ("ecotone", "fjord", "isthmus", "jovian"):
        assert l1_fee(b"", parameters(fork, **rich)) == l1_fee(b"\x7e\xfa\xce", parameters(fork, **rich)) == 0
    raw = RAW["contract_call"]

    assert l1_fee(raw, parameters("none", **rich)) == l1_fee_unsigned(raw, parameters("none", **rich)) == 0
    assert operator_fee(10**6, parameters("fjord", **rich)) == 0
    assert da_footprint(raw, parameters("isthmus")) == 0


def test_the_footprint_takes_a_part_of_the_block():
    """The estimated bytes times the scalar; a scalar of zero is the default of 400."""
    raw = RAW["contract_call"]  # FastLZ 202, so 126 estimated bytes

    assert estimated_size(fastlz_size(raw)) == 126
    assert da_footprint(raw, parameters("jovian", da_footprint_scalar=10)) == 1_260
    assert da_footprint(raw, parameters("jovian")) == da_footprint(raw, parameters("jovian", da_footprint_scalar=400))
    assert da_footprint(RAW["empty"], parameters("jovian")) == 100 * 400


def test_a_fee_is_the_sum_of_its_parts():
    """L2 gas at base fee and tip, data and operator fee."""
    given_ = FeeParameters(10, 5, Fork.ISTHMUS, 10**9, 10**7, 2, 3, 10**6, 9)
    fee = fee_of(RAW["empty"], 21_000, given_)

    assert (fee.l2_wei, fee.l1_wei, fee.operator_wei) == (15 * 21_000, 3_203_000, 21_009)
    assert fee.total_wei == 315_000 + 3_203_000 + 21_009
    with pytest.raises(InvalidError):
        FeeParameters(-1)


def decompressed(packed: bytes) -> bytes:
    """What FastLZ level 1 makes of `packed`, written from the format's description."""
    out, at = bytearray(), 0
    while at < len(packed):
        kind = packed[at] >> 5 if at else 0
        if kind == 0:
            run = (packed[at] & 31) + 1
            out += packed[at + 1 : at + 1 + run]
            at += 1 + run
            continue
        length, low = (kind + 2, packed[at + 1]) if kind < 7 else (packed[at + 1] + 9, packed[at + 2])
        back = len(out) - 1 - ((packed[at] & 31) << 8 | low)
        for step in range(length):
            out.append(out[back + step])
        at += 2 if kind < 7 else 3
    return bytes(out)


def compressed(data: bytes) -> bytes:
    """FastLZ level 1 written out, to compare sizes with; that it is FastLZ is seen by decompressing it."""
    out, table = bytearray(), [0] * 8192

    def literals(start: int, end: int) -> None:
        for first in range(start, end, 32):
            run = data[first : min(first + 32, end)]
            out.extend((len(run) - 1, *run))

    def slot(place: int) -> int:
        return ((data[place] | data[place + 1] << 8 | data[place + 2] << 16) * 2654435769 % 2**32) >> 19

    start, at, bound = 0, 2, len(data) - 13
    while at < bound:
        key = slot(at)
        before, table[key] = table[key], at
        if at - before >= 8192 or any(data[before + i] != data[at + i] for i in range(3)):
            at += 1
            continue
        literals(start, at)
        code = 0  # the match has two bytes more
        for place in range(at + 3, bound + 9):
            code += 1
            if data[place] != data[place - at + before]:
                break
        far, left = at - before - 1, code
        while left > 262:
            out.extend((0xE0 | far >> 8, 253, far & 255))
            left -= 262
        out.extend((left << 5 | far >> 8, far & 255) if left < 7 else (0xE0 | far >> 8, left - 7, far & 255))
        table[slot(at + code)], table[slot(at + code + 1)] = at + code, at + code + 1
        start = at = at + code + 2
    literals(start, len(data))
    return bytes(out)


@given(
    st.lists(st.sampled_from([b"\x00" * 12, b"abcdefgh", b"\x01\x02\x03", b"zq", b"\xff" * 40]) | st.binary(max_size=9))
)
def test_sizes_are_those_of_a_compressor_whose_output_can_be_read(pieces):
    """The size is the length of real FastLZ output, which decompresses to what went in."""
    data = b"".join(pieces)
    packed = compressed(data)

    assert decompressed(packed) == data
    assert fastlz_size(data) == len(packed)


@given(st.binary(max_size=400))
def test_random_bytes_grow_by_one_in_thirty_two(data):
    """Bytes without repetition cost one control byte per run of 32."""
    if len({data[i : i + 3] for i in range(len(data) - 2)}) == max(0, len(data) - 2):
        assert fastlz_size(data) == len(data) + -(-len(data) // 32)
    assert calldata_gas(data) == sum(16 if byte else 4 for byte in data)
