"""Divisions worked out beforehand, held against the general one."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId
from headwater.core.money import AMOUNT_MAX, PPB
from headwater.splits import COMMONS, Findings, Line, Policy, ResidualSplit, divide

DEFAULT = Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8"))
PAYEES = ((AccountId("operator:a"), 400_000_000), (AccountId("operator:b"), 600_000_000))
MODEL = AccountId("contributor:ctr_" + "1" * 32)


@given(
    price=st.integers(0, AMOUNT_MAX) | st.integers(0, 20_000),
    bps=st.lists(st.integers(0, 900), max_size=5),
    residual=st.sampled_from(["commons", "base_model"]),
    shared=st.booleans(),
)
def test_it_divides_as_the_general_division_does(price: int, bps: list[int], residual: str, shared: bool) -> None:
    """For every price and policy, in the same order, to the last unit."""
    lines = tuple(
        Line(f"line{i}", AccountId(f"operator:l{i}"), part, "a rule", PAYEES if shared else ())
        for i, part in enumerate(bps)
    )
    policy = replace(DEFAULT, lines=lines, residual=residual)
    whole = divide(price, policy, Findings("A", (), PPB, MODEL))

    paid = ResidualSplit(policy, MODEL).payouts(price)

    assert paid == [(p.account, p.amount_units, p.line, p.contribution_id) for p in whole.payouts]


def test_a_price_out_of_range_is_refused() -> None:
    """Like everywhere else."""
    split = ResidualSplit(DEFAULT, COMMONS)
    for price in (-1, AMOUNT_MAX + 1):
        with pytest.raises(InvalidError) as caught:
            split.payouts(price)
        assert caught.value.code == "price_out_of_range"
