"""From earned to received: the best threshold is best, and every row ends up where the rule says."""

from __future__ import annotations

import pytest

from headwater.economy.figures import figures, flows
from headwater.economy.scenario import default_scenario
from headwater.economy.settling import best_threshold, collected_share
from headwater.economy.simulation import simulate

HALF_A_YEAR_LOST = 0.0018990632
"""Daily hazard at which half of the owners are lost in a year."""


@pytest.mark.parametrize(
    ("fee", "accrual", "threshold", "collected"),
    [(0.002, 0.001, 0.03, 0.88), (0.02, 0.001, 0.11, 0.66), (0.02, 0.01, 0.33, 0.88),
     (0.25, 0.01, 1.28, 0.63), (2.0, 0.01, 4.40, 0.24)],
)  # fmt: skip
def test_the_best_threshold_is_the_one_of_the_table(fee, accrual, threshold, collected):
    """T* and what it collects are the rounded values derived for the design."""
    best = best_threshold(fee, accrual, HALF_A_YEAR_LOST)

    assert best == pytest.approx(threshold, abs=0.02)
    assert collected_share(best, fee, accrual, HALF_A_YEAR_LOST) == pytest.approx(collected, abs=0.01)
    most = collected_share(best, fee, accrual, HALF_A_YEAR_LOST)
    for other in (0.7 * best, 1.4 * best):
        assert collected_share(other, fee, accrual, HALF_A_YEAR_LOST) < most


SMALL = {"contributors": 800, "users": 1_500, "apps": 20, "run.days": 70, "newcomers": 0.0}


def _run(**more):
    return simulate(default_scenario().with_values({**SMALL, **more}))


def test_nobody_is_paid_from_a_root_before_it_has_matured():
    """With an epoch of maturity nothing is settled before the second root; without, the first root pays."""
    late = _run(**{"run.days": 7, "maturity_days": 7})
    early = _run(**{"run.days": 8, "maturity_days": 0, "fee_nano": 1000})

    assert sum(late.state.payouts.values()) == 0
    assert sum(early.state.payouts.values()) > 0


def test_a_payee_bears_the_fee_only_where_the_rule_says_so():
    """Paid by the line, pushes cost the settlement line and its balance never falls below nothing."""
    by_line = _run(claim_week=0.0)
    by_payee = _run(claim_week=0.0, fee_payer="payee")

    assert by_line.state.payouts["fees"] == 0 < by_line.state.books["chain"]
    assert by_line.state.books["line:settlement"] >= 0
    assert by_payee.state.payouts["fees"] > 0 == by_payee.state.books.get("chain", 0)


def test_what_has_expired_leaves_the_unreachable_and_nobody_else():
    """Expiry moves money of lost owners only; without it their money waits."""
    kept, expired = (
        _run(lost_year=0.9, enrolled_share=0.0, enrol_week=0.0),
        _run(lost_year=0.9, enrolled_share=0.0, enrol_week=0.0, expiry_days=14),
    )

    assert kept.state.payouts["expired"] == 0 < expired.state.payouts["expired"]
    assert expired.state.payouts["received"] == 0


def test_pool_mode_pays_what_calls_pay_on_average():
    """The expected pay of a day comes within a few per cent of single calls, for the same assumptions."""
    more = {"calls_per_day": 4.0, "derived_share": 0.0, "niche": 0.0, "law": "lognormal", "spread": 0.5}
    calls, pool = figures(_run(**more)), figures(_run(**more, mode="pool"))

    assert pool["paid"] == pytest.approx(calls["paid"], rel=0.05)
    assert pool["contributors_earned_share"] == pytest.approx(calls["contributors_earned_share"], rel=0.08)


def test_flows_leave_callers_whole():
    """What callers paid is what leaves them in the flow chart, to the unit."""
    run = _run()
    rows = flows(run)

    assert sum(amount for source, _, amount in rows if source == "callers") == run.state.books["in:users"]
    assert figures(run)["events_lost_units"] == 0
