"""Finance on top of pay: streams, stakes, sold revenue and a token pool, each a plug-in of its own.

All act between earning and booking (phase ``rails``): they move money of `contributor.today` before it becomes
cumulative, so amounts that a root has held never fall.

Assumptions, in words: stakers vouch and are paid for it whether or not anything goes wrong; buyers of revenue pay the
expected year, discounted; token traders trade at random and run together after a fall. None of these is measured.
"""

from __future__ import annotations

import numpy as np

from headwater.core.money import BPS
from headwater.economy.behaviour import Behaviour, View
from headwater.economy.draws import RAIL, key_of, normal, uniform
from headwater.economy.scenario import Scenario
from headwater.economy.state import State

_PARTS = 1_000
"""Parts of pay are cut in thousandths, so that a day's pay of one row may be 9 million units of currency."""


def stream_pay(view: View) -> None:
    """Everybody with enough pay today receives it at once, less the cost of a day's stream."""
    today = view["contributor.today"]
    fee = view.scenario.rails.stream_fee_nano
    streamed = today >= 5 * fee
    view.book("chain", fee * int(streamed.sum()))
    today[streamed] -= fee


def pay_stakers(view: View) -> None:
    """A part of every contributor's pay goes to those who staked on it."""
    part = round(view.scenario.rails.stake_share * _PARTS)
    today = view["contributor.today"]
    cut = today * part // _PARTS  # the odd unit stays with the contributor
    today -= cut
    view.book("stakers", int(cut.sum()))


def sell_revenue(view: View) -> None:
    """A part of pay belongs to buyers, who paid its expected year in advance, once a year.

    The price is what a contributor earned a day lately, times a year, discounted; buyers lose when pay falls.
    """
    rails = view.scenario.rails
    part = round(rails.sold_share * _PARTS)
    today, sold = view["contributor.today"], view["rails.sold"]
    cut = np.where(sold > 0, today * part // _PARTS, 0)
    today -= cut
    view.book("buyers", int(cut.sum()))
    if view.day % 365 == 30:
        expected = view["contributor.pay"].astype(np.float64) * 365.0 * rails.sold_share / (1.0 + rails.discount_year)
        advance = np.maximum(0, expected).astype(np.int64)
        sold[:] = advance
        today += advance
        view.book("in:investors", int(advance.sum()))


def trade_token(view: View) -> None:
    """The day's pay is swapped for tokens by the payer and for currency again by contributors.

    A constant-product pool with a fee; in between, traders trade at random, and run when the price has
    fallen by `run_drop` within a week. All swaps are in integers and never lower the product.
    """
    rails, today, pool = view.scenario.rails, view["contributor.today"], view["rails.pool"]
    pay = int(today.sum())
    money, token = int(pool[0]), int(pool[1])
    traders, borrowed = int(pool[2]), 0  # tokens that traders hold
    money, bought = _swap(money, pay, token, rails.pool_fee_bps)
    token -= bought
    key = key_of(view.seed, view.day, RAIL)
    lean = rails.noise_day * normal(uniform(key, 0))
    history = view["rails.price"]
    price = money / token
    week_ago = history[(view.day - 7) % history.size] if view.day >= 7 else price
    if price < (1.0 - rails.run_drop) * week_ago:
        lean = -1.0
        pool[3] += 1  # runs
    if lean > 0:
        borrowed = int(money * lean)
        money, got = _swap(money, borrowed, token, rails.pool_fee_bps)
        token -= got
        traders += got
        view.book("in:traders", borrowed)
    else:
        sold = min(traders, int(token * -lean)) if lean > -1.0 else traders
        token, got = _swap(token, sold, money, rails.pool_fee_bps)
        money -= got
        traders -= sold
        view.book("traders", got)
    # Contributors sell at once: the seed of most of what is known about such tokens.
    token, received = _swap(token, bought, money, rails.pool_fee_bps)
    money -= received
    if pay > 0:
        # What the round trip returns is shared as it was earned; the difference stays in the pool.
        scaled = today * (min(received, pay * 4) * 2**12 // pay) >> 12
        today[:] = scaled
    else:
        scaled = today
    paid = int(scaled.sum())
    view.book("pool", pay + borrowed - paid - (0 if lean > 0 else got))
    money += received - paid
    pool[0], pool[1], pool[2] = money, token, traders
    history[view.day % history.size] = money / token


def _swap(into: int, amount: int, out_of: int, fee_bps: int) -> tuple[int, int]:
    """Put `amount` into a reserve: (new reserve, units taken out of the other one), rounded in the pool's favour."""
    if amount <= 0:
        return into, 0
    effective = amount * (BPS - fee_bps)
    return into + amount, out_of * effective // (into * BPS + effective)


def _sold_column(state: State, scenario: Scenario) -> None:
    state.add("rails", scenario.agents.contributors, sold=np.int64)


def _pool_columns(state: State, scenario: Scenario) -> None:
    state.columns["rails.pool"] = np.array([scenario.rails.pool_nano, scenario.rails.pool_nano, 0, 0], np.int64)
    state.columns["rails.price"] = np.ones(32)
    state.book("in:liquidity", scenario.rails.pool_nano)
    state.book("pool", scenario.rails.pool_nano)


# Rails are one after the other by design: what a stream pays has passed stakers and buyers.
RAILS = (
    Behaviour(
        "stake", "rails", (), ("contributor.today", "book:stakers"), pay_stakers,
        wanted=lambda s: s.rails.stake, order=0, trusted=True,
    ),
    Behaviour(
        "revenue-share", "rails", ("contributor.pay",),
        ("contributor.today", "rails.sold", "book:buyers", "book:in:investors"), sell_revenue,
        wanted=lambda s: s.rails.revenue_share, prepare=_sold_column, order=1, trusted=True,
    ),
    Behaviour(
        "amm", "rails", (),
        ("contributor.today", "rails.pool", "rails.price", "book:pool", "book:in:traders", "book:traders"), trade_token,
        wanted=lambda s: s.rails.amm, prepare=_pool_columns, order=2, trusted=True,
    ),
    Behaviour(
        "stream", "rails", (), ("contributor.today", "book:chain"), stream_pay,
        wanted=lambda s: s.rails.stream, order=3, trusted=True,
    ),
)  # fmt: skip
