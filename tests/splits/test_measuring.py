"""What measuring may cost: known before, capped, and a line of its own."""

from __future__ import annotations

from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.receipts import ReceiptAttribution
from headwater.splits import Measuring, Policy, divide_receipt

POLICY = Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8"))


def account(units: int) -> ReceiptAttribution:
    """An account that found nothing, whose measuring cost so much."""
    return ReceiptAttribution(
        estimator="none",
        version="1",
        grade="A",
        parameters=(("attribution_units", units),),
        seed=0,
        reference_digest="sha256:" + "0" * 64,
        index_digest=None,
        scorer_digest="sha256:" + "0" * 64,
        tokens=0,
        base_microbits=0,
        total_microbits=0,
        model_weight_ppm=0,
        shares=(),
        residual_ppb=10**9,
        residual_account="commons",
    )


@given(
    players=st.integers(0, 12),
    fixed=st.integers(0, 500),
    of_players=st.integers(0, 2000),
    answer=st.integers(1, 200),
    price=st.integers(0, 10**12),
    bps=st.integers(0, 10_000),
    token=st.integers(0, 10**5),
    passes=st.integers(2, 4096),
)
def test_a_plan_never_costs_more_than_the_operator_and_the_cap_allow(
    players, fixed, of_players, answer, price, bps, token, passes
) -> None:
    """Passes stay within both limits, the cost within the allowance, and nothing is charged for measuring nothing."""
    measuring = Measuring(passes, bps, token)
    limit = measuring.limit_units(price, POLICY)
    plan = measuring.plan(
        players=players, fixed_tokens=fixed, player_tokens=of_players, answer_tokens=answer, limit_units=limit
    )

    assert plan.passes <= min(passes, plan.passes_wanted)
    assert plan.cost_units <= limit <= price * (POLICY.take_cap_bps - POLICY.take_bps) / 10_000
    assert (plan.cost_units > 0) <= (plan.passes > 0)
    if token == 0:
        assert (plan.cost_units, plan.passes) == (0, min(passes, 2**players, 4096))


@given(price=st.integers(10, 10**12), part=st.integers(0, 900))
def test_measuring_is_paid_first_and_the_payouts_still_sum_to_the_price(price: int, part: int) -> None:
    """The line `attribution` goes to its own account; the policy divides what is left."""
    cost = price * part // 10_000
    division = divide_receipt(price, account(cost), POLICY)

    lines = {payout.line: payout for payout in division.payouts}
    assert sum(payout.amount_units for payout in division.payouts) == price
    assert ("attribution" in lines) == (cost > 0)
    if cost:
        assert (lines["attribution"].account, lines["attribution"].amount_units) == ("operator:attribution", cost)


@pytest.mark.parametrize("cost", [901, -1, "many"])
def test_measuring_above_the_cap_is_refused(cost) -> None:
    """With the policy's lines it may not pass the policy's cap, whatever the receipt says."""
    with pytest.raises(InvalidError) as caught:
        divide_receipt(10_000, account(cost), POLICY)
    assert caught.value.code == "attribution_overcharged"


def test_impossible_limits_are_refused() -> None:
    """One pass compares nothing; more than the whole price cannot be taken."""
    for wrong in ((1, 0, 0), (5000, 0, 0), (2, 10_001, 0), (2, 0, -1)):
        with pytest.raises(InvalidError) as caught:
            Measuring(*wrong)
        assert caught.value.code == "measuring_invalid"


def test_a_policy_cannot_name_a_line_of_its_own_attribution() -> None:
    """The word is taken by what measuring costs."""
    text = files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8")
    with pytest.raises(InvalidError):
        Policy.from_toml(text.replace('name = "compute"', 'name = "attribution"'))
