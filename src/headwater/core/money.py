"""Money is an `int` in nano units (10^-9) of a currency, and is divided in one place only.

Invariants: `allocate` loses nothing; a float is made whole once (`normalise`, or micro-bits in an attribution)
and never pays before. Knows
nothing of accounts, policies or tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from headwater.core.errors import InvalidError

PPB = 1_000_000_000
"""Parts per billion in a whole; shares of a contribution and weights of an attribution sum to it."""

BPS = 10_000
"""Basis points in a whole."""

NANO = 1_000_000_000
"""Nano units in one unit of a currency."""

AMOUNT_MAX = 10**38 - 1
"""Largest amount that DECIMAL(38,0) holds; more is refused, never wrapped."""


def allocate(amount: int, weights: Sequence[int]) -> tuple[int, ...]:
    """Share `amount` in proportion to `weights`, losing nothing.

    Largest-remainder (Hamilton) method; ties go to the earlier weight, so the
    result depends only on the arguments.

    Args:
        amount: smallest units to share, >= 0.
        weights: (n,) non-negative ints, at least one > 0; any scale.

    Returns:
        (n,) ints >= 0 with ``sum(result) == amount``. Zero weight gets zero.

    Raises:
        ValueError: negative amount or weight, or no positive weight.

    >>> allocate(100, [1, 1, 1])
    (34, 33, 33)
    """
    if amount < 0:
        raise ValueError(f"amount must be >= 0 units, got {amount}")
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        if any(weight < 0 for weight in weights):
            raise ValueError(f"weights must be >= 0, got {min(weights)}")
        raise ValueError("at least one weight must be > 0")
    # Floor division; what is left over is handed out below, one unit each, largest remainder first.
    shares = [divmod(amount * weight, total) for weight in weights]
    parts = [quotient for quotient, _ in shares]
    left_over = amount - sum(parts)
    if not left_over:
        return tuple(parts)
    by_remainder = sorted(range(len(shares)), key=lambda i: (-shares[i][1], i))
    for i in by_remainder[:left_over]:
        parts[i] += 1
    return tuple(parts)


def share_ppb(weights: Sequence[int], residual: int) -> tuple[tuple[int, ...], int]:
    """Turn whole weights into parts per billion that, with a residual, sum to 10^9 exactly.

    Args:
        weights: (n,) of any scale; negative ones count as zero.
        residual: what is owed to nobody in particular, on the same scale; negative counts as zero.

    Returns:
        ((n,) parts in ppb, residual in ppb). With nothing positive the residual is everything.

    >>> share_ppb([3, -1], 1)
    ((750000000, 0), 250000000)
    """
    positive = [max(0, weight) for weight in (*weights, residual)]
    if sum(positive) == 0:
        return (0,) * len(weights), PPB
    *parts, rest = allocate(PPB, positive)
    return tuple(parts), rest


def normalise(scores: Sequence[float], residual_score: float) -> tuple[tuple[int, ...], int]:
    """`share_ppb` of raw scores, each read as a whole number of millionths of its unit first.

    Raises:
        ValueError: a score that is not finite.

    >>> normalise([3.0, -1.0], 1.0)
    ((750000000, 0), 250000000)
    """
    every = [*scores, residual_score]
    for score in every:
        if not math.isfinite(score):
            raise ValueError(f"scores must be finite, got {score}")
    *fixed, residual = (round(score * 1_000_000) for score in every)
    return share_ppb(fixed, residual)


def parse_units(text: str, *, where: str = "amount") -> int:
    """Read a decimal amount of currency as nano units, exactly.

    >>> parse_units("0.01")
    10000000

    Raises:
        InvalidError: not a finite decimal number, or finer than one nano unit.
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise InvalidError(
            f"{where} {text!r} is not a decimal number",
            code="amount_invalid",
            fix="write it like 0.01, in units of the currency",
        ) from None
    if not value.is_finite() or abs(value) > AMOUNT_MAX // NANO:
        raise InvalidError(
            f"{where} {text!r} is out of range", code="amount_out_of_range", fix="use a finite amount below 10^29"
        )
    nano = value * NANO
    if nano != nano.to_integral_value():
        raise InvalidError(
            f"{where} {text!r} is finer than one nano unit", code="amount_too_fine", fix="use at most 9 decimals"
        )
    return int(nano)


def format_units(nano: int, *, places: int = 9) -> str:
    """Write nano units as a decimal string with `places` decimals, never rounding silently.

    Fewer than nine places are honoured only when nothing is cut off; otherwise nine are shown.

    >>> format_units(12_500_000, places=4)
    '0.0125'
    """
    sign, magnitude = ("-", -nano) if nano < 0 else ("", nano)
    whole, fraction = divmod(magnitude, NANO)
    digits = f"{fraction:09d}"
    if digits[places:].strip("0"):
        places = 9
    return f"{sign}{whole}.{digits[:places]}" if places else f"{sign}{whole}"
