"""Whole runs: nothing is lost, the same seed is the same run on any number of threads, and rules do what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headwater.core.errors import InvalidError, InvariantError
from headwater.economy.behaviour import Behaviour
from headwater.economy.demand import WISH_COLUMNS
from headwater.economy.figures import figures
from headwater.economy.scenario import default_scenario, policy_of
from headwater.economy.simulation import BUILT_IN, Simulation, opening_of, simulate
from headwater.economy.tally import CALLS, FATE_DECLINED, OVER_BUDGET, PAID

SMALL = {"contributors": 600, "users": 800, "apps": 20, "run.days": 40}


def _small(**more):
    return default_scenario().with_values({**SMALL, **more})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"split.rule": "banzhaf", "overlap": 0.3},
        {"split.rule": "shapley", "kind": "duplicate", "accounts": 50},
        {"split.rule": "pooled", "pool_days": 10},
        {"split.rule": "sqrt", "price.rule": "subscription", "pool_days": 10},
        {"split.rule": "user-centric", "price.rule": "subscription"},
        {"grade": "C", "noise": 0.5, "misattributed": 0.2, "index_lag_days": 14, "assets_each": 3},
        {"maturity_days": 0, "settle.mode": "threshold", "fee_payer": "payee", "fee_nano": 10_000_000},
        {"stake": True, "revenue_share": True, "amm": True, "stream": True},
        {"kind": "wash", "accounts": 20, "payers": 20, "subsidy.share": 0.3, "subsidy.days": 20},
        {"compete": True, "coordinators": 4, "review_days": 5, "markup_layers": 2, "shape": "linear"},
        {"mode": "pool"},
        {"attention.mode": "prompt", "expiry_days": 14, "lost_year": 0.9},
    ],
)
def test_every_unit_that_enters_is_held_by_somebody_every_day(more):
    """Whatever is switched on, each day's check passes, for every behaviour with the guard on, and money moves."""
    run = simulate(_small(**more, guard="all"))

    held = dict(run.state.held())
    entered = sum(v for k, v in run.state.books.items() if k.startswith("in:"))
    assert entered == sum(held.values()) > 0
    assert held["contributors"] > 0
    assert int(run.state["contributor.settled"].sum()) == sum(run.state.payouts.values())
    assert (run.state["contributor.settled"] <= run.state["contributor.accrued"]).all()


def test_a_run_is_the_same_on_one_and_on_several_threads():
    """Every column and book is equal bit for bit, whatever the number of threads."""
    runs = [simulate(_small(threads=threads, noise=0.3)) for threads in (1, 2, 3)]

    for other in runs[1:]:
        assert other.state.books == runs[0].state.books
        assert other.series == runs[0].series
        for name, column in runs[0].state.columns.items():
            assert np.array_equal(column, other.state.columns[name], equal_nan=column.dtype.kind == "f"), name


@pytest.mark.parametrize(
    ("passing", "lasting"),
    [
        ({"noise": 0.5}, {"noise": 0.5, "noise_correlation": 1.0}),
        ({"misattributed": 0.1}, {"misattributed": 0.1, "misattributed_always": True}),
    ],
)
def test_errors_that_are_always_the_same_do_not_average_out(passing, lasting):
    """The same size of error misallocates far more when it is the same at every call of a contribution."""
    independent, correlated = (figures(simulate(_small(**more)))["misallocated_share"] for more in (passing, lasting))

    assert correlated > 1.5 * independent > 0


def test_another_seed_is_another_run():
    """Seeds matter: the same scenario with another seed pays other amounts."""
    assert simulate(_small(), 1).series != simulate(_small(), 2).series


def test_the_policy_takes_exactly_its_lines_of_every_call():
    """Lines are the product's allocation of each price, times the number of calls."""
    scenario = _small(policy=policy_of({"app": 0.35, "platform": 0.02, "infra": 0.2}))
    run = simulate(scenario)

    calls = int(run.tally[0])
    assert dict(run.lines) == {"app": calls * 1_750_000, "platform": calls * 100_000, "infra": calls * 1_000_000}
    assert int(run.state["app.income"].sum()) == calls * 1_750_000


