"""From what is earned to what is received: maturity, roots, thresholds, pushes, claims and lost owners.

The product's rule: amounts are cumulative; a root holds what had matured when it was closed, floored to
token units; it is pushed to a payee when what is due reaches the larger of 20 fees and the best threshold,
claimed at any time at the claimer's own cost, and otherwise waits under its owner's name.
`mode = "threshold"` is the rule of most peers instead: paid above a threshold or not at all, no claim.

Best threshold: with fee f, accrual r a day and a chance h a day that the owner becomes unreachable, a payment
at T collects (1 - f/T) exp(-hT/r), which is largest at T* = (f + sqrt(f^2 + 4 f r / h)) / 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from headwater.economy.behaviour import Behaviour, View
from headwater.economy.compiled import Float32s, Int16s, Int64s, UInt8s, Whole, compiled
from headwater.economy.draws import CLAIM, key_of, uniform
from headwater.economy.money_kernels import posted_of
from headwater.economy.scenario import Scenario

SETTLEMENT_LINE = "line:settlement"
NANO_DECIMALS = 9
RECEIVED, FEES_PAYEE, FEES_LINE, UNREACHABLE, EXPIRED, PAYMENTS = range(6)


@compiled
def best_threshold(fee: float, accrual_day: float, lost_day: float) -> float:
    """T*: the payment size that brings most of a stream to its owner; 2 fees at least if nobody is ever lost."""
    if lost_day <= 0.0 or accrual_day <= 0.0:
        return 2.0 * fee
    return 0.5 * (fee + math.sqrt(fee * fee + 4.0 * fee * accrual_day / lost_day))


def collected_share(threshold: float, fee: float, accrual_day: float, lost_day: float) -> float:
    """g(T): the part of a stream that reaches its owner if it is paid at `threshold` and lost when the owner is."""
    if threshold <= fee:
        return 0.0
    return (1.0 - fee / threshold) * math.exp(-lost_day * threshold / accrual_day)


@compiled
def settle_rows(
    first: int,
    day: int,
    key: np.uint64,
    cumulative_mode: bool,
    closes: bool,
    matures: bool,
    token_unit: int,
    fee: int,
    line_pays: bool,
    line_money: int,
    threshold: int,
    lost_epoch: float,
    lost_day: float,
    claim: float,
    enrol: float,
    expiry: int,
    accrued: Int64s,
    maturing: Int64s,
    posted: Int64s,
    settled: Int64s,
    pay: Float32s,
    phase: UInt8s,
    enrolled: UInt8s,
    lost_on: Int16s,
    attacker: UInt8s,
    tally: Int64s,
) -> None:
    """One epoch of every row, starting at row `first` so that no row is always served last.

    `line_money` is what the settlement line can spend on fees; when it is used up, pushes stop.
    """
    n = accrued.size
    for k in range(n):
        i = first + k
        if i >= n:
            i -= n
        if phase[i] == 0:
            continue
        if closes:
            held = maturing[i] if matures else accrued[i]
            posted[i] = posted_of(held, token_unit)
            maturing[i] = accrued[i]
        due = posted[i] - settled[i]
        if lost_on[i] == 0 and attacker[i] == 0 and uniform(key, 4 * i) < lost_epoch:
            lost_on[i] = day + 1
        if due <= 0:
            continue
        gone = lost_on[i] > 0
        if gone and expiry > 0 and day + 1 - lost_on[i] >= expiry:
            tally[EXPIRED] += due
            settled[i] += due
            continue
        if enrolled[i] == 0:
            # A dollar waiting is worth a form; a cent is not.
            if not gone and uniform(key, 4 * i + 1) < enrol * min(1.0, due * 1e-9):
                enrolled[i] = 1
            continue
        least: Whole = threshold
        if threshold == 0:
            least = max(20 * fee, np.int64(best_threshold(float(fee), float(pay[i]), lost_day)))
        if due >= least and due > fee and (not line_pays or line_money >= fee):
            settled[i] += due
            tally[PAYMENTS] += 1
            net = due
            if line_pays:
                line_money -= fee
                tally[FEES_LINE] += fee
            else:
                net -= fee
                tally[FEES_PAYEE] += fee
            tally[UNREACHABLE if gone else RECEIVED] += net
        elif cumulative_mode and not gone and due >= 5 * fee and due > 0 and uniform(key, 4 * i + 2) < claim:
            # A claim costs its claimer: nobody claims for less than five times what it costs.
            settled[i] += due
            tally[PAYMENTS] += 1
            tally[FEES_PAYEE] += fee
            tally[RECEIVED] += due - fee


def settle(view: View) -> None:
    """Close an epoch and let it be pushed and claimed."""
    s = view.scenario.settle
    lost_day = 1.0 - (1.0 - s.lost_year) ** (1.0 / 365.0)
    tally = np.zeros(6, np.int64)
    line_pays = s.fee_payer == "line"
    names = ("accrued", "maturing", "posted", "settled", "pay", "phase", "enrolled", "lost_on", "attacker")
    columns: Any = [*(view[f"contributor.{name}"] for name in names), tally]
    key = key_of(view.seed, view.day, CLAIM)
    weeks = s.epoch_days / 7.0
    settle_rows(
        int(key) % columns[0].size, view.day, key, s.mode == "cumulative", True, s.maturity_days > 0,
        10 ** (NANO_DECIMALS - s.token_decimals), s.fee_nano, line_pays,
        max(0, view.balance(SETTLEMENT_LINE)) if line_pays else 0, s.threshold_nano,
        1.0 - (1.0 - lost_day) ** s.epoch_days, lost_day, 1.0 - (1.0 - s.claim_week) ** weeks,
        s.enrol_week * weeks, s.expiry_days, *columns,
    )  # fmt: skip
    view.settled("received", tally[RECEIVED])
    view.settled("fees", tally[FEES_PAYEE])
    view.settled("unreachable", tally[UNREACHABLE])
    view.settled("expired", tally[EXPIRED])
    view.book(SETTLEMENT_LINE, -int(tally[FEES_LINE]))
    view.book("chain", int(tally[FEES_LINE]))


def _epoch(scenario: Scenario) -> int:
    return scenario.settle.epoch_days


SETTLEMENT = Behaviour(
    name="settlement",
    phase="settle",
    reads=tuple(f"contributor.{c}" for c in ("accrued", "pay", "phase", "attacker")),
    writes=(
        *(f"contributor.{c}" for c in ("maturing", "posted", "settled", "enrolled", "lost_on")),
        f"book:{SETTLEMENT_LINE}",
        "book:chain",
    ),
    act=settle,
    every=_epoch,
    trusted=True,
)
