"""Weights from micro-bits: whole numbers, nothing at a tie turned over by rounding, nobody paid for what is unsure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.attribution.bits import sure_and_unsure, weigh
from headwater.core.money import PPB

RULES = {"model_weight_ppm": 100_000, "evidence_floor_millibits": 5_000}
microbits = st.integers(-(10**8), 10**8)


@given(grounded=st.lists(microbits, max_size=8), copied=st.lists(st.integers(0, 10**7), max_size=3), base=microbits)
def test_weights_and_residual_are_a_whole_and_negative_bits_weigh_nothing(grounded, copied, base) -> None:
    """Whatever the bits, weights and residual sum to 10^9."""
    weights, residual = weigh(grounded, copied, base, **RULES)

    assert sum(weights) + residual == PPB
    assert all(weight == 0 for weight, bits in zip(weights, grounded, strict=False) if bits <= 0)


@pytest.mark.parametrize("noise", [-400, -1, 0, 1, 400])
def test_evidence_at_the_floor_is_not_turned_over_by_the_last_digits(noise: int) -> None:
    """Two machines that differ by less than half a millibit at exactly the floor both pay, within that difference."""
    exact, _ = weigh([3_000_000, 2_000_000], [], 10_000_000, **RULES)
    near, _ = weigh([3_000_000 + noise, 2_000_000], [], 10_000_000, **RULES)

    assert exact[0] > 0
    assert near == pytest.approx(exact, abs=2 * PPB * 400 // 5_000_000)


@pytest.mark.parametrize("noise", [-499, -3, 0, 3, 499])
def test_a_share_of_nothing_is_nothing_on_either_side_of_zero(noise: int) -> None:
    """A part without effect weighs nothing, whichever sign rounding gave it; the others' weights stay put."""
    weights, residual = weigh([9_000_000, noise], [], 0, **RULES)

    assert (weights, residual) == ((PPB, 0), 0)


def test_unsure_bits_go_to_the_residual_and_not_to_the_others() -> None:
    """A share that is withheld makes nobody else's larger."""
    paid, nothing_left = weigh([6_000_000, 6_000_000], [], 0, **RULES)
    sure, unsure = sure_and_unsure([(6_000_000, 5_000_000), (6_000_000, -1_000_000), (-5, -9)])
    weights, residual = weigh(sure, [], 0, unsure=unsure, **RULES)

    assert (paid[0], nothing_left) == (PPB // 2, 0)
    assert (weights, residual) == ((PPB // 2, 0, 0), PPB // 2)


@given(
    shares=st.lists(st.tuples(microbits, st.integers(0, 10**7), st.sampled_from("xyz")), max_size=8),
)
def test_an_owner_is_never_paid_on_more_than_its_parts_supply_together(shares) -> None:
    """Paid and withheld bits of an owner are its net bits, up to rounding down; whose parts only give loses nothing."""
    owners = [owner for _, _, owner in shares]
    sure, unsure = sure_and_unsure([(bits, bits - wide) for bits, wide, _ in shares], owners)

    withheld = 0
    for name in "xyz":
        net = max(0, sum(bits for bits, _, owner in shares if owner == name))
        paid = sum(bits for bits, owner in zip(sure, owners, strict=True) if owner == name and bits > 0)
        assert paid <= net
        withheld += net - paid
    assert 0 <= withheld - unsure <= len(shares)
    for bits, (raw, wide, owner) in zip(sure, shares, strict=True):
        if raw - wide > 0 and all(other >= 0 for other, _, whose in shares if whose == owner):
            assert bits == raw
