"""Parts of change sets: headers and blobs are read back, anything else is not taken for one, and fees add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.settlement.fees import FeeParameters, Fork
from headwater.settlement.publication import (
    BLOB_BYTES,
    HEADER_BYTES,
    Part,
    blob_cost,
    calldata_cost,
    cut,
    data_address,
    from_blobs,
    read_part,
    to_blobs,
)

CONTRACT = "0x00000000000000000000000000000000000000AA"
PRICES = FeeParameters(5_000_000, fork=Fork.ISTHMUS, l1_base_fee_wei=5 * 10**8, base_fee_scalar=2_269)
FIELD = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
"""The modulus of the field that blob elements are in (BLS12-381)."""


@settings(deadline=None, max_examples=60)
@given(piece=st.binary(max_size=400), number=st.integers(0, 9), epoch=st.integers(1, 2**32 - 1))
def test_a_part_is_read_back(piece, number, epoch):
    """Every field comes back; the header has as many bytes as the documentation says."""
    part = Part(0, epoch, number, 10, len(piece), b"\x01" * 32, CONTRACT, b"\x02" * 32)

    assert len(part.to_bytes()) == HEADER_BYTES == 102
    assert read_part(part.to_bytes() + piece) == (part, piece)
    assert read_part(part.to_bytes() + piece + b"\0") is None
    assert read_part(b"x" + part.to_bytes()[1:] + piece) is None
    assert read_part(part.to_bytes()[:-1]) is None


def test_headers_that_cannot_be_are_passed_over():
    """Epoch 0, a part beyond their number, a kind that is not known, data behind a blob's header."""
    good = Part(1, 7, 0, 1, 500, bytes(32), CONTRACT, bytes(32))
    assert read_part(good.to_bytes()) == (good, b"")
    for wrong in (replace(good, epoch=0), replace(good, part=1), replace(good, kind=2)):
        assert read_part(wrong.to_bytes()) is None
    assert read_part(good.to_bytes() + b"more") is None


@pytest.mark.parametrize("size", [0, 1, 31, 32, BLOB_BYTES - 1, BLOB_BYTES, BLOB_BYTES + 1])
def test_blobs_hold_any_bytes_in_elements_of_the_field(size):
    """The largest bytes there are stay below the modulus, and come back."""
    piece = b"\xff" * size
    blobs = to_blobs(piece)

    assert {len(blob) for blob in blobs} == {131_072}
    assert len(blobs) == max(1, -(-size // BLOB_BYTES))
    assert all(int.from_bytes(blob[at : at + 32], "big") < FIELD for blob in blobs for at in range(0, 131_072, 32))
    assert from_blobs(blobs, size) == piece
    with pytest.raises(InvalidError):
        from_blobs(blobs, len(blobs) * BLOB_BYTES + 1)
    with pytest.raises(InvalidError):
        from_blobs([blobs[0][:-1]], 1)


def test_pieces_put_together_are_the_whole():
    """No byte is lost at a boundary, nothing is one empty part, and too many parts are refused."""
    assert cut(b"abcdefg", 3) == (b"abc", b"def", b"g")
    assert cut(b"", 3) == (b"",)
    with pytest.raises(InvalidError) as refused:
        cut(bytes(2**16), 1)
    assert refused.value.code == "changes_too_large"


def test_fees_are_the_sum_of_their_parts_by_hand():
    """40 gas a byte that is not zero, 21,000 a transaction, the data fee of its compressed size, 131,072 a blob."""
    dense = bytes((i * 73 + i // 7) % 255 + 1 for i in range(10_000))
    shown = calldata_cost(dense, PRICES, part_bytes=6_000)
    headers = 2 * HEADER_BYTES
    assert (shown.transactions, shown.data_bytes) == (2, 10_000 + headers)
    assert 0 <= 2 * 21_000 + 40 * (10_000 + headers) - shown.gas <= 2 * 30 * 30  # zero bytes of the headers
    assert shown.fee.l2_wei == shown.gas * 5_000_000
    assert shown.fee.l1_wei > 0
    assert shown.total_wei == shown.fee.l2_wei + shown.fee.l1_wei + shown.fee.operator_wei

    in_blobs = blob_cost(bytes([7]) * (BLOB_BYTES + 1), PRICES, 10**7)
    assert (in_blobs.transactions, in_blobs.blobs, in_blobs.blob_wei) == (1, 2, 2 * 131_072 * 10**7)
    assert in_blobs.gas < 26_000


def test_every_deployment_has_a_data_address_of_its_own():
    """Another chain or another contract is another address."""
    found = {data_address(chain, one) for chain in (1, 2) for one in (CONTRACT, CONTRACT.replace("AA", "AB"))}
    assert len(found) == 4
