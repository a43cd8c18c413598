"""The array kernels give the integers of the product's own scalar functions, or refuse before they overflow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId, ContributionId, ContributorId
from headwater.core.money import BPS, PPB, allocate, normalise
from headwater.economy import money_kernels as kernels
from headwater.economy.scenario import policy_of
from headwater.receipts import ReceiptAttribution
from headwater.receipts.receipt import ReceiptOwner, ReceiptShare
from headwater.settlement.epoch import Payee, Window, close
from headwater.settlement.tree import Domain
from headwater.splits.receipt_split import divide_receipt

WIDTH = 6


@st.composite
def _rows(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Amounts and weights whose products fit 63 bits, with zeros, ties and extremes among them."""
    weight_max = draw(st.sampled_from([1, 3, 10**4, 10**9, 2**40]))
    amount_max = (2**63 - 1) // (weight_max * WIDTH)
    edge = st.sampled_from([0, 1, weight_max])
    weights = st.lists(st.one_of(edge, st.integers(0, weight_max)), min_size=WIDTH, max_size=WIDTH).filter(any)
    count = draw(st.integers(1, 5))
    amounts = draw(st.lists(st.integers(0, amount_max), min_size=count, max_size=count))
    return amounts, [draw(weights) for _ in range(count)]


@settings(deadline=None)
@given(_rows())
def test_rows_are_allocated_like_the_scalar_reference(rows):
    """Every row gives exactly what `allocate` gives, ties and zero weights included."""
    amounts, weights = rows

    parts = kernels.allocate_all(np.array(amounts, np.int64), np.array(weights, np.int64))

    assert [tuple(row) for row in parts.tolist()] == [allocate(a, w) for a, w in zip(amounts, weights, strict=True)]


_score = st.one_of(st.sampled_from([0.0, -1.0, 1e-9, 2**-21, 2**-20, 1.0, 1000.0]), st.floats(-500, 1200))


