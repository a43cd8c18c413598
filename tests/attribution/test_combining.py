"""Several accounts as one: of several answers, and of parts that are one contribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.attribution import Attribution, Rules, Share
from headwater.attribution.combining import combine, settle_parts
from headwater.core.money import PPB

RULES = Rules(model_weight_ppm=100_000, evidence_floor_millibits=1_000)


def account(base: float, *shares: tuple[str, float, float]) -> Attribution:
    """An account of one token, of (part, bits, half an interval)."""
    return Attribution(
        shares=tuple(
            Share(name, name, "grounded", 0, bits, bits - wide, bits + wide, np.array([bits]))
            for name, bits, wide in shares
        ),
        base_bits=base,
        total_bits=base + sum(bits for _, bits, _ in shares),
        base_token_bits=np.array([base]),
        residual_ppb=PPB,
        grade="A" if all(wide == 0 for *_, wide in shares) else "B",
        passes=4,
        tokens=1,
        estimator="toy",
        version="1",
        players=len(shares),
    )


bits = st.floats(-50, 50, allow_nan=False)


@given(st.lists(st.tuples(bits, bits, bits), min_size=1, max_size=4))
def test_bits_of_several_answers_add_up_and_weights_close(rows: list[tuple[float, float, float]]):
    """Base and shares sum to the total, per token too, and weights to 10^9."""
    found = combine([account(base, ("a", a, 0), ("b", b, 0)) for base, a, b in rows], RULES)

    assert found.tokens == len(found.base_token_bits) == len(rows)
    if len(rows) > 1:
        assert [share.bits for share in found.shares] == pytest.approx(
            [sum(r[1] for r in rows), sum(r[2] for r in rows)]
        )
        assert found.base_bits + sum(s.bits for s in found.shares) == pytest.approx(found.total_bits)
        assert sum(share.weight_ppb for share in found.shares) + found.residual_ppb == PPB
        for share in found.shares:
            assert share.token_bits.sum() == pytest.approx(share.bits)


def test_the_worst_grade_is_the_accounts():
    """One sampled answer makes all of it sampled, and its doubt is kept."""
    found = combine([account(1, ("a", 9, 0)), account(1, ("a", 9, 20))], RULES)

    assert found.grade == "B"
    assert (found.shares[0].low_bits, found.shares[0].weight_ppb) == (-2, 0)


def test_parts_of_one_contribution_are_one_share_and_nobodys_part_is_the_base_models():
    """As if the contribution had been one part."""
    apart = account(2, ("a", 6, 0), ("a#2", 4, 0), ("turn:1", 3, 0))
    found = settle_parts(
        apart, lambda name: None if name.startswith("turn") else name.partition("#")[0], lambda name: name, RULES
    )
    whole = settle_parts(account(5, ("a", 10, 0)), lambda name: name, lambda name: name, RULES)

    assert [(s.part_id, s.bits, s.weight_ppb) for s in found.shares] == [
        (s.part_id, s.bits, s.weight_ppb) for s in whole.shares
    ]
    assert (found.base_bits, found.residual_ppb) == (5, whole.residual_ppb)
    assert found.total_bits == apart.total_bits