@pytest.mark.parametrize("mode", ["calls", "pool"])
def test_measuring_comes_off_the_price_before_the_policy_divides_it(mode):
    """The line attribution takes its cost from each call, and the other lines their part of the rest."""
    scenario = _small(**{"run.mode": mode, "attribution_nano": 100_000})
    run = simulate(scenario)

    calls = int(run.tally[CALLS])
    lines = dict(run.lines)
    assert lines["attribution"] == calls * 100_000
    assert lines["compute"] == calls * 980_000
    held = dict(run.state.held())
    assert sum(v for k, v in run.state.books.items() if k.startswith("in:")) == sum(held.values())


def test_opening_balances_are_carried_in_and_stay_due():
    """A run may start from a ledger: balances enter as money, in the order of their size."""
    opening = opening_of({"contributor:ctr_a": 5_000_000_000, "escrow:ctr_b": 70, "cash": 9, "commons": 4})
    simulation = Simulation(_small(), 1, opening=opening)
    simulation.step()

    assert [row[0] for row in opening.rows] == ["contributor:ctr_a", "escrow:ctr_b"]
    assert simulation.state.books["in:opening"] == 5_000_000_070


def _steal(view):
    view["contributor.accrued"][0] += 1


def _peek(view):
    view["user.spent"]


def _smuggle(view):
    view["asset.pull"].base[0] += 1.0


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (Behaviour("mint", "beliefs", (), ("contributor.accrued",), _steal, order=9), "economy_not_exact"),
        (Behaviour("reader", "beliefs", ("contributor.accrued",), (), _steal), "behaviour_undeclared"),
        (Behaviour("thief", "beliefs", (), (), _steal), "behaviour_undeclared"),
        (Behaviour("peeker", "price", (), ("app.price",), _peek), "behaviour_undeclared"),
        (Behaviour("smuggler", "price", ("asset.pull",), (), _smuggle), "behaviour_undeclared"),
        (Behaviour("book thief", "price", (), (), lambda view: view.book("commons", 1)), "behaviour_undeclared"),
    ],
)
def test_a_behaviour_that_does_what_it_did_not_declare_stops_the_run(behaviour, code):
    """Undeclared reads and writes, also through the back of a view, and made-up money are caught with a name."""
    with pytest.raises(InvariantError) as caught:
        simulate(_small(), behaviours=(*BUILT_IN, behaviour))

    assert caught.value.code == code


def _wish_for_more(view):
    view["user.rate"][:] = 9.0


def _listed_without_declaring(view):
    view.resize("wish", 3)


def _spend_for_them(view):
    view["user.spent"][0] += 1


def _forgive(view):
    view["wish.fate"].base[:] = 1


def _spend_and_strike(view):
    view["wish.fate"][:] = 1


def _hide(view):
    view["today.tally"]


_ONE = ("wish.fate",)


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour("demand", "demand", ("user.rate",), WISH_COLUMNS, _wish_for_more),
        Behaviour("demand", "demand", (), ("wish.call",), _listed_without_declaring),
        Behaviour("attention", "attention", ("user.spent",), _ONE, _spend_for_them),
        Behaviour("attention", "attention", (), _ONE, _hide),
        Behaviour("budget", "budget", ("wish.fate",), ("user.spent",), _forgive),
        Behaviour("budget", "budget", ("wish.fate",), ("user.spent",), _spend_and_strike),
    ],
)
def test_demand_attention_and_budget_are_held_to_what_they_declare(behaviour):
    """A replacement of any of the three that touches another's column is caught and named."""
    others = [b for b in BUILT_IN if b.name != behaviour.name or behaviour.name == "demand"]
    if behaviour.name == "demand":
        behaviour = replace(behaviour, name="second demand", order=1)
    with pytest.raises(InvariantError, match=behaviour.name) as caught:
        simulate(_small(), behaviours=(*others, behaviour))

    assert caught.value.code == "behaviour_undeclared"


