"""What people wish to ask today, which wishes they give up, and what they can afford: three plug-ins.

A wish is a call that a user would like to make: which app, and what the answer is worth to them. `DEMAND` lists the
wishes of a day, `ATTENTION` strikes out what is declined or left undecided, `BUDGET` what is not affordable; the
engine makes calls of the rest. Each can be replaced by a plug-in of another name that writes the same columns.

Wishes stand in the order of their users. `wish.call` is user * 4096 + number of the wish, and numbers the draws of a
call, so that striking out a wish changes nothing for any other.
"""

from __future__ import annotations

import math

import numpy as np

from headwater.core.errors import InvariantError
from headwater.economy.behaviour import Behaviour, View
from headwater.economy.compiled import Float32s, Float64s, Int16s, Int32s, Int64s, UInt8s, Whole, compiled
from headwater.economy.draws import CALL, CALL_COUNT, Table, bits, exponential, key_of, pick, poisson, uniform
from headwater.economy.scenario import Scenario
from headwater.economy.state import ACTIVE, Column
from headwater.economy.tally import (
    DECIDING,
    DECLINED,
    FATE_DECLINED,
    FATE_OVER_BUDGET,
    FATE_UNDECIDED,
    MADE,
    OVER_BUDGET,
    PROMPTS,
    SURPLUS,
    UNDECIDED,
)

CALLS_A_DAY_MAX = 4_096
"""Wishes of one user and day; more are not listed."""

CALL_SHIFT = 12  # 2^12 wishes
DRAWS_A_CALL = 128
"""Counters that one call may use: 0 to 3 for the wish and the decision, the rest for the answer."""

BUDGET_DAYS = 30
EXPONENTIAL, LINEAR, ALWAYS = range(3)
_SHAPES = {"exponential": EXPONENTIAL, "linear": LINEAR, "always": ALWAYS}


def volume_of(scenario: Scenario, day: int, phase: Column, effort: Column) -> float:
    """What every rate is multiplied by on a day: growth, and the pull of the quality on offer."""
    demand = scenario.demand
    volume = (1.0 + demand.growth_day) ** day
    if demand.quality_pull > 0:
        total = float(effort[phase == ACTIVE].sum(dtype=np.float64))
        start = (1.0 - scenario.agents.newcomers) * scenario.agents.contributors
        volume *= (max(total, 1.0) / start) ** demand.quality_pull
    return float(volume)


@compiled
def count_wishes(key: np.uint64, rate: Float32s, volume: float, counts: Int16s) -> int:
    """Poisson numbers of wishes by user; returns their sum."""
    total = 0
    for user in range(rate.size):
        mean = rate[user] * volume
        counts[user] = min(poisson(uniform(key, user), mean), CALLS_A_DAY_MAX) if mean > 0.0 else 0
        total += counts[user]
    return total


@compiled
def list_wishes(
    key: np.uint64,
    counts: Int16s,
    loyalty: float,
    shape: int,
    value: float,
    forced_from: int,
    home: Int32s,
    table: Table,
    call: Int64s,
    app: Int32s,
    worth: Float64s,
    fate: UInt8s,
) -> None:
    """Fill the columns of wishes. Users from `forced_from` on call their own app, whatever it is worth to them."""
    at = 0
    for user in range(counts.size):
        for index in range(counts[user]):
            number: Whole = np.int64(user) * CALLS_A_DAY_MAX + index
            base: Whole = number * DRAWS_A_CALL
            chosen: Whole = np.int64(home[user])
            if user < forced_from and uniform(key, base) > loyalty:
                chosen = pick(bits(key, base + 1), table)
            w = value
            if shape == EXPONENTIAL:
                w = exponential(bits(key, base + 2)) * value
            elif shape == LINEAR:
                w = uniform(key, base + 2) * 2.0 * value
            call[at], app[at], worth[at], fate[at] = number, chosen, w, MADE
            at += 1


def wish(view: View) -> None:
    """List the wishes of the day."""
    s = view.scenario
    rate, home, table = view["user.rate"], view["user.app"], view["app.table"]
    counts = np.empty(rate.size, np.int16)
    volume = volume_of(s, view.day, view["contributor.phase"], view["contributor.effort"])
    view.resize("wish", count_wishes(key_of(view.seed, view.day, CALL_COUNT), rate, volume, counts))
    list_wishes(
        key_of(view.seed, view.day, CALL), counts, s.demand.loyalty, _SHAPES[s.demand.shape],
        float(s.demand.value_nano), s.agents.users - s.attack.payers, home, table,
        view["wish.call"], view["wish.app"], view["wish.worth"], view["wish.fate"],
    )  # fmt: skip


