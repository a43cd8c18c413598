"""The product's own rails, each a plug-in that can be switched on alone: audits, governance, bonds, vesting, advances.

They act between earning and booking (phase ``rails``) on `contributor.today`, in the order below, and follow the rules
of the contracts: a stake is its owner's unless a slash stands, what has vested never comes back, an advance is repaid
first from what arrives, and the pool's loss is stated. Integers throughout; odd units stay with the contributor.

Assumptions, in words: audits find an attacker's account with a chance a day and are wrong about honest ones far more
rarely; most who were wronged win their appeal; operators propose to raise their take once a month, and vote for it with
whatever votes the rule gives them; a borrower draws when enough of its income waits, and some vanish with it.
"""

from __future__ import annotations

import numpy as np

from headwater.economy.behaviour import Behaviour, View
from headwater.economy.compiled import Float64s, UInt8s, compiled
from headwater.economy.draws import AUDIT, key_of, uniform
from headwater.economy.scenario import Scenario
from headwater.economy.state import ACTIVE, STOPPED, State

FREE, FOUND, OUT = 0, 1, 2
"""Of a contributor's row: nothing found; found today; found earlier, so it earns nothing any more."""

_PARTS = 1_000
_VOTE_DAYS = 30
PERSON, ACCOUNT, STAKE = "cluster", "account", "stake"


@compiled
def _find(key: np.uint64, chances: Float64s, found: UInt8s) -> None:
    """Mark the rows that are found today; a row that was found stays so."""
    for i in range(found.size):
        if found[i] == 1:
            found[i] = 2
        elif found[i] == 0 and chances[i] > 0.0 and uniform(key, i) < chances[i]:
            found[i] = 1


def audit(view: View) -> None:
    """Hidden gold and audits find attackers, and now and then somebody honest; what is found earns nothing more.

    Who is honest and wins its appeal is not found at all; its bond was frozen for a while and is its own again.
    """
    rails = view.scenario.rails
    active = view["contributor.phase"] == ACTIVE
    guilty = view["contributor.attacker"] == 1
    wrong = rails.audit_false_day * (1.0 - rails.appeal_won)
    chances = np.where(active, np.where(guilty, rails.audit_day, wrong), 0.0)
    found, today = view["rails.found"], view["contributor.today"]
    _find(key_of(view.seed, view.day, AUDIT), chances, found)
    gone = found != FREE
    view.book("commons", int(today[gone].sum()))
    today[gone] = 0


def vote_on_take(view: View) -> None:
    """Operators take what they were allowed to; once a month they ask for more, and those who may vote decide.

    cluster   every person one vote: operators are few and stay few, whatever accounts they open
    account   every account one vote: operators open as many accounts as they think they need
    stake     votes follow stake, of which operators hold a part
    none      nobody is asked
    Only a part of contributors votes; all of them lose by a rise and vote against it.
    """
    rails, today = view.scenario.rails, view["contributor.today"]
    take = view["rails.take"]
    if view.day and view.day % _VOTE_DAYS == 0 and int(take[0]) < round(rails.take_max * _PARTS):
        voting = view["contributor.phase"] == ACTIVE
        people = float(np.count_nonzero(voting & (view["contributor.attacker"] == 0)))
        against = people * rails.turnout
        if rails.govern == STAKE:
            held = float(view["contributor.accrued"][voting].sum())
            all_stake = held / max(1e-9, 1.0 - rails.operator_stake)
            ayes, noes = all_stake * rails.operator_stake, held * rails.turnout
        elif rails.govern == ACCOUNT:
            ayes, noes = float(rails.operator_accounts), against
        elif rails.govern == PERSON:
            ayes, noes = float(rails.operator_people), against
        else:
            ayes, noes = 1.0, 0.0
        if ayes > noes:
            take[0] += round(rails.take_step * _PARTS)
        take[1] += 1
    cut = today * int(take[0]) // _PARTS
    today -= cut
    view.book("operators", int(cut.sum()))


def bond(view: View) -> None:
    """The first money of an account is its stake; a stake is slashed when its account is found, else it comes back.

    What is slashed pays reviewers. Who stops has its stake back, as after unbonding.
    """
    today, staked, found = view["contributor.today"], view["rails.staked"], view["rails.found"]
    slashed = (found == FOUND) & (staked > 0)
    view.book("reviewers", int(staked[slashed].sum()))
    view.book("bonds", -int(staked[slashed].sum()))
    staked[slashed] = 0
    leaving = (view["contributor.phase"] == STOPPED) & (staked > 0)
    today[leaving] += staked[leaving]
    view.book("bonds", -int(staked[leaving].sum()))
    staked[leaving] = 0
    stays = (view["contributor.phase"] == ACTIVE) & (found == FREE)
    room = np.where(stays, np.maximum(view.scenario.rails.bond_nano - staked, 0), 0)
    put = np.minimum(today, room)
    today -= put
    staked += put
    view.book("bonds", int(put.sum()))


