"""The product's rails in the economy: money is conserved day by day, and each does what its contract does."""

from __future__ import annotations

import pytest

from headwater.core.canonical import digest, parse_canonical
from headwater.core.errors import InvalidError
from headwater.economy.figures import figures
from headwater.economy.impact import impact
from headwater.economy.scenario import Scenario, default_scenario, policy_of
from headwater.economy.simulation import simulate

SMALL = {
    "contributors": 300, "users": 300, "apps": 12, "run.days": 90, "calls_per_day": 2.0, "attack.kind": "duplicate",
    "attack.accounts": 30, "account_cost_nano": 10_000_000, "rails.bond_nano": 50_000_000,
    "rails.advance_min_nano": 10_000_000, "rails.audit_day": 0.05,
}  # fmt: skip
OURS = {"rails.bond": True, "rails.vest": True, "rails.advance": True, "rails.govern": "cluster"}


def run(**changes: object):
    """A small economy with copies in it."""
    values = {name.replace("__", "."): value for name, value in changes.items()}
    return simulate(default_scenario().with_values({**SMALL, **values}), 1)


def small(**changes: object) -> Scenario:
    """A smaller one, without attack or rails."""
    return default_scenario().with_values({"contributors": 60, "users": 60, "apps": 4, "run.days": 5, **changes})


def test_all_rails_together_lose_nothing():
    """With the guard on every undeclared change stops the run; every day's books close."""
    finished = simulate(
        default_scenario().with_values({**SMALL, **OURS, "rails.revenue_share": True, "run.guard": "all"}), 2
    )
    got, state = figures(finished), finished.state

    assert got["events_lost_units"] == 0
    assert state.books["bonds"] == int(state["rails.staked"].sum()) > 0
    assert state.books["vesting"] == int(state["rails.unvested"].sum()) > 0
    drawn, owed = int(state["rails.drawn"].sum()), int(state["rails.owed"].sum())
    lent, lost, fees = (int(x) for x in state["rails.pool_state"])
    assert drawn == state.books["in:lenders"] == state.books["advanced"] > 0
    assert lent == owed
    assert state.books["lenders"] == drawn - lent - lost + fees


def test_bonds_and_vesting_take_an_attackers_return():
    """What an attacker is found with is lost to it; audits alone leave it what it had by then."""
    free, audited, bonded, vested = (
        figures(run(**changes))["attack_return"]
        for changes in ({}, {"rails__audit": True}, {"rails__bond": True}, {"rails__vest": True})
    )

    assert free > audited > vested
    assert audited > bonded
    assert figures(run(rails__bond=True))["slashed_share"] > 0


def test_nobody_is_found_where_nothing_can_be_found():
    """Without chances audits change no figure of anybody."""
    quiet = {"rails__audit_day": 0.0, "rails__audit_false_day": 0.0}
    assert figures(run())["contributors_earned_share"] == pytest.approx(
        figures(run(rails__audit=True, **quiet))["contributors_earned_share"]
    )


@pytest.mark.parametrize(("who", "rises"), [("none", True), ("stake", True), ("account", True), ("cluster", False)])
def test_a_take_rises_unless_people_vote(who, rises):
    """Operators outvote a few per cent of contributors by stake and by accounts, and not by people."""
    got = figures(run(rails__govern=who, rails__operator_accounts=100))

    assert (got["operators_share"] > 0) == rises


def test_operators_with_few_accounts_are_outvoted():
    """An account vote is safe exactly as long as accounts cost more than they bring."""
    assert figures(run(rails__govern="account", rails__operator_accounts=3))["operators_share"] == 0


def test_an_advance_reaches_people_sooner():
    """More of what callers paid is in contributors' hands, for a fee to lenders."""
    without, with_it = figures(run()), figures(run(rails__advance=True, rails__audit_day=0.0))

    assert with_it["contributors_received_share"] > without["contributors_received_share"]
    assert 0 < with_it["lenders_share"] < 0.01


def test_an_impact_names_both_policies_and_can_be_run_again():
    """The same change gives the same bytes; less take shows as more for contributors."""
    one = small()
    line = one.policy.lines[0]
    cheaper = policy_of({line.name: 0.01})
    report = impact(one, cheaper, seeds=2)
    value = parse_canonical(report.to_bytes())

    assert digest(report.to_bytes()) == report.digest == impact(one, cheaper, seeds=2).digest
    assert (value["old_policy"], value["new_policy"]) == (one.policy.digest, cheaper.digest)
    change = {row.figure: row.difference for row in report.changes}
    assert change["take_share"] < 0 < change["contributors_earned_share"]
    with pytest.raises(InvalidError):
        impact(one, one.policy, seeds=2)
