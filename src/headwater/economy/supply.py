"""How contributors respond: they average their pay, notice it or not, work more or less, stop, return, enter.

Pay below `salience_month_nano` is not noticed: the intrinsic worth of contributing drives effort alone. Above
it effort follows pay with a constant elasticity, and intrinsic effort may grow or be crowded out.
Effort is answered once a week, by a seventh of the rows each day; stopping and returning are daily chances.

In ``pool`` mode the same kernel also pays the day: everybody's expected share of the pool, in integers,
what does not divide stays in the pool for tomorrow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headwater.economy.behaviour import Behaviour, View
from headwater.economy.compiled import Float32s, Int16s, Int64s, UInt8s, compiled
from headwater.economy.draws import SUPPLY, bits, key_of, uniform
from headwater.economy.scenario import Scenario
from headwater.economy.state import ACTIVE, State

SHARE_SHIFT = 10
"""Weights of pool mode are integers of 2^-10; pool, rate and weight are multiplied and shifted back."""

POOL_DAY_MAX = 2**52
"""Largest pool of one day in pool mode; the largest weight is at most the whole, so the product fits 63 bits."""

_SCALE = float(2**SHARE_SHIFT)

EFFORT_MAX = 8.0
RESPONSE_DAYS = 7
PAID, WEIGHT, ACTIVE_ROWS, PAY_SUM, ENTERED, LEFT, RETURNED = range(7)


@compiled
def supply_rows(
    key: np.uint64,
    day: int,
    rate: int,
    memory: float,
    salience_day: float,
    elasticity: float,
    crowding: float,
    cost_day: float,
    intrinsic_day: float,
    exit_day: float,
    return_day: float,
    entry_day: float,
    churn_day: float,
    peers_day: float,
    accrued: Int64s,
    seen: Int64s,
    pull: Float32s,
    pay: Float32s,
    swing: Float32s,
    effort: Float32s,
    cost: Float32s,
    born: Int16s,
    phase: UInt8s,
    attacker: UInt8s,
    tally: Int64s,
) -> None:
    """One day of every row.

    Args:
        rate: pool mode: nano units per 2^10 of weight; 0 when pay comes from calls.
        memory: 1 / days over which pay is averaged.
        peers_day: what an active contributor earned a day, on average, yesterday; newcomers look at it.
        pull: (n,) how much each is drawn on, for pool mode.
        tally: (7,) units paid, next day's weight in 2^-10, active rows, sum of pay, entered, left, returned.
    """
    n = accrued.size
    answer_from = (day % RESPONSE_DAYS) * n // RESPONSE_DAYS
    answer_to = (day % RESPONSE_DAYS + 1) * n // RESPONSE_DAYS
    entry = entry_day * min(3.0, (peers_day + intrinsic_day) / max(cost_day, 1.0))
    paid, weight_sum, active, pay_sum = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    entered, left, returned = np.int64(0), np.int64(0), np.int64(0)
    exit_bits = np.uint64(min(exit_day, 0.999999) * 2.0**64)
    churn_bits = np.uint64(min(churn_day, 0.999999) * 2.0**64)
    return_bits = np.uint64(min(return_day, 0.999999) * 2.0**64)
    for i in range(n):
        state = phase[i]
        if state == 0:
            if uniform(key, i) < entry:
                phase[i] = 1
                effort[i] = 1.0
                born[i] = day
                entered += 1
            continue
        if rate > 0:
            share = (rate * np.int64(pull[i] * effort[i] * _SCALE)) >> SHARE_SHIFT
            accrued[i] += share
            paid += share
        gain = accrued[i] - seen[i]
        seen[i] = accrued[i]
        mean = np.float64(pay[i])
        step = np.float64(gain) - mean
        mean += memory * step
        pay[i] = mean
        swing[i] += memory * (abs(step) - swing[i])
        if attacker[i] == 1:
            continue
        luck = bits(key, i)
        worker_cost = cost_day * cost[i]
        if state == 1:
            active += 1
            pay_sum += np.int64(mean)
            if luck < churn_bits or (mean + intrinsic_day < worker_cost * effort[i] and luck < exit_bits):
                phase[i] = 2
                left += 1
        else:
            # What is no longer tended is drawn on less and less.
            effort[i] *= 0.99
            if mean + intrinsic_day > worker_cost and luck < return_bits:
                phase[i] = 1
                effort[i] = max(effort[i], np.float32(0.5))
                returned += 1
        if answer_from <= i < answer_to and phase[i] == 1:
            target = 1.0
            if mean >= salience_day and salience_day > 0.0:
                target = (1.0 + crowding) * (mean / salience_day) ** elasticity
            effort[i] += 0.3 * (min(max(target, 0.05), EFFORT_MAX) - effort[i])
        weight_sum += np.int64(pull[i] * effort[i] * _SCALE)
    tally[0], tally[1], tally[2], tally[3] = paid, weight_sum, active, pay_sum
    tally[4], tally[5], tally[6] = entered, left, returned


_READS = ("cost", "attacker")
_WRITES = ("accrued", "seen", "pay", "swing", "effort", "born", "phase")
_ORDER = ("pay", "swing", "effort", "cost", "born", "phase", "attacker")


def live(view: View) -> None:
    """One day of beliefs, effort, exit, return and entry; in pool mode also the day's pay."""
    s = view.scenario.supply
    memory_tally = view["supply.tally"]
    rate = 0
    pot = 0
    if view.scenario.run.mode == "pool":
        pot = view.balance("pot")
        weight = int(memory_tally[WEIGHT])
        rate = (pot << SHARE_SHIFT) // weight if weight > 0 else 0
    active = max(1, int(memory_tally[ACTIVE_ROWS]))
    tally = np.zeros(7, np.int64)
    columns: Any = [*(view[f"contributor.{c}"] for c in _ORDER), tally]
    supply_rows(
        key_of(view.seed, view.day, SUPPLY), view.day, rate, 1.0 / s.memory_days, s.salience_month_nano / 30.0,
        s.elasticity, s.crowding, float(s.cost_day_nano), float(s.intrinsic_day_nano), s.exit_day, s.return_day,
        s.entry_day, s.churn_day, int(memory_tally[PAY_SUM]) / active,
        view["contributor.accrued"], view["contributor.seen"], view["asset.pull"],
        *columns,
    )  # fmt: skip
    if view.scenario.run.mode == "pool":
        view.book("pot", -int(tally[PAID]))
    memory_tally[:] = tally


def _prepare(state: State, scenario: Scenario) -> None:
    state.add("supply", 7, tally=np.int64)
    phase = state["contributor.phase"]
    state["supply.tally"][ACTIVE_ROWS] = np.count_nonzero(phase == ACTIVE)
    if scenario.run.mode == "pool":
        weights = state["asset.pull"] * state["contributor.effort"] * np.float32(_SCALE)
        state["supply.tally"][WEIGHT] = int(weights.astype(np.int64).sum())


SUPPLY_BEHAVIOUR = Behaviour(
    name="supply",
    phase="beliefs",
    reads=(*(f"contributor.{c}" for c in _READS), "asset.pull"),
    writes=(*(f"contributor.{c}" for c in _WRITES), "supply.tally", "book:pot"),
    act=live,
    prepare=_prepare,
    trusted=True,
)
