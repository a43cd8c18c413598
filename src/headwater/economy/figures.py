"""What a finished run says: named figures, shares by layer, and where contributors' money is.

Shares are of what callers paid unless the name says otherwise. "Received" is money in a contributor's own
hands, after the cost of getting it there; "earned" is what is written under a name.
"""

from __future__ import annotations

import numpy as np

from headwater.economy.metrics import gini, hhi, nakamoto, theil, top_share
from headwater.economy.simulation import Finished
from headwater.economy.state import ACTIVE
from headwater.economy.tally import (
    ATTACKER,
    CALLS,
    DECIDING,
    DECLINED,
    GENERIC,
    OVER_BUDGET,
    PAID,
    PROMPTS,
    RESIDUAL,
    SURPLUS,
    UNDECIDED,
)

NANO = 1e9
MONTH_DAYS = 30.0

ABOUT: dict[str, str] = {
    "calls": "paid calls",
    "paid": "currency that callers paid",
    "contributors_earned_share": "earned by contributors / paid",
    "contributors_received_share": "received by contributors / paid",
    "waiting_share": "due to contributors and still waiting / paid",
    "unreachable_share": "due or paid to owners who cannot be reached / paid",
    "fees_share": "payment fees, whoever bore them / paid",
    "residual_share": "what no registered contribution supplied / paid",
    "take_share": "all lines of the policy / paid",
    "ever_paid_share": "contributors who ever received anything / contributors who ever existed",
    "median_month": "median of what active contributors earn in 30 days, currency",
    "mean_month": "mean of what active contributors earn in 30 days, currency",
    "above_dollar_share": "active contributors who earn a unit of currency in 30 days or more",
    "gini_earned": "Gini of earnings among all who ever contributed",
    "top1_share": "share of earnings of the top 1 %",
    "active_share": "active contributors / all who ever contributed",
    "effort": "mean effort of active contributors, 1 at the start",
    "quality": "mean quality of what is drawn on, weighted by effort",
    "entered": "newcomers",
    "survival": "newcomers still active / newcomers",
    "misallocated_share": "earnings that exact measurement would have given to somebody else",
    "disputes_share": "contributors who got over 20 % and over one unit of currency too much or too little / active",
    "surplus_per_call": "worth of calls to users less price and attention, per paid call, currency",
    "surplus_per_wish": "the same per call that a user wanted to make, currency",
    "made_share": "calls made / calls that users wanted to make",
    "undecided_share": "calls given up because nobody decided / calls wanted",
    "coordinator_hhi": "Herfindahl index of coordinators' income",
    "coordinator_nakamoto": "coordinators that hold more than half",
    "coordinator_take": "mean take of coordinators, weighted by their calls, part of the price",
    "theil_between": "part of Theil's index of all income that lies between layers",
    "pay_variation": "mean absolute daily change of pay / pay, over earners",
    "speculators_share": "net gain of stakers, buyers and traders / paid",
    "delay_days": "days of earnings that wait, over active earners, weighted by money",
    "newcomers_share": "earnings of those who entered during the run / earnings of all honest contributors",
    "operators_share": "what operators took beside the policy's lines / paid",
    "held_back_share": "stakes and pay that has not vested, both contributors' own / paid",
    "slashed_share": "stakes that were slashed and went to reviewers / paid",
    "lenders_share": "net gain of those who lent to the advance pool / paid",
    "attack_return": "what the attacker got per unit spent; 0 without an attack",
    "attack_income": "what the attacker earned, currency",
    "honest_earned": "what everybody else earned, currency",
    "events_lost_units": "units of money that were lost or made; 0, or the run would have stopped",
}