@settings(deadline=None)
@given(st.lists(st.lists(_score, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=5), st.floats(-10, 1000))
def test_scores_are_normalised_like_the_scalar_reference(rows, residual):
    """Every row gives the parts per billion that `normalise` gives, residual last."""
    weights = kernels.normalise_all(np.array(rows), np.full(len(rows), residual))

    for row, got in zip(rows, weights.tolist(), strict=True):
        expected, rest = normalise(row, residual)
        assert tuple(got) == (*expected, rest)


@settings(max_examples=60, deadline=None)
@given(
    price=st.integers(0, kernels.POOL_UNITS_MAX),
    scores=st.lists(st.floats(0, 500), min_size=WIDTH, max_size=WIDTH),
    takes=st.lists(st.integers(0, 2000), min_size=1, max_size=4),
    first=st.lists(st.integers(0, PPB), min_size=WIDTH, max_size=WIDTH),
    discounts=st.lists(st.sampled_from([0, 1, 1000, 5000, 9999, BPS]), min_size=3, max_size=3),
    grade=st.sampled_from("ABC"),
    measuring=st.floats(0, 1.1),
    spare=st.integers(0, 2000),
)
def test_a_price_is_divided_like_the_scalar_reference(price, scores, takes, first, discounts, grade, measuring, spare):
    """Measuring, lines, the discount of a grade, residual and every owner's part are those of a receipt, to the unit.

    What measuring may cost under the cap, and no more, is refused alike.
    """
    lines = {f"line{i}": bps / BPS for i, bps in enumerate(takes)}
    policy = policy_of(lines, cap_bps=min(BPS, sum(takes) + spare))
    policy = replace(policy, grade_discount_bps=tuple(zip("ABC", discounts, strict=True)))
    weights, residual = normalise(scores, 30.0)
    cost = int(price * (policy.take_cap_bps - policy.take_bps) / BPS * measuring)
    account = _account(grade, weights, residual, first, cost)
    bps = np.array([*(line.bps for line in policy.lines), BPS - policy.take_bps], np.int64)
    rows = (
        np.array([price]), np.array([cost]), policy.take_cap_bps, bps, np.array([[*weights, residual]]),
        np.array([first]), policy.discount_bps(grade),
    )  # fmt: skip
    if cost > price * (policy.take_cap_bps - policy.take_bps) // BPS:
        for refuse in (lambda: divide_receipt(price, account, policy), lambda: kernels.divide_measured_all(*rows)):
            with pytest.raises(InvalidError) as refused:
                refuse()
            assert refused.value.code == "attribution_overcharged"
        return
    division = divide_receipt(price, account, policy)
    paid: dict[str, int] = {}
    for payout in division.payouts:
        name = payout.account if payout.line == "contributors" else payout.line
        paid[name] = paid.get(name, 0) + payout.amount_units

    got, owners = kernels.divide_measured_all(*rows)

    names = [*(line.name for line in policy.lines), "grade_discount", "residual"]
    assert got[0].tolist() == [paid.get(name, 0) for name in names]
    assert paid.get("attribution", 0) == cost
    for i in range(WIDTH):
        assert owners[0, i].tolist() == [paid.get(f"contributor:a{i}", 0), paid.get(f"contributor:b{i}", 0)]
    assert int(got.sum() + owners.sum()) + cost == price


def _account(grade, weights, residual, first, cost):
    shares = tuple(
        ReceiptShare(
            ContributionId(f"ctb_{i}"), "document", "grounded", weight, 1, 1, 1,
            (
                ReceiptOwner(AccountId(f"contributor:a{i}"), ContributorId("ctr_a"), part),
                ReceiptOwner(AccountId(f"contributor:b{i}"), ContributorId("ctr_b"), PPB - part),
            ),
        )
        for i, (weight, part) in enumerate(zip(weights, first, strict=True))
    )  # fmt: skip
    return ReceiptAttribution(
        "e", "1", grade, (("attribution_units", cost),), 0, "", None, "", 1, 0, 0, 100_000, shares, residual,
        AccountId("operator:base"),
    )  # fmt: skip


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**47), min_size=1, max_size=8), st.sampled_from([0, 2, 6, 9]))
def test_roots_hold_what_an_epoch_of_the_product_holds(cumulative, decimals):
    """Cumulative amounts are floored to token units exactly as `settlement.epoch.close` floors them."""
    payees = [Payee(i, AccountId(f"contributor:c{i}"), "0x" + f"{i + 1:040x}") for i in range(len(cumulative))]
    domain = Domain(chain_id=31337, contract="0x" + "11" * 20, token="0x" + "22" * 20, epoch=1)
    epoch = close(
        Window(1, 0, 1, b"\0" * 32, 0),
        [(p.account, amount) for p, amount in zip(payees, cumulative, strict=True)],
        previous={}, previous_digest=None, payees=payees, domain=domain, token_decimals=decimals,
        policy_digests=[], registry_digest="",
    )  # fmt: skip
    posted = np.zeros(len(cumulative), np.int64)
    unit = 10 ** (9 - decimals)

    kernels.post_cumulative(np.array(cumulative, np.int64), unit, posted)

    assert (posted // unit).tolist() == list(epoch.token_amounts)


@pytest.mark.parametrize(("amount", "weight"), [(2**62, 3), (2**33, 2**31), (9_223_372_037, 10**9), (2**63 - 1, 2)])
def test_a_product_that_could_pass_63_bits_is_refused_before_it_is_made(amount, weight):
    """The refusal names both numbers and says how large the amount may be."""
    with pytest.raises(InvalidError, match=str(amount)) as refused:
        kernels.allocate_all(np.array([amount], np.int64), np.array([[weight, 0]], np.int64))

    assert refused.value.code == "overflow_risk"


def test_prices_and_scores_beyond_their_range_are_refused():
    """A pool that cannot be multiplied by ppb, and bits that cannot be multiplied by 10^9, are refused."""
    bps, weights = np.array([0, BPS]), np.array([[PPB, 0]])
    with pytest.raises(InvalidError, match="pool"):
        kernels.divide_all(np.array([kernels.POOL_UNITS_MAX + 1]), bps, weights, np.array([[PPB]]), 0)
    with pytest.raises(InvalidError, match="scores sum"):
        kernels.normalise_all(np.array([[9300.0, 1.0]]), np.array([0.0]))
    with pytest.raises(InvalidError, match="finite"):
        kernels.normalise_all(np.array([[np.nan, 1.0]]), np.array([0.0]))
    with pytest.raises(InvalidError, match="positive weight"):
        kernels.allocate_all(np.array([1]), np.array([[0, 0]]))
    with pytest.raises(InvalidError, match="10\\^9 ppb"):
        kernels.divide_all(np.array([10]), bps, np.array([[5, 5]]), np.array([[PPB]]), 0)
