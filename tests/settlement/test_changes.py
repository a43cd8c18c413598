"""Change sets: read back exactly, small, one digest whatever packed them, and nothing else is taken for one."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.settlement.changes import ChangeSet, unpack


def made(epoch: int, width: int, rows: dict[int, int]) -> ChangeSet:
    """A change set of {index: increase}."""
    indices = np.array(sorted(rows), dtype=np.int64)
    new = [index for index in sorted(rows) if index >= width]
    addresses = np.array([list((index + 1).to_bytes(20, "big")) for index in new], dtype=np.uint8).reshape(-1, 20)
    return ChangeSet(epoch, width, indices, np.array([rows[i] for i in sorted(rows)], dtype=np.uint64), addresses)


def by_hand(changes: ChangeSet) -> bytes:
    """The body from its description, number by number."""
    head = b"HWCH" + bytes([1])
    for number in (changes.epoch, changes.width_before, len(changes.indices), len(changes.addresses)):
        head += number.to_bytes(4, "little")
    gaps, exponents, bits, last = bytearray(), bytearray(), "", -1
    for index, increase in zip(changes.indices.tolist(), changes.increases.tolist(), strict=True):
        gap, last = index - last - 1, index
        while gap >= 128:
            gaps.append(gap % 128 + 128)
            gap //= 128
        gaps.append(gap)
        exponents.append(increase.bit_length())
        bits += bin(increase)[3:] if increase else ""
    bits += "0" * (-len(bits) % 8)
    mantissas = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    return head + bytes(gaps) + bytes(exponents) + mantissas + changes.addresses.tobytes()


@settings(deadline=None, max_examples=150)
@given(
    rows=st.dictionaries(st.integers(0, 2**24 - 1) | st.integers(0, 300), st.integers(0, 2**48 - 1), max_size=60),
    width=st.integers(0, 2**24),
    epoch=st.integers(1, 2**32 - 1),
)
def test_what_is_packed_is_read_back_and_the_body_is_what_the_format_says(rows, width, epoch):
    """Any change set survives, and its hashed columns are those a reader builds from the description."""
    changes = made(epoch, width, rows)
    again = unpack(changes.pack())

    assert changes.body() == by_hand(changes) == again.body()
    assert dict(zip(again.indices.tolist(), again.increases.tolist(), strict=True)) == rows
    assert (again.epoch, again.width_before, again.digest()) == (epoch, width, changes.digest())


@settings(deadline=None, max_examples=100)
@given(data=st.data(), rows=st.dictionaries(st.integers(0, 500), st.integers(0, 10**6), min_size=1, max_size=20))
def test_a_changed_file_never_says_something_else_under_the_same_digest(data, rows):
    """Whatever byte is changed, the file is refused, says the same, or has another digest."""
    changes = made(7, 200, rows)
    packed = bytearray(changes.pack())
    at = data.draw(st.integers(0, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with suppress(InvalidError):
        again = unpack(bytes(packed))
        assert (again.digest() == changes.digest()) == (by_hand(again) == by_hand(changes))


@pytest.mark.parametrize("cut", [0, 3, 20, 40, -1])
def test_cut_or_lengthened_files_are_refused(cut):
    """Neither less nor more than was published."""
    packed = made(1, 0, {index: index * 1_000 for index in range(50)}).pack()
    for wrong in (packed[:cut], packed + b"\x00"):
        with pytest.raises(InvalidError) as refused:
            unpack(wrong)
        assert refused.value.code == "changes_invalid"


def test_columns_that_do_not_fit_are_refused():
    """Indices twice or out of order, amounts out of range, addresses missing."""
    one, none = np.array([1], dtype=np.uint64), np.zeros((0, 20), dtype=np.uint8)
    for indices, increases, addresses in [
        ([3, 3], np.array([1, 1], dtype=np.uint64), none),
        ([4, 3], np.array([1, 1], dtype=np.uint64), none),
        ([3], np.array([2**48], dtype=np.uint64), none),
        ([3], np.array([], dtype=np.uint64), none),
        ([11], one, none),
        ([2**24], one, np.zeros((1, 20), dtype=np.uint8)),
    ]:
        with pytest.raises(InvalidError):
            ChangeSet(1, 10, np.array(indices, dtype=np.int64), increases, addresses)


def test_a_change_takes_less_than_two_and_a_half_bytes():
    """Half of a million payees, amounts as skewed as real ones: index and amount together."""
    rng = np.random.default_rng(5)
    indices = np.flatnonzero(rng.random(1_000_000) < 0.5)
    increases = np.maximum(1, np.exp(rng.normal(np.log(3_000), 1.0, len(indices)))).astype(np.uint64)
    changes = ChangeSet(9, 1_000_000, indices, increases, np.zeros((0, 20), dtype=np.uint8))
    packed = changes.pack()

    assert len(packed) / len(indices) < 2.5
    assert unpack(packed).digest() == changes.digest()