def figures(run: Finished) -> dict[str, float]:
    """All figures of a run, by name; `ABOUT` says what each is."""
    s, state, tally = run.scenario, run.state, run.tally
    c = {name.partition(".")[2]: column for name, column in state.columns.items() if name.startswith("contributor.")}
    paid = max(1, int(tally[PAID]))
    days = s.run.days
    existed = c["phase"] > 0
    active = c["phase"] == ACTIVE
    honest = c["attacker"] == 0
    accrued, settled = c["accrued"], c["settled"]
    due = accrued - settled
    lost = c["lost_on"] > 0
    month = c["pay"][active & honest].astype(np.float64) * MONTH_DAYS / NANO
    received = state.payouts["received"]
    wanted = int(tally[CALLS] + tally[DECLINED] + tally[UNDECIDED] + tally[OVER_BUDGET])
    coordinators = state["coordinator.income"]
    calls_of = np.bincount(state["app.coordinator"], weights=state["app.calls"], minlength=coordinators.size)
    # What was drawn from the advance pool is in its contributor's hands, and what repays it never was.
    drawn = state.columns.get("rails.drawn", np.zeros(accrued.size, np.int64))
    mine = accrued + drawn
    earned = mine[existed & honest]
    newcomers = existed & (c["born"] > 0) & honest
    effort = c["effort"].astype(np.float64)
    owner_quality = np.zeros(effort.size)
    if s.run.mode == "calls":
        np.add.at(owner_quality, state["asset.owner"], state["asset.quality"] / s.agents.assets_each)
    weight = effort * active
    entered = sum(v for k, v in state.books.items() if k.startswith("in:"))
    stakers = state.books.get("stakers", 0)
    buyers = state.books.get("buyers", 0) - state.books.get("in:investors", 0)
    traders = state.books.get("traders", 0) - state.books.get("in:traders", 0)
    if "rails.pool" in state.columns:
        # What traders still hold is worth what the pool would give for a small part of it.
        money, token, held, _runs = (int(x) for x in state["rails.pool"])
        traders += held * money // max(1, token)
    earning = c["pay"] > 1.0
    attack_income, attack_return = _attack(run)
    misallocated, disputes = _misallocated(run)
    lines = sum(amount for _, amount in run.lines)
    lent = int(state["rails.pool_state"][0]) if "rails.pool_state" in state.columns else 0
    newcomer_earned = int(mine[newcomers].sum())
    held_back = state.books.get("bonds", 0) + state.books.get("vesting", 0)
    groups = [accrued[existed & (accrued > 0)], state["app.income"], coordinators]
    return {
        "calls": float(tally[CALLS]),
        "paid": paid / NANO,
        "contributors_earned_share": int(mine[honest].sum()) / paid,
        "contributors_received_share": (received + state.books.get("advanced", 0)) / paid,
        "waiting_share": int(due[~lost].sum()) / paid,
        "unreachable_share": (int(due[lost].sum()) + state.payouts["unreachable"] + state.payouts["expired"]) / paid,
        "fees_share": (state.payouts["fees"] + state.books.get("chain", 0)) / paid,
        "residual_share": int(tally[RESIDUAL]) / paid,
        "take_share": lines / paid,
        "ever_paid_share": float(np.count_nonzero((settled > 0) & honest)) / max(1, int((existed & honest).sum())),
        "median_month": float(np.median(month)) if month.size else 0.0,
        "mean_month": float(month.mean()) if month.size else 0.0,
        "above_dollar_share": float((month >= 1.0).mean()) if month.size else 0.0,
        "gini_earned": gini(earned),
        "top1_share": top_share(earned, 0.01),
        "active_share": float(active.sum()) / max(1, int(existed.sum())),
        "effort": float(effort[active & honest].mean()) if (active & honest).any() else 0.0,
        "quality": float((weight * owner_quality).sum() / weight.sum()) if weight.sum() > 0 else 0.0,
        "entered": float(newcomers.sum()),
        "survival": float((newcomers & active).sum()) / max(1, int(newcomers.sum())),
        "misallocated_share": misallocated,
        "disputes_share": disputes / max(1, int(active.sum())),
        "surplus_per_call": int(tally[SURPLUS]) / max(1, int(tally[CALLS])) / NANO,
        "surplus_per_wish": int(tally[SURPLUS]) / max(1, wanted) / NANO,
        "made_share": int(tally[CALLS]) / max(1, wanted),
        "undecided_share": int(tally[UNDECIDED]) / max(1, wanted),
        "coordinator_hhi": hhi(calls_of),
        "coordinator_nakamoto": float(nakamoto(calls_of)),
        "coordinator_take": float((state["coordinator.take_bps"] * calls_of).sum() / max(1.0, calls_of.sum())) / 10_000,
        "theil_between": _between(groups),
        "pay_variation": float((c["swing"][earning] / c["pay"][earning]).mean()) if earning.any() else 0.0,
        "speculators_share": (stakers + buyers + traders) / paid,
        "newcomers_share": newcomer_earned / max(1, int(earned.sum())),
        "operators_share": state.books.get("operators", 0) / paid,
        "held_back_share": held_back / paid,
        "slashed_share": state.books.get("reviewers", 0) / paid,
        "lenders_share": (state.books.get("lenders", 0) - state.books.get("in:lenders", 0) + lent) / paid,
        "delay_days": float(due[active & ~lost].sum()) / max(1.0, float(c["pay"][active & ~lost].sum())),
        "attack_return": attack_return,
        "attack_income": attack_income / NANO,
        "honest_earned": int(mine[honest].sum()) / NANO,
        "generic_share": int(tally[GENERIC]) / max(1, int(tally[CALLS])),
        "prompts_per_call": int(tally[PROMPTS]) / max(1, int(tally[CALLS])),
        "attention_per_call": int(tally[DECIDING]) / max(1, int(tally[CALLS])) / NANO,
        "gini_effort": gini(weight[active]),
        "days": float(days),
        "events_lost_units": float(entered - sum(amount for _, amount in state.held())),
        "cost_share": float((c["effort"] * c["cost"])[active].sum(dtype=np.float64))
        * s.supply.cost_day_nano
        * days
        / paid,
        "attack_accounts": float(s.attack.accounts),
        "subsidy": state.books.get("in:subsidy", 0) / NANO,
        "active": float((active & honest).sum()),
        "share:base_model": state.books.get("base_model", 0) / paid,
        "share:commons": state.books.get("commons", 0) / paid,
        "share:sellers": state.books.get("sellers", 0) / paid,
        **{f"share:{name}": amount / paid for name, amount in run.lines},
    }


