from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.core.money import BPS, PPB, allocate
from headwater.splits import Credit, Findings, Policy, divide, explain

POLICY = Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text())


def whole(parts):
    return allocate(PPB, parts)


weights = st.lists(st.integers(0, 10**6), min_size=1, max_size=8).filter(any)


@st.composite
def findings(draw):
    *shares, residual = whole(draw(weights))
    credits = tuple(
        Credit(f"ctb_{i}", share, tuple((f"contributor:{i}{j}", ppb) for j, ppb in enumerate(whole(draw(weights)))))
        for i, share in enumerate(shares)
    )
    return Findings(draw(st.sampled_from("ABC")), credits, residual, "escrow:base")


@given(price=st.integers(0, 10**30), found=findings())
def test_payouts_sum_to_the_price_and_each_is_within_a_few_units_of_its_exact_share(price, found):
    """Nothing is lost, and rounding never moves more than one unit a division."""
    division = divide(price, POLICY, found)

    assert sum(payout.amount_units for payout in division.payouts) == price
    assert all(payout.amount_units > 0 for payout in division.payouts)
    pool_bps, keep = BPS - POLICY.take_bps, BPS - POLICY.discount_bps(found.grade)
    for credit in found.credits:
        for account, ppb in credit.owners:
            got = sum(p.amount_units for p in division.payouts if p.account == account and p.contribution_id)
            scaled = price * pool_bps * credit.weight_ppb * keep * ppb
            assert abs(got * BPS * PPB * BPS * PPB - scaled) < 4 * BPS * PPB * BPS * PPB


@given(price=st.integers(0, 10**12), found=findings())
def test_a_line_never_depends_on_who_supplied_the_answer(price, found):
    """Every cut has the same base, the price; findings cannot move it."""
    nobody = Findings("A", (), PPB, "commons")

    def lines(division):
        return [p for p in division.payouts if p.account.startswith("operator:")]

    assert lines(divide(price, POLICY, found)) == lines(divide(price, POLICY, nobody))


def test_a_worked_example_to_the_unit():
    """One cent: 20 % compute, 5 % platform, 1 % settlement; of the pool 80 % to two authors, 20 % residual."""
    credit = Credit("ctb_a", 800_000_000, (("contributor:x", 500_000_000), ("escrow:y", 500_000_000)))
    division = divide(10_000_000, POLICY, Findings("A", (credit,), 200_000_000, "escrow:base"))

    assert [(p.account, p.amount_units) for p in division.payouts] == [
        ("operator:compute", 2_000_000),
        ("operator:platform", 500_000),
        ("operator:settlement", 100_000),
        ("contributor:x", 2_960_000),
        ("escrow:y", 2_960_000),
        ("escrow:base", 1_480_000),
    ]
    assert explain(division, POLICY)[-1].startswith("0.001480000 USD could be traced to no registered contribution")


def test_a_poorer_grade_gives_its_discount_to_the_commons_and_not_to_the_operator():
    """Measuring worse must not pay whoever measures."""
    credit = Credit("ctb_a", PPB, (("contributor:x", PPB),))
    exact, surrogate = (divide(10_000_000, POLICY, Findings(g, (credit,), 0, "escrow:base")) for g in "AC")

    assert sum(p.amount_units for p in surrogate.payouts if p.account == "commons") == 3_700_000
    assert [p for p in exact.payouts if p.account.startswith("operator")] == [
        p for p in surrogate.payouts if p.account.startswith("operator")
    ]


@pytest.mark.parametrize(
    ("price", "found", "code"),
    [
        (-1, Findings("A", (), PPB, "commons"), "price_out_of_range"),
        (10**38, Findings("A", (), PPB, "commons"), "price_out_of_range"),
        (1, Findings("A", (), PPB - 1, "commons"), "shares_not_whole"),
        (1, Findings("A", (Credit("c", PPB, (("a", PPB - 1),)),), 0, "commons"), "shares_not_whole"),
        (1, Findings("A", (Credit("c", -1, (("a", PPB),)),), PPB + 1, "commons"), "shares_not_whole"),
    ],
)
def test_what_does_not_sum_is_refused(price, found, code):
    """Shares that are not a whole are never stretched to fit."""
    with pytest.raises(InvalidError) as caught:
        divide(price, POLICY, found)

    assert caught.value.code == code
