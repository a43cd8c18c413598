"""The frozen reference distribution."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from math import log2

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.attribution.reference import Reference, build_reference, reference_from_bytes, uniform_reference
from headwater.core.errors import InvalidError

tallies = st.lists(st.integers(0, 10**7), min_size=1, max_size=60)


@given(tallies)
def test_costs_are_add_one_smoothed_logarithms(counts: list[int]) -> None:
    """Each cost is within half a step of the exact share's logarithm, and unseen tokens have one too."""
    bits = build_reference(counts, name="t").bits(range(len(counts)))
    total = sum(counts) + len(counts)

    for cost, count in zip(bits, counts, strict=True):
        assert abs(cost + log2(Fraction(count + 1, total))) <= 1 / 128 + 1e-9


@given(tallies)
def test_costs_are_whole_64ths_and_never_negative(counts: list[int]) -> None:
    """A table is exact numbers: no machine can disagree about the last bit of one."""
    steps = build_reference(counts, name="t").bits(range(len(counts))) * 64

    assert np.array_equal(steps, np.rint(steps))
    assert (steps >= 0).all()


@given(tallies)
def test_a_table_sums_to_one_within_a_percent(counts: list[int]) -> None:
    """Rounding moves the sum by less than half a step of every token."""
    assert abs(np.exp2(build_reference(counts, name="t").log2_probs).sum() - 1) < 0.01


@given(tallies, st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_tables_come_back_from_bytes(counts: list[int], name: str) -> None:
    """Name, digest and every cost survive."""
    made = build_reference(counts, name=name)
    read = reference_from_bytes(made.to_bytes())

    assert (read.digest, read.name) == (made.digest, name)
    assert np.array_equal(read.log2_probs, made.log2_probs)


def test_the_digest_names_costs_and_name() -> None:
    """Another name or another count is another table."""
    made = {build_reference(counts, name=name).digest for counts in ([1, 2], [2, 1], [1, 2, 0]) for name in ("a", "b")}

    assert len(made) == 6


def test_the_digest_is_the_same_everywhere() -> None:
    """A known table has its known digest: a change of rounding cannot pass unseen."""
    known = build_reference([0, 1, 10, 100, 12345], name="known")

    assert known.digest == "sha256:5346a018f7f9df6d49f01365486b4831255aa6a44b587d47eb6bfcf0273bb173"
    assert (known.log2_probs * -64).tolist() == [871.0, 807.0, 649.0, 445.0, 1.0]


def test_uniform_tables_cost_the_logarithm_of_their_size() -> None:
    """All tokens cost the same."""
    table = uniform_reference(1024)

    assert table.bits([0, 5, 1023]).tolist() == [10.0, 10.0, 10.0]
    assert uniform_reference(1).bits([0]).tolist() == [0.0]


def test_no_tokens_cost_nothing() -> None:
    """An empty answer has an empty cost."""
    assert uniform_reference(8).bits([]).shape == (0,)


def test_tables_cannot_be_changed() -> None:
    """A table that has a digest is read-only."""
    with pytest.raises(ValueError, match="read-only"):
        uniform_reference(4).log2_probs[0] = 0.0


@pytest.mark.parametrize("token", [-1, 4, 2**40])
def test_ids_of_another_vocabulary_are_refused(token: int) -> None:
    """A wrong pairing of reference and tokenizer is an error, not a wrong number."""
    with pytest.raises(InvalidError) as caught:
        uniform_reference(4).bits([0, token])

    assert caught.value.code == "token_unknown"


def test_what_makes_no_table_is_refused() -> None:
    """No tokens, negative counts, no name."""
    for make in (
        lambda: build_reference([], name="x"),
        lambda: build_reference([1, -1], name="x"),
        lambda: build_reference([1], name=""),
        lambda: uniform_reference(0),
        lambda: uniform_reference(2**22 + 1),
    ):
        with pytest.raises(InvalidError) as caught:
            make()
        assert caught.value.code == "reference_invalid"


def test_damaged_bytes_are_refused() -> None:
    """A file that is cut, changed in its head, or something else gives our error; other changes give another digest."""
    table: Reference = build_reference(list(range(300)), name="damage")
    data = table.to_bytes()
    for size in range(len(data)):
        with pytest.raises(InvalidError):
            reference_from_bytes(data[:size])
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with contextlib.suppress(InvalidError):
            assert reference_from_bytes(changed).digest != table.digest
