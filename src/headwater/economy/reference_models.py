"""Two models that every engine can run: for the facts that must be reproduced, and for honest speed comparisons.

Boltzmann: everyone with money gives one unit to a random other. Entry and exit: contributors with Pareto quality
earn a share of a pool, average their profit, leave and rejoin; balances above a threshold are paid less a fee.
"""

from __future__ import annotations

import numpy as np

from headwater.economy.compiled import Float64s, Int64s, UInt8s, compiled, vectorised
from headwater.economy.draws import below, stream


@compiled
def boltzmann_synchronous(seed: int, steps: int, money: Int64s) -> None:
    """Everybody who had money at the start of a step gives one unit to somebody else, all at once."""
    n = money.size
    gifts = np.zeros(n, np.int64)
    for step in range(steps):
        key = stream(seed, step, 1)
        for i in range(n):
            if money[i] > 0:
                gifts[i] -= 1
                to = below(key, i, n - 1)
                gifts[to if to < i else to + 1] += 1
        for i in range(n):
            money[i] += gifts[i]
            gifts[i] = 0


@compiled
def boltzmann_one_at_a_time(seed: int, steps: int, money: Int64s) -> None:
    """`n` times a step a random agent with money gives one unit to a random other, one after the other."""
    n = money.size
    for step in range(steps):
        key = stream(seed, step, 2)
        for k in range(n):
            i = below(key, 2 * k, n)
            if money[i] > 0:
                to = below(key, 2 * k + 1, n - 1)
                money[i] -= 1
                money[to if to < i else to + 1] += 1


@vectorised
def entry_exit(
    steps: int,
    pool: float,
    quality: Float64s,
    cost: Float64s,
    profit: Float64s,
    balance: Float64s,
    active: UInt8s,
    threshold: float,
    fee: float,
) -> float:
    """`steps` days of the entry/exit model in float64, one fused pass a day; returns what was paid out.

    A contributor earns pool * quality / (sum of active quality), remembers 10 % of a day's profit, leaves when the
    average falls below -0.1 and rejoins when what it would earn exceeds its cost.
    """
    n = quality.size
    weight = 0.0
    for i in range(n):
        weight += quality[i] * active[i]
    paid = 0.0
    for _ in range(steps):
        rate = pool / max(weight, 1e-300)
        weight = 0.0
        # Without branches, so that several people are computed at once.
        for i in range(n):
            on = np.float64(active[i])
            could = rate * quality[i]
            gain = could * on
            mean = 0.9 * profit[i] + 0.1 * (gain - cost[i] * on)
            due = balance[i] + gain
            pays = 1.0 if due >= threshold else 0.0
            paid += pays * (due - fee)
            balance[i] = due * (1.0 - pays)
            patient = 1.0 if mean >= -0.1 else 0.0
            tempted = 1.0 if could > cost[i] else 0.0
            stays = on * patient + (1.0 - on) * tempted
            # Whoever comes back starts with a clean slate.
            profit[i] = mean * (1.0 - (1.0 - on) * stays)
            active[i] = np.uint8(stays)
            weight += stays * quality[i]
    return paid
