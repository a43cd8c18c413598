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

from headwater.attribution.spans.memory import prefetch
from headwater.core.money import PPB
from headwater.economy.assumptions import EVIDENCE_BITS_MAX, SOURCES_MAX
from headwater.economy.compiled import Float32s, Float64s, Int32s, Int64s, UInt8s, Whole, compiled
from headwater.economy.demand import CALL_SHIFT, DRAWS_A_CALL
from headwater.economy.draws import (
    CALL,
    ERROR,
    Table,
    bits,
    exponential,
    normal,
    pick,
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
from headwater.economy.tally import (
    ATTACKER,
    CALLS,
    DISCOUNT,
    GENERIC,
    LEFT_OVER,
    MADE,
    PAID,
    POT,
    RESIDUAL,
    SURPLUS,
)

PER_CALL, POOLED, PER_PAYER = range(3)
_LOW11, _S32, _NICHE_MASK = np.uint64(0x7FF), np.uint64(32), np.uint64(NICHE_SIZE - 1)
_BLOCK = 16  # calls whose sources are asked for together, so that they wait for memory together
_ROOM = _BLOCK * SOURCES_MAX


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
    noise_correlation: float
    misattributed: float
    misattributed_always: bool
    discount_bps: int
    parent_ppb: int
    forced_from: int  # users from this row on always call, whatever it is worth to them
    born_before: int  # assets born on this day or later are not in the index yet


class Wishes(NamedTuple):
    """Columns of wishes: (wishes,); see `demand`."""

    call: Int64s
    app: Int32s
    worth: Float64s
    fate: UInt8s


class AppColumns(NamedTuple):
    """Columns of apps: (apps,)."""

    price: Int64s
    pool: Int64s
    niche: Float32s
    niche_assets: Int32s  # (apps * NICHE_SIZE,)


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
    wishes: Wishes,
    pots: Int64s,
    apps: AppColumns,
    assets: Cards,
    table: Table,
    holders: Int32s,
    contents: Int32s,
    out: Outcome,
) -> None:
    """Calls of wishes first..last-1 that were not struck out, added to `out`; `pots` are emptied by calling.

    A block of calls is drawn before the first of it is worked out: the table of draws, then the cards and the
    earnings of what was drawn are asked for ahead, because most of them are not in the nearest memory.
    """
    key, lasting_key = stream(seed, day, CALL), stream(seed, 0, ERROR)
    lasting, passing = math.sqrt(rules.noise_correlation), math.sqrt(1.0 - rules.noise_correlation)
    width = SOURCES_MAX + 2
    asset, holder, content = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    evidence, measured, scores = np.empty(width), np.empty(width), np.empty(width)
    weights, fixed, remainders = np.empty(width, np.int64), np.empty(width, np.int64), np.empty(width, np.int64)
    shares, order = np.empty(width, np.int64), np.empty(width, np.int64)
    made = np.empty(_BLOCK, np.int64)
    words, drawn = np.empty(_ROOM, np.uint64), np.empty(_ROOM, np.int64)
    merges = rules.copies and (rules.rule == DEDUP_SHAPLEY or rules.rule == WINNER)
    # Without copies or common knowledge the value of the game is additive, and its Shapley value is the evidence.
    plain = rules.rule == PROPORTIONAL or (rules.rule == DEDUP_SHAPLEY and not rules.copies and rules.overlap == 0.0)
    divides_pots = rules.money == PER_PAYER and pots.size > 0
    # Kept in registers and added to the tally at the end.
    calls: Whole
    paid: Whole
    surplus: Whole
    calls, paid, surplus = np.int64(0), np.int64(0), np.int64(0)
    residual_sum, discount_sum, left_over_sum = np.int64(0), np.int64(0), np.int64(0)
    tracks = out.due.size > 0
    payer, per_call, odd = np.int64(-1), np.int64(0), np.int64(0)
    n_sources = rules.sources
    event = first
    while event < last:
        size = 0
        while event < last and size < _BLOCK:
            if wishes.fate[event] == MADE:
                made[size] = event
                size += 1
            event += 1
        for j in range(size):
            base: Whole = wishes.call[made[j]] * DRAWS_A_CALL
            for k in range(n_sources):
                word = bits(key, base + 8 + 2 * k)
                words[j * n_sources + k] = word
                prefetch(table, np.intp(((word >> _S32) * np.uint64(table.size)) >> _S32))
        for j in range(size):
            base = wishes.call[made[j]] * DRAWS_A_CALL
            own_list = np.int64(wishes.app[made[j]]) * NICHE_SIZE
            niche_below = np.uint64(apps.niche[wishes.app[made[j]]] * 2048.0)
            for k in range(n_sources):
                at = j * n_sources + k
                word, luck = words[at], bits(key, base + 9 + 2 * k)
                words[at] = luck
                listed = np.int64(apps.niche_assets[own_list + np.int64(word & _NICHE_MASK)])
                a = pick(word, table)
                # The evidence word's lowest bits are not used for evidence: they choose between catalogue and niche.
                a += (listed - a) * np.int64(luck & _LOW11 < niche_below)
                drawn[at] = a
                prefetch(assets, np.intp(a))
                prefetch(out.earned, np.intp(a))
        for j in range(size):
            number = wishes.call[made[j]]
            base = number * DRAWS_A_CALL
            user = number >> CALL_SHIFT
            app = np.int64(wishes.app[made[j]])
            price: Whole = apps.price[app]
            forced = user >= rules.forced_from
            if not forced:
                surplus += np.int64(wishes.worth[made[j]] - price)
            calls += 1
            paid += price
            if forced:
                out.tally[ATTACKER] += price
            out.app_calls[app] += 1
            pool: Whole = apps.pool[app]
            if divides_pots:
                if user != payer:
                    # A payer's own money over the payer's own calls: allocate(pot, [1] * calls).
                    payer, here, at = user, 0, made[j]
                    while at < last and wishes.call[at] >> CALL_SHIFT == user:
                        here += wishes.fate[at] == MADE
                        at += 1
                    per_call = pots[user] // here
                    odd = pots[user] - per_call * here
                    pots[user] = 0
                pool = per_call
                if odd > 0:
                    pool += 1
                    odd -= 1

            generic = uniform(key, base + 4) < rules.generic and not forced
            level = rules.bits * (0.01 if generic else 1.0)
            if generic:
                out.tally[GENERIC] += 1
            total, n = 0.0, 0
            for k in range(n_sources):
                a = drawn[j * n_sources + k]
                seen = False
                for i in range(n):
                    seen = seen or asset[i] == a
                if seen:
                    continue  # a passage is in an answer once, however often it is drawn
                card: Any = assets[a]
                e = min(exponential(words[j * n_sources + k]) * level * card.quality, EVIDENCE_BITS_MAX)
                if card.born >= rules.born_before:
                    e = 0.0
                asset[n] = a
                if rules.copies:
                    content[n], holder[n] = contents[a], holders[a]
                    # Copies in one answer say the same: they explain the same bits.
                    for i in range(n):
                        if content[i] == content[n]:
                            e = evidence[i]
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
                    a = asset[k]
                    if rules.noise > 0.0:
                        wrong = passing * normal(uniform(key, base + 64 + 3 * k))
                        if lasting > 0.0:
                            # What the estimator gets wrong about this contribution it gets wrong every time.
                            wrong += lasting * normal(uniform(lasting_key, 3 * a))
                        e *= math.exp(rules.noise * wrong)
                    measured[k] = min(e, EVIDENCE_BITS_MAX)
                    order[k] = a
                    if rules.misattributed > 0.0:
                        # The bits are real, the name beside them is not.
                        if rules.misattributed_always:
                            if uniform(lasting_key, 3 * a + 1) < rules.misattributed:
                                order[k] = pick(bits(lasting_key, 3 * a + 2), table)
                        elif uniform(key, base + 65 + 3 * k) < rules.misattributed:
                            order[k] = pick(bits(key, base + 66 + 3 * k), table)
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
                    source: Any = assets[a]
                    parent = source.parent
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
    wishes: Wishes,
    pots: Int64s,
    apps: AppColumns,
    assets: Cards,
    table: Table,
    holders: Int32s,
    contents: Int32s,
    out: Outcome,
) -> None:
    """All calls of a day on so many threads; the result is the same for any number of them."""
    count = wishes.call.size
    if threads == 1 or count < threads:
        run_calls(seed, day, 0, count, rules, wishes, pots, apps, assets, table, holders, contents, out)
        return
    parts = [_empty_like(out) for _ in range(threads)]
    # A payer's wishes stay together, because they share a pot.
    users = [int(wishes.call[count * t // threads]) >> CALL_SHIFT for t in range(1, threads)]
    edges = [0, *(int(np.searchsorted(wishes.call, user << CALL_SHIFT)) for user in users), count]

    def part(t: int) -> None:
        run_calls(
            seed, day, edges[t], edges[t + 1], rules, wishes, pots, apps, assets, table, holders, contents, parts[t]
        )

    with ThreadPoolExecutor(threads) as workers:
        list(workers.map(part, range(threads)))
    for done in parts:
        out.earned[:] += done.earned
        out.due[:] += done.due
        out.uses[:] += done.uses
        out.app_calls[:] += done.app_calls
        out.tally[:] += done.tally