@compiled
def weigh_wishes(
    key: np.uint64,
    prompts_per_day: float,
    calls_per_prompt: int,
    deciding: float,
    forced_from: int,
    price: Int64s,
    call: Int64s,
    app: Int32s,
    worth: Float64s,
    fate: UInt8s,
    tally: Int64s,
) -> None:
    """Strike out what is worth less than its price, and under questions (`prompts_per_day` > 0) what nobody decides.

    Args:
        deciding: nano units that one decision costs.
    """
    asked, last = 0, np.int64(-1)
    for i in range(call.size):
        user = call[i] >> CALL_SHIFT
        if user >= forced_from:
            break
        if user != last:
            asked, last = 0, user
        if fate[i] != MADE:
            continue
        number = call[i] & (CALLS_A_DAY_MAX - 1)
        if prompts_per_day > 0.0 and number % calls_per_prompt == 0:
            # Whoever has been asked too often stops deciding, and what is not decided does not happen.
            asked += 1
            tally[PROMPTS] += 1
            tired = 1.0 / (1.0 + math.exp(prompts_per_day - asked))
            if uniform(key, call[i] * DRAWS_A_CALL + 3) < tired:
                tally[UNDECIDED] += 1
                fate[i] = FATE_UNDECIDED
                continue
            tally[DECIDING] += np.int64(deciding)
            tally[SURPLUS] -= np.int64(deciding)
        if worth[i] < price[app[i]]:
            tally[DECLINED] += 1
            fate[i] = FATE_DECLINED


def decide(view: View) -> None:
    """People look at what they wished for, if anything makes them look."""
    s, attention = view.scenario, view.scenario.attention
    weigh_wishes(
        key_of(view.seed, view.day, CALL), attention.prompts_per_day if attention.mode == "prompt" else 0.0,
        attention.calls_per_prompt, attention.decision_seconds * attention.wage / 3600.0 * 1e9,
        s.agents.users - s.attack.payers, view["app.price"], view["wish.call"], view["wish.app"],
        view["wish.worth"], view["wish.fate"], view["today.tally"],
    )  # fmt: skip


@compiled
def spend(
    budget: int,
    forced_from: int,
    price: Int64s,
    call: Int64s,
    app: Int32s,
    fate: UInt8s,
    spent: Int64s,
    tally: Int64s,
) -> None:
    """Add the price of every wish that is left to what its user has spent, or strike it out."""
    for i in range(call.size):
        if fate[i] != MADE:
            continue
        user, cost = call[i] >> CALL_SHIFT, price[app[i]]
        if user < forced_from and spent[user] + cost > budget:
            tally[OVER_BUDGET] += 1
            fate[i] = FATE_OVER_BUDGET
        else:
            spent[user] += cost


def afford(view: View) -> None:
    """A mandate refuses by itself what would pass the budget of a month."""
    s = view.scenario
    spent = view["user.spent"]
    if view.day % BUDGET_DAYS == 0:
        spent[:] = 0
    spend(
        s.demand.budget_month_nano, s.agents.users - s.attack.payers, view["app.price"], view["wish.call"],
        view["wish.app"], view["wish.fate"], spent, view["today.tally"],
    )  # fmt: skip


def refuse_wild_wishes(call: Column, app: Column, users: int, apps: int) -> None:
    """Refuse wishes of users or for apps that do not exist, or out of order: kernels do not look before they read.

    Raises:
        InvariantError: with code ``wish_invalid``.
    """
    if call.size and (
        app.min() < 0
        or app.max() >= apps
        or call[0] < 0
        or call[-1] >= users << CALL_SHIFT
        or (call[1:] < call[:-1]).any()
    ):
        raise InvariantError(
            f"a wish is of a user beyond {users}, for an app beyond {apps}, or out of the order of users",
            code="wish_invalid",
            fix="have the plug-in list wishes by user, as headwater.economy.demand does",
        )


def _calls(scenario: Scenario) -> bool:
    return scenario.run.mode == "calls"


WISH_COLUMNS = ("wish.call", "wish.app", "wish.worth", "wish.fate")

DEMAND = Behaviour(
    name="demand",
    phase="demand",
    reads=("user.rate", "user.app", "app.table", "contributor.phase", "contributor.effort"),
    writes=WISH_COLUMNS,
    act=wish,
    wanted=_calls,
    trusted=True,
)
# Under a mandate nobody weighs a single call; with a question, or free choice, poor calls are declined.
ATTENTION = Behaviour(
    name="attention",
    phase="attention",
    reads=("wish.call", "wish.app", "wish.worth", "app.price"),
    writes=("wish.fate", "today.tally"),
    act=decide,
    wanted=lambda s: _calls(s) and (s.attention.mode == "prompt" or s.demand.shape == "linear"),
    trusted=True,
)
BUDGET = Behaviour(
    name="budget",
    phase="budget",
    reads=("wish.call", "wish.app", "app.price"),
    writes=("wish.fate", "user.spent", "today.tally"),
    act=afford,
    wanted=_calls,
    trusted=True,
)