def test_attention_can_be_replaced_by_a_plug_in_of_ones_own():
    """Whoever refuses every second wish halves the calls; the wishes that are left keep their luck and their price."""

    def every_second(view):
        view["wish.fate"][view["wish.call"] % 2 == 1] = FATE_DECLINED

    picky = Behaviour("picky", "attention", ("wish.call",), _ONE, every_second)
    usual, halved = simulate(_small()), simulate(_small(), behaviours=(*BUILT_IN, picky))

    assert 0.4 < halved.tally[CALLS] / usual.tally[CALLS] < 0.75
    assert halved.tally[PAID] == halved.tally[CALLS] * 5_000_000
    assert (halved.state["user.spent"] <= usual.state["user.spent"]).all()


@pytest.mark.parametrize(("column", "value"), [("wish.app", 10**6), ("wish.app", -1), ("wish.call", -5)])
def test_wishes_that_nobody_can_have_are_refused(column, value):
    """A plug-in's wish for an app or from a user that does not exist stops the run before a kernel reads beyond."""

    def wild(view):
        view[column][3] = value

    with pytest.raises(InvariantError, match="wish") as caught:
        simulate(_small(), behaviours=(*BUILT_IN, Behaviour("wild", "demand", (), (column,), wild, order=1)))

    assert caught.value.code == "wish_invalid"


def test_a_budget_stops_spending_and_says_how_often():
    """Nobody spends more than the budget of a month, and what it stopped is counted."""
    run = simulate(_small(budget_month_nano=20_000_000, **{"run.days": 29}))

    assert run.state["user.spent"].max() == 20_000_000
    assert run.tally[OVER_BUDGET] > 0
    assert run.state["user.spent"].sum() == run.tally[PAID]


def test_two_behaviours_may_not_write_one_column_in_one_phase():
    """A conflict is refused before the first day, unless the two have an order."""
    twice = [Behaviour(name, "price", (), ("app.niche",), lambda _: None) for name in "ab"]
    with pytest.raises(InvalidError, match="both write"):
        Simulation(_small(), 1, behaviours=(*BUILT_IN, *twice))


@pytest.mark.parametrize(
    ("phase", "column", "near"),
    [("demnd", "app.niche", "demand"), ("price", "app.nich", "app.niche"), ("price", "wish.fates", "wish.fate")],
)
def test_a_misspelt_phase_or_column_is_refused_with_the_nearest_name(phase, column, near):
    """A plug-in that would never act, or never find its column, is refused before the first day."""
    with pytest.raises(InvalidError) as refused:
        Simulation(_small(), 1, behaviours=(*BUILT_IN, Behaviour("b", phase, (column,), (), lambda _: None)))

    assert f"did you mean {near!r}" in str(refused.value.fix)


def test_a_slow_behaviour_is_refused_for_many_people():
    """A behaviour made for few people says so before the run."""
    slow = Behaviour("slow", "price", (), (), lambda _: None, people_max=100)
    with pytest.raises(InvalidError, match="made for 100"):
        Simulation(_small(), 1, behaviours=(*BUILT_IN, slow))


def test_behaviours_of_a_phase_see_the_state_before_it_unless_sequential():
    """Synchronous by default: a reader sees what was there before the phase; sequential: what was just written."""
    seen = []
    writer = Behaviour("writer", "price", (), ("app.niche",), lambda view: view["app.niche"].__iadd__(1.0), order=0)
    reader = Behaviour(
        "reader", "price", ("app.niche",), (), lambda view: seen.append(float(view["app.niche"][0])), order=1
    )
    for sequential in (False, True):
        Simulation(_small(sequential=sequential), 1, behaviours=(*BUILT_IN, writer, reader)).step()

    assert seen[1] == pytest.approx(seen[0] + 1.0)


def test_a_contributor_row_takes_less_than_a_hundred_bytes():
    """Columns of a contributor with one asset, and of a user, stay within 100 bytes."""
    state = Simulation(_small(), 1).state

    assert state.table_bytes("contributor") / 600 <= 100
    assert (state.table_bytes("contributor") + state.table_bytes("asset") + state.table_bytes("user")) / 1400 <= 100