def vest(view: View) -> None:
    """Pay becomes a contributor's own in a straight line: what is added joins the rest and ends a whole term later.

    What has not vested of an account that is found goes to the commons; what has vested is never touched.
    """
    today, unvested = view["contributor.today"], view["rails.unvested"]
    gone = (view["rails.found"] != FREE) & (unvested > 0)
    view.book("commons", int(unvested[gone].sum()))
    view.book("vesting", -int(unvested[gone].sum()))
    unvested[gone] = 0
    before = int(unvested.sum())
    unvested += today
    out = -(-unvested // view.scenario.rails.vest_days)  # rounded up: the last unit vests too
    unvested -= out
    today[:] = out
    view.book("vesting", int(unvested.sum()) - before)


def advance(view: View) -> None:
    """Income repays what is due first; who has income waiting draws against it, as the pool's limits allow.

    Principal before fee; the price is base, slope times the part that is lent, and risk. A borrower found or stopped
    with something due is a stated loss; its lane repays nothing any more.
    """
    rails, today = view.scenario.rails, view["contributor.today"]
    owed, fee, drawn = view["rails.owed"], view["rails.fee"], view["rails.drawn"]
    active = (view["contributor.phase"] == ACTIVE) & (view["rails.found"] == FREE)
    part = np.minimum(today, owed)
    owed -= part
    today -= part
    paid_fee = np.minimum(today, fee)
    fee -= paid_fee
    today -= paid_fee
    pool = view["rails.pool_state"]  # lent, lost, earned in fees
    view.book("lenders", int(part.sum() + paid_fee.sum()))
    pool[0] -= int(part.sum())
    pool[2] += int(paid_fee.sum())
    bad = ~active & (owed > 0)
    pool[0] -= int(owed[bad].sum())
    pool[1] += int(owed[bad].sum())
    owed[bad], fee[bad] = 0, 0
    waiting = view["contributor.accrued"] - view["contributor.settled"]
    likely = np.minimum(waiting, (view["contributor.pay"] * rails.advance_days).astype(np.int64))
    want = (likely * rails.advance_part).astype(np.int64)
    ask = active & (owed == 0) & (want >= rails.advance_min_nano)
    room = int(rails.lent_max * rails.lenders_nano) - int(pool[0])
    line = int(rails.line_max * rails.lenders_nano)
    want = np.where(ask, np.minimum(want, line), 0)
    taken = np.where(np.cumsum(want) <= room, want, 0)
    lent = int(taken.sum())
    use = min(1.0, (int(pool[0]) + lent) / max(1, rails.lenders_nano))
    price = round((rails.advance_base + rails.advance_slope * use + rails.advance_risk) * _PARTS)
    owed += taken
    fee += -(-taken * price // _PARTS)
    drawn += taken
    pool[0] += lent
    view.book("in:lenders", lent)
    view.book("advanced", lent)


def _audit_columns(state: State, scenario: Scenario) -> None:
    state.add("rails", scenario.agents.contributors, found=np.uint8)


def _take_columns(state: State, scenario: Scenario) -> None:
    state.columns["rails.take"] = np.array([round(scenario.rails.take_start * _PARTS), 0], np.int64)


def _bond_columns(state: State, scenario: Scenario) -> None:
    state.add("rails", scenario.agents.contributors, staked=np.int64)


def _vest_columns(state: State, scenario: Scenario) -> None:
    state.add("rails", scenario.agents.contributors, unvested=np.int64)


def _advance_columns(state: State, scenario: Scenario) -> None:
    state.add("rails", scenario.agents.contributors, owed=np.int64, fee=np.int64, drawn=np.int64)
    state.columns["rails.pool_state"] = np.zeros(3, np.int64)


_PHASE = "contributor.phase"
PRODUCT_RAILS = (
    Behaviour(
        "audit", "rails", (_PHASE, "contributor.attacker"), ("contributor.today", "rails.found", "book:commons"), audit,
        wanted=lambda s: s.rails.audited, prepare=_audit_columns, order=-3, trusted=True,
    ),
    Behaviour(
        "governance", "rails", (_PHASE, "contributor.attacker", "contributor.accrued"),
        ("contributor.today", "rails.take", "book:operators"), vote_on_take,
        wanted=lambda s: s.rails.govern != "fixed", prepare=_take_columns, order=-2, trusted=True,
    ),
    Behaviour(
        "bond", "rails", (_PHASE, "rails.found"),
        ("contributor.today", "rails.staked", "book:bonds", "book:reviewers"), bond,
        wanted=lambda s: s.rails.bond, prepare=_bond_columns, order=4, trusted=True,
    ),
    Behaviour(
        "vesting", "rails", ("rails.found",), ("contributor.today", "rails.unvested", "book:vesting", "book:commons"),
        vest, wanted=lambda s: s.rails.vest, prepare=_vest_columns, order=5, trusted=True,
    ),
    Behaviour(
        "advance", "rails",
        (_PHASE, "rails.found", "contributor.accrued", "contributor.settled", "contributor.pay"),
        (
            "contributor.today", "rails.owed", "rails.fee", "rails.drawn", "rails.pool_state",
            "book:lenders", "book:in:lenders", "book:advanced",
        ),
        advance, wanted=lambda s: s.rails.advance, prepare=_advance_columns, order=6, trusted=True,
    ),
)  # fmt: skip
