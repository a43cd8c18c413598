"""The product's money functions over arrays: the same integers as `allocate`, `normalise` and `divide`.

Each kernel here has a scalar reference in `headwater.core.money`, `headwater.splits.waterfall` or
`headwater.settlement.epoch`, and property tests hold the two equal on random and edge rows. Where the
reference uses unbounded integers these use 64 bits, so every public function refuses an input whose
product could reach 2^63 *before* it multiplies.
"""

from __future__ import annotations

import numpy as np

from headwater.core.errors import InvalidError
from headwater.core.money import BPS, PPB
from headwater.economy.compiled import Float64s, Int64s, Whole, compiled, inlined

INT64_MAX = 2**63 - 1
SCORE_SCALE = 1_000_000.0
"""`normalise` reads scores as whole millionths of a unit."""

SCORE_SUM_MAX = (INT64_MAX // PPB) / SCORE_SCALE
"""Scores of one row may sum to at most this (about 9,223 bits), or 10^9 times their fixed form overflows."""

POOL_UNITS_MAX = INT64_MAX // PPB
"""Largest pool that can be multiplied by a weight in ppb: 9.22 units of currency."""

RANKED_MAX = 32
"""Weights that the fast kernels take at once; a rank keeps the place in five bits."""

_PPB = np.uint64(PPB)


def refuse_overflow(amount_max: int, weight_max: int, what: str) -> None:
    """Refuse amounts and weights whose product does not fit 63 bits.

    Raises:
        InvalidError: with code ``overflow_risk``; nothing has been multiplied yet.
    """
    if amount_max * weight_max > INT64_MAX:
        raise InvalidError(
            f"{what}: {amount_max} nano times a weight of {weight_max} passes 2^63",
            code="overflow_risk",
            fix=f"keep the amount at or below {INT64_MAX // weight_max} nano, or scale the weights down",
        )


@compiled
def allocate_into(amount: Whole, weights: Int64s, n: int, parts: Int64s, remainders: Int64s) -> None:
    """`allocate` for the first `n` weights: largest remainder, ties to the earlier.

    Args:
        amount: >= 0, with amount * max(weights) < 2^63.
        weights: (>= n,) non-negative, at least one positive.
        parts, remainders: (>= n,) scratch; `parts` holds the result.
    """
    total = np.int64(0)
    for i in range(n):
        total += weights[i]
    left: Whole = amount
    for i in range(n):
        product = amount * weights[i]
        quotient = product // total
        parts[i] = quotient
        remainders[i] = product - quotient * total
        left -= quotient
    _hand_out(left, n, parts, remainders)


@inlined
def allocate_ppb_into(amount: Whole, weights: Int64s, n: int, parts: Int64s, ranks: Int64s) -> None:
    """`allocate_into` for weights that sum to 10^9: the divisor is a constant, so no division is left.

    `ranks` is scratch and holds remainders with the place in their low bits, so that no two are equal.
    """
    left: Whole = amount
    for i in range(n):
        # Unsigned: the constant division becomes one multiplication, without a case for negative numbers.
        product = np.uint64(amount) * np.uint64(weights[i])
        quotient = np.int64(product // _PPB)
        parts[i] = quotient
        ranks[i] = (np.int64(product) - quotient * PPB) * 32 + (31 - i)
        left -= quotient
    _hand_out_ranked(left, n, parts, ranks)


@inlined
def _hand_out_ranked(left: Whole, n: int, parts: Int64s, ranks: Int64s) -> None:
    """`_hand_out` without branches: whoever fewer than `left` others outrank gets a unit. Ranks differ, n <= 32."""
    for i in range(n):
        mine, above = ranks[i], 0
        for j in range(n):
            above += ranks[j] > mine
        parts[i] += above < left


@compiled
def _hand_out(left: Whole, n: int, parts: Int64s, remainders: Int64s) -> None:
    """Give one unit each to the `left` largest remainders; `left` < n."""
    for _ in range(left):
        best, largest = 0, np.int64(-1)
        for i in range(n):
            if remainders[i] > largest:
                best, largest = i, remainders[i]
        parts[best] += 1
        remainders[best] = -1


@inlined
def normalise_into(
    scores: Float64s, n: int, residual_score: float, weights: Int64s, fixed: Int64s, remainders: Int64s
) -> None:
    """`normalise`: weights[0..n-1] in ppb of positive scores, weights[n] the residual; they sum to 10^9.

    Args:
        scores: (>= n,) finite, positive ones summing with the residual to at most `SCORE_SUM_MAX`.
        weights, fixed, remainders: (>= n + 1,) scratch; `weights` holds the result.
    """
    total = np.int64(0)
    for i in range(n):
        fixed[i] = np.int64(np.rint(max(0.0, scores[i]) * SCORE_SCALE))
        total += fixed[i]
    fixed[n] = np.int64(np.rint(max(0.0, residual_score) * SCORE_SCALE))
    total += fixed[n]
    if total == 0:
        for i in range(n):
            weights[i] = 0
        weights[n] = PPB
        return
    # `allocate_into` with each division replaced by a multiplication and a correction: quotients are at most
    # 10^9, so the float is wrong by one at most.
    inverse = 1.0 / np.float64(total)
    left: Whole = np.int64(PPB)
    for i in range(n + 1):
        product = fixed[i] * PPB
        quotient = np.int64(np.float64(product) * inverse)
        rest = product - quotient * total
        if rest < 0:
            quotient -= 1
            rest += total
        elif rest >= total:
            quotient += 1
            rest -= total
        weights[i] = quotient
        remainders[i] = rest * 32 + (31 - i)
        left -= quotient
    _hand_out_ranked(left, n + 1, weights, remainders)


@compiled
def keep_of(share: Whole, discount_bps: int) -> Whole:
    """What a grade discount leaves of a share: `allocate(share, [BPS - discount, discount])[0]`."""
    kept_product = share * (BPS - discount_bps)
    kept = kept_product // BPS
    cut_product = share * discount_bps
    cut = cut_product // BPS
    # At most one unit is left over; of two remainders the larger takes it, a tie goes to the first.
    if share - kept - cut == 1 and kept_product - kept * BPS >= cut_product - cut * BPS:
        kept += 1
    return kept


@compiled
def first_of_two(amount: Whole, first_ppb: int) -> Whole:
    """`allocate(amount, [first, 10^9 - first])[0]`: the share of the first of two owners."""
    product = amount * first_ppb
    quotient = product // PPB
    other = amount * (PPB - first_ppb)
    other_quotient = other // PPB
    if amount - quotient - other_quotient == 1 and product - quotient * PPB >= other - other_quotient * PPB:
        quotient += 1
    return quotient


@compiled
def allocate_rows(amounts: Int64s, weights: Int64s) -> Int64s:
    """`allocate` row by row. amounts (r,), weights (r, n) -> parts (r, n). Use `allocate_all`, which checks."""
    rows, n = weights.shape
    parts = np.empty((rows, n), np.int64)
    remainders = np.empty(n, np.int64)
    for r in range(rows):
        allocate_into(amounts[r], weights[r], n, parts[r], remainders)
    return parts


@compiled
def normalise_rows(scores: Float64s, residual_scores: Float64s) -> Int64s:
    """`normalise` row by row. (r, n), (r,) -> (r, n + 1), the residual last. Use `normalise_all`."""
    rows, n = scores.shape  # n < RANKED_MAX, and so below
    weights = np.empty((rows, n + 1), np.int64)
    fixed, remainders = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    for r in range(rows):
        normalise_into(scores[r], n, residual_scores[r], weights[r], fixed, remainders)
    return weights


@compiled
def divide_rows(
    prices: Int64s, line_bps: Int64s, weights: Int64s, first_owner_ppb: Int64s, discount_bps: int
) -> tuple[Int64s, Int64s]:
    """`divide` row by row, for contributions of at most two owners. Use `divide_all`, which checks.

    Args:
        prices: (r,) nano units.
        line_bps: (lines + 1,) the last one the pool's, sum 10^4.
        weights: (r, n + 1) ppb, the last one the residual, each row sums to 10^9.
        first_owner_ppb: (r, n) share of the first owner of each contribution.

    Returns:
        (lines, owners): lines (r, lines + 2) are the lines in order, then the grade discount, then the
        residual; owners (r, n, 2) what each owner of each contribution earns.
    """
    rows, width = weights.shape
    n, cuts = width - 1, line_bps.size
    lines = np.zeros((rows, cuts + 1), np.int64)
    owners = np.zeros((rows, n, 2), np.int64)
    parts, shares = np.empty(cuts, np.int64), np.empty(width, np.int64)
    remainders = np.empty(max(cuts, width), np.int64)
    for r in range(rows):
        allocate_into(prices[r], line_bps, cuts, parts, remainders)
        allocate_ppb_into(parts[cuts - 1], weights[r], width, shares, remainders)
        for k in range(cuts - 1):
            lines[r, k] = parts[k]
        for i in range(n):
            kept = keep_of(shares[i], discount_bps)
            lines[r, cuts - 1] += shares[i] - kept
            first = first_of_two(kept, first_owner_ppb[r, i])
            owners[r, i, 0] = first
            owners[r, i, 1] = kept - first
        lines[r, cuts] = shares[n]
    return lines, owners


@compiled
def posted_of(cumulative: Whole, token_unit: int) -> Whole:
    """What a root holds of one cumulative amount: whole token units, as `settlement.epoch.close` floors it."""
    return cumulative // token_unit * token_unit


@compiled
def post_cumulative(cumulative: Int64s, token_unit: int, posted: Int64s) -> None:
    """`posted_of` for every row."""
    for i in range(cumulative.size):
        posted[i] = posted_of(cumulative[i], token_unit)


def allocate_all(amounts: Int64s, weights: Int64s) -> Int64s:
    """`allocate` of each amount by its row of weights.

    Raises:
        InvalidError: a negative value, a row without a positive weight, or a product that could pass 2^63.
    """
    if amounts.size == 0:
        return np.empty_like(weights)
    if weights.size == 0 or amounts.min() < 0 or weights.min() < 0 or not weights.any(axis=1).all():
        raise InvalidError(
            "amounts and weights must be >= 0 and every row needs a positive weight",
            code="weights_invalid",
            fix="give each row at least one weight above 0",
        )
    # Sums are taken in Python integers: a row of large weights may itself pass 2^63.
    refuse_overflow(max(int(amounts.max()), 1), max(sum(map(int, row)) for row in weights), "allocate")
    return allocate_rows(amounts, weights)


def normalise_all(scores: Float64s, residual_scores: Float64s) -> Int64s:
    """`normalise` of each row of scores, the residual's weight in the last column.

    Raises:
        InvalidError: scores that are not finite, or whose sum times 10^9 could pass 2^63.
    """
    _refuse_wide(scores.shape[1] + 1)
    total = scores.clip(min=0).sum(axis=1) + residual_scores.clip(min=0)
    if not (np.isfinite(scores).all() and np.isfinite(residual_scores).all()):
        raise InvalidError("scores must be finite", code="scores_invalid", fix="drop what could not be measured")
    if total.size and float(total.max()) * (1 + 1e-9) + scores.shape[1] > SCORE_SUM_MAX:
        raise InvalidError(
            f"scores sum to {float(total.max()):.0f}, above {SCORE_SUM_MAX:.0f}",
            code="overflow_risk",
            fix="measure shorter answers, or use the scalar normalise",
        )
    return normalise_rows(scores, residual_scores)


def divide_all(
    prices: Int64s, line_bps: Int64s, weights: Int64s, first_owner_ppb: Int64s, discount_bps: int
) -> tuple[Int64s, Int64s]:
    """`divide` of each price; see `divide_rows` for shapes.

    Raises:
        InvalidError: a price out of range, shares that are not whole, or a product that could pass 2^63.
    """
    _refuse_wide(weights.shape[1])
    if prices.size and (prices.min() < 0 or weights.min() < 0 or (weights.sum(axis=1) != PPB).any()):
        raise InvalidError(
            "a price is negative or weights and residual do not sum to 10^9 ppb",
            code="shares_not_whole",
            fix="normalise the weights first",
        )
    if prices.size:
        refuse_overflow(int(prices.max()), BPS, "lines")
        # The pool is at most its part of the price and one unit of rounding.
        refuse_overflow(int(prices.max()) * int(line_bps[-1]) // BPS + 1, PPB, "pool")
    return divide_rows(prices, line_bps, weights, first_owner_ppb, discount_bps)


def divide_measured_all(
    prices: Int64s,
    measuring: Int64s,
    cap_bps: int,
    line_bps: Int64s,
    weights: Int64s,
    first_owner_ppb: Int64s,
    discount_bps: int,
) -> tuple[Int64s, Int64s]:
    """`divide_receipt` of each price: what measuring cost comes off first, the policy divides the rest.

    Args:
        measuring: (r,) nano units, the receipt's line ``attribution``; the other shapes are those of `divide_rows`.
        cap_bps: of the price, for the policy's lines and the measuring together.

    Raises:
        InvalidError: measuring that is negative or above what the cap leaves, and whatever `divide_all` refuses.
    """
    if prices.size:
        refuse_overflow(int(prices.max()), BPS, "measuring")
    allowed = prices * (cap_bps - (BPS - int(line_bps[-1]))) // BPS  # rounded down
    over = np.flatnonzero((measuring < 0) | (measuring > allowed))
    if over.size:
        raise InvalidError(
            f"measuring cost {measuring[over[0]]} nano of a price of {prices[over[0]]}; "
            f"the policy's cap leaves {allowed[over[0]]}",
            code="attribution_overcharged",
            fix="measure less, or openly raise the policy's cap",
        )
    return divide_all(prices - measuring, line_bps, weights, first_owner_ppb, discount_bps)


def _refuse_wide(width: int) -> None:
    if width > RANKED_MAX:
        raise InvalidError(
            f"{width} weights in a row", code="row_too_wide", fix=f"use the scalar reference beyond {RANKED_MAX}"
        )