def flows(run: Finished) -> list[tuple[str, str, int]]:
    """Where the money went: (from, to, nano units); what leaves a node is what came in."""
    state, rows = run.state, []
    books = state.books
    for name, amount in run.lines:
        rows.append(("callers", name, amount))
    accrued = int(state["contributor.accrued"].sum())
    extra = {k: v for k, v in books.items() if k.startswith("in:") and k not in ("in:users", "in:liquidity")}
    for name, amount in extra.items():
        rows.append((name.removeprefix("in:"), "contributors", amount))
    books_of_rails = ("stakers", "buyers", "operators", "bonds", "reviewers", "vesting", "lenders", "advanced")
    held_back = {k: books.get(k, 0) for k in (*books_of_rails, "pot")}
    for name in ("base_model", "commons", "sellers"):
        rows.append(("callers", name, books.get(name, 0)))
    rows.append(
        ("callers", "contributors", int(books.get("in:users", 0)) - sum(a for f, _, a in rows if f == "callers"))
    )
    for name, amount in held_back.items():
        rows.append(("contributors", name, amount))
    for name in ("received", "fees", "unreachable", "expired"):
        rows.append(("contributors", name, state.payouts[name]))
    rows.append(("contributors", "waiting", accrued - int(state["contributor.settled"].sum())))
    return [row for row in rows if row[2] > 0]


def _attack(run: Finished) -> tuple[int, float]:
    """(nano units the attacker earned, what it got per nano spent)."""
    attack = run.scenario.attack
    if attack.kind == "none":
        return 0, 0.0
    rows = run.state["contributor.attacker"] == 1
    earned = int(run.state["contributor.accrued"][rows].sum())
    if "rails.drawn" in run.state.columns:
        earned += int(run.state["rails.drawn"][rows].sum())
    income = earned + run.attacker_app_income + int(int(run.tally[ATTACKER]) * attack.subsidy)
    spent = int(run.tally[ATTACKER]) + attack.accounts * attack.account_cost_nano
    return earned, income / spent if spent else 0.0


def _misallocated(run: Finished) -> tuple[float, int]:
    """(half the absolute difference between what owners earned and were due / due, owners with cause to dispute)."""
    if run.due.size == 0:
        return 0.0, 0
    n = run.scenario.agents.contributors
    due = np.bincount(run.state["asset.owner"], weights=run.due, minlength=n)
    got = run.state["contributor.accrued"].astype(np.float64)
    total = due.sum()
    gap = np.abs(due - got)
    disputes = int(np.count_nonzero((gap > 0.2 * np.maximum(due, 1.0)) & (gap > NANO)))
    return (float(np.abs(due / total - got / max(got.sum(), 1.0)).sum() / 2) if total > 0 else 0.0), disputes


def _between(groups: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> float:
    total, between, _ = theil([group for group in groups if group.size and group.sum() > 0])
    return between / total if total > 0 else 0.0
