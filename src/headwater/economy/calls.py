"""One day of paid calls, fused: who calls, what it is worth, who supplied the answer, who is paid what.

For every call the kernel does what `flow` does for a real one: the bits of the sources become scores
(`score_call`), scores become ppb (`normalise`), the pool is shared by ppb, the grade's discount goes to the
commons and the rest to the owners (`divide`). The price's lines depend on the app only and are divided
once per app and day by the same function, then counted.

Every sum is an integer, so the order of users, and how they are spread over threads, changes nothing.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.core.money import PPB
from headwater.economy.assumptions import EVIDENCE_BITS_MAX, SOURCES_MAX
from headwater.economy.compiled import Float32s, Int32s, Int64s, Whole, compiled
from headwater.economy.draws import (
    CALL,
    CALL_COUNT,
    Table,
    bits,
    exponential,
    normal,
    pick,
    poisson,
    stream,
    uniform,
)
from headwater.economy.money_kernels import (
    allocate_into,
    allocate_ppb_into,
    first_of_two,
    keep_of,
    normalise_into,
)
from headwater.economy.split_rules import BANZHAF, DEDUP_SHAPLEY, PROPORTIONAL, WINNER, score_call
from headwater.economy.state import NICHE_SIZE

# What a day's tally counts; the last ones are nano units.
(
    CALLS,
    DECLINED,
    UNDECIDED,
    OVER_BUDGET,
    PROMPTS,
    GENERIC,
    PAID,
    SURPLUS,
    RESIDUAL,
    DISCOUNT,
    LEFT_OVER,
    POT,
    DECIDING,
    ATTACKER,
) = range(14)
TALLY_SIZE = 14

EXPONENTIAL, LINEAR, ALWAYS = range(3)
PER_CALL, POOLED, PER_PAYER = range(3)
_LOW11, _NICHE_MASK = np.uint64(0x7FF), np.uint64(NICHE_SIZE - 1)
_DRAWS_A_CALL = 128  # counters that one call may use
_CALLS_A_DAY_MAX = 4_096  # calls of one user and day; more are not made


class CallRules(NamedTuple):
    """What holds for every call of a day; plain numbers."""

    rule: int  # kernel number of the split rule
    money: int  # PER_CALL, POOLED or PER_PAYER
    sources: int
    bits: float
    residual_bits: float  # base model's bits, already weighted
    floor_bits: float
    generic: float
    overlap: float
    copies: bool  # whether any contribution says the same as another
    hidden_copies: bool  # whether some of them are not recognised
    noise: float
    misattributed: float
    discount_bps: int
    parent_ppb: int
    loyalty: float
    shape: int
    value: float  # nano units
    deciding: float  # nano units that one decision costs
    prompts_per_day: float  # 0: a mandate, no prompts
    calls_per_prompt: int
    budget: int
    volume: float  # multiplies every rate
    forced_from: int  # users from this row on always call, whatever it is worth to them
    born_before: int  # assets born on this day or later are not in the index yet


class UserColumns(NamedTuple):
    """Columns of users: (users,)."""

    rate: Float32s
    app: Int32s
    spent: Int64s
    pot: Int64s  # (users,) under a subscription, else (0,)


class AppColumns(NamedTuple):
    """Columns of apps: (apps,) and the alias table that chooses one."""

    price: Int64s
    pool: Int64s
    niche: Float32s
    niche_assets: Int32s  # (apps * NICHE_SIZE,)
    table: Table


Cards = NDArray[Any]
"""(assets,) records of 16 bytes, so that a source costs one cache line instead of three; see `population`."""


class Outcome(NamedTuple):
    """What calls add up to."""

    earned: Int64s  # (assets,) nano units
    due: Int64s  # (assets,) what exact measurement would have paid, or (0,)
    uses: Int32s  # (assets,) times used, for pooled rules, or (0,)
    app_calls: Int64s  # (apps,)
    tally: Int64s  # (TALLY_SIZE,)


@compiled
def divide_prices(prices: Int64s, line_bps: Int64s, lines: Int64s) -> None:
    """The lines of each price, the pool last: the first `allocate` of `divide`. lines: (prices, lines + 1)."""
    remainders = np.empty(line_bps.shape[1], np.int64)
    for i in range(prices.size):
        allocate_into(prices[i], line_bps[i], line_bps.shape[1], lines[i], remainders)


@compiled
def fold_by_owner(owner: Int32s, earned: Int64s, today: Int64s) -> None:
    """Move what assets earned to their owners; `earned` is left empty."""
    for a in range(earned.size):
        today[owner[a]] += earned[a]
        earned[a] = 0


@compiled
def run_calls(
    seed: int,
    day: int,
    first: int,
    last: int,
    rules: CallRules,
    users: UserColumns,
    apps: AppColumns,
    assets: Cards,
    table: Table,
    holders: Int32s,
    contents: Int32s,
    out: Outcome,
) -> None:
    """All calls of users first..last-1 on one day, added to `out`; `users.spent` and `pot` are updated."""
    count_key, key = stream(seed, day, CALL_COUNT), stream(seed, day, CALL)
    width = SOURCES_MAX + 2
    asset, holder, content = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    evidence, measured, scores, quality = np.empty(width), np.empty(width), np.empty(width), np.empty(width)
    weights, fixed, remainders = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    words = np.empty(width, np.uint64)
    drawn = np.empty(width, np.int64)
    shares, order = np.empty(width, np.int64), np.empty(width, np.int64)
    merges = rules.copies and (rules.rule == DEDUP_SHAPLEY or rules.rule == WINNER)
    # Without copies or common knowledge the value of the game is additive, and its Shapley value is the evidence.
    plain = rules.rule == PROPORTIONAL or (rules.rule == DEDUP_SHAPLEY and not rules.copies and rules.overlap == 0.0)
    # Kept in registers and added to the tally at the end.
    calls: Whole
    paid: Whole
    surplus: Whole
    calls, paid, surplus = np.int64(0), np.int64(0), np.int64(0)
    residual_sum, discount_sum, left_over_sum = np.int64(0), np.int64(0), np.int64(0)
    tracks = out.due.size > 0
    for user in range(first, last):
        rate = users.rate[user] * rules.volume
        if rate <= 0.0:
            continue
        wanted = min(poisson(uniform(count_key, user), rate), _CALLS_A_DAY_MAX)
        forced = user >= rules.forced_from
        per_call, odd = np.int64(0), np.int64(0)
        if rules.money == PER_PAYER and wanted > 0 and users.pot.size > 0:
            # A payer's own money over the payer's own calls: allocate(pot, [1] * calls).
            per_call = users.pot[user] // wanted
            odd = users.pot[user] - per_call * wanted
            users.pot[user] = 0
        prompts = 0
        for index in range(wanted):
            base: Whole = (np.int64(user) * _CALLS_A_DAY_MAX + index) * _DRAWS_A_CALL
            app: Whole = np.int64(users.app[user])
            if not forced and uniform(key, base) > rules.loyalty:
                app = pick(bits(key, base + 1), apps.table)
            price: Whole = apps.price[app]
            if not forced:
                worth = rules.value
                if rules.shape == EXPONENTIAL:
                    worth = exponential(bits(key, base + 2)) * rules.value
                elif rules.shape == LINEAR:
                    worth = uniform(key, base + 2) * 2.0 * rules.value
                if users.spent[user] + price > rules.budget:
                    out.tally[OVER_BUDGET] += 1
                    continue
                cost = 0.0
                if rules.prompts_per_day > 0.0 and index % rules.calls_per_prompt == 0:
                    # Whoever has been asked too often stops deciding, and what is not decided does not happen.
                    prompts += 1
                    out.tally[PROMPTS] += 1
                    tired = 1.0 / (1.0 + math.exp(rules.prompts_per_day - prompts))
                    if uniform(key, base + 3) < tired:
                        out.tally[UNDECIDED] += 1
                        continue
                    cost = rules.deciding
                    out.tally[DECIDING] += np.int64(cost)
                # Under a mandate nobody weighs a single call; with a prompt, or free choice, poor calls are declined.
                if (rules.prompts_per_day > 0.0 or rules.shape == LINEAR) and worth < price:
                    out.tally[DECLINED] += 1
                    surplus -= np.int64(cost)
                    continue
                surplus += np.int64(worth - price - cost)
            users.spent[user] += price
            calls += 1
            paid += price
            if forced:
                out.tally[ATTACKER] += price
            out.app_calls[app] += 1
            pool: Whole = apps.pool[app]
            if rules.money == PER_PAYER and users.pot.size > 0:
                pool = per_call + (1 if index < odd else 0)

            # Retrieval and evidence. All reads of a kind come together, so that they wait for memory together.
            generic = uniform(key, base + 4) < rules.generic and not forced
            level = rules.bits * (0.01 if generic else 1.0)
            if generic:
                out.tally[GENERIC] += 1
            niche_below = np.uint64(apps.niche[app] * 2048.0)
            for k in range(rules.sources):
                word = bits(key, base + 8 + 2 * k)
                words[k] = bits(key, base + 9 + 2 * k)
                # The evidence word's lowest bits are not used for evidence: they choose between catalogue and niche.
                if words[k] & _LOW11 < niche_below:
                    drawn[k] = apps.niche_assets[app * NICHE_SIZE + np.int64(word & _NICHE_MASK)]
                else:
                    drawn[k] = pick(word, table)
            for k in range(rules.sources):
                quality[k] = assets[drawn[k]].quality
            total, n = 0.0, 0
            for k in range(rules.sources):
                a = drawn[k]
                seen = False
                for j in range(n):
                    seen = seen or asset[j] == a
                if seen:
                    continue  # a passage is in an answer once, however often it is drawn
                card = assets[a]
                e = min(exponential(words[k]) * level * quality[k], EVIDENCE_BITS_MAX)
                if card.born >= rules.born_before:
                    e = 0.0
                asset[n] = a
                if rules.copies:
                    content[n], holder[n] = contents[a], holders[a]
                    # Copies in one answer say the same: they explain the same bits.
                    for j in range(n):
                        if content[j] == content[n]:
                            e = evidence[j]
                            break
                evidence[n] = e
                total += e
                n += 1
            if rules.money == POOLED:
                out.tally[POT] += pool
                for k in range(n):
                    out.uses[asset[k]] += 1
                continue
            if tracks:
                for k in range(n):
                    e = evidence[k]
                    if rules.noise > 0.0:
                        e *= math.exp(rules.noise * normal(uniform(key, base + 64 + 3 * k)))
                    measured[k] = min(e, EVIDENCE_BITS_MAX)
                    if rules.misattributed > 0.0 and uniform(key, base + 65 + 3 * k) < rules.misattributed:
                        # The bits are real, the name beside them is not.
                        a = pick(bits(key, base + 66 + 3 * k), table)
                        order[k] = a
                    else:
                        order[k] = asset[k]
            # With errors in the measurement the call is divided twice: as it should be, then as it is.
            for truth in range(1 if tracks else 0, -1, -1):
                if tracks and truth == 0:
                    total = 0.0
                    for k in range(n):
                        asset[k] = order[k]
                        if rules.copies:
                            holder[k], content[k] = holders[asset[k]], contents[asset[k]]
                        evidence[k] = measured[k]
                        total += measured[k]
                left_over_bits = 0.0
                if total < rules.floor_bits:
                    for k in range(n):
                        scores[k] = 0.0
                elif plain:
                    for k in range(n):
                        scores[k] = evidence[k]
                else:
                    left_over_bits = score_call(
                        rules.rule,
                        n,
                        holder,
                        content,
                        evidence,
                        rules.overlap,
                        rules.copies,
                        rules.hidden_copies,
                        scores,
                        shares,
                    )
                # Bits that Banzhaf leaves to nobody are one more source, whose owner is the commons.
                scores[n] = left_over_bits
                scored = n + 1 if rules.rule == BANZHAF else n
                normalise_into(scores, scored, rules.residual_bits, weights, fixed, remainders)
                allocate_ppb_into(pool, weights, scored + 1, shares, remainders)
                discounted = np.int64(0)
                for k in range(n):
                    share = shares[k]
                    if share == 0:
                        continue
                    a = holder[k] if merges else asset[k]
                    if rules.discount_bps > 0:
                        kept = keep_of(share, rules.discount_bps)
                        discounted += share - kept
                        share = kept
                    parent = assets[a].parent
                    if parent >= 0:
                        own = first_of_two(share, PPB - rules.parent_ppb)
                        if truth:
                            out.due[parent] += share - own
                        else:
                            out.earned[parent] += share - own
                        share = own
                    if truth:
                        out.due[a] += share
                    else:
                        out.earned[a] += share
                if not truth:
                    residual_sum += shares[scored]
                    discount_sum += discounted
                    if rules.rule == BANZHAF:
                        left_over_sum += shares[n]
    out.tally[CALLS] += calls
    out.tally[PAID] += paid
    out.tally[SURPLUS] += surplus
    out.tally[RESIDUAL] += residual_sum
    out.tally[DISCOUNT] += discount_sum
    out.tally[LEFT_OVER] += left_over_sum


def _empty_like(out: Outcome) -> Outcome:
    return Outcome(
        np.zeros_like(out.earned),
        np.zeros_like(out.due),
        np.zeros_like(out.uses),
        np.zeros_like(out.app_calls),
        np.zeros_like(out.tally),
    )


def calls_of_day(
    seed: int,
    day: int,
    threads: int,
    rules: CallRules,
    users: UserColumns,
    apps: AppColumns,
    assets: Cards,
    table: Table,
    holders: Int32s,
    contents: Int32s,
    out: Outcome,
) -> None:
    """All calls of a day on so many threads; the result is the same for any number of them."""
    count = users.rate.size
    if threads == 1 or count < threads:
        run_calls(seed, day, 0, count, rules, users, apps, assets, table, holders, contents, out)
        return
    parts = [_empty_like(out) for _ in range(threads)]
    edges = [count * t // threads for t in range(threads + 1)]

    def part(t: int) -> None:
        run_calls(seed, day, edges[t], edges[t + 1], rules, users, apps, assets, table, holders, contents, parts[t])

    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(part, range(threads)))
    for done in parts:
        out.earned[:] += done.earned
        out.due[:] += done.due
        out.uses[:] += done.uses
        out.app_calls[:] += done.app_calls
        out.tally[:] += done.tally
