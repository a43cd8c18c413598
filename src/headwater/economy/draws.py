"""Randomness by counter: every draw is a hash of (seed, day, purpose, who), never of what was drawn before.

So a draw does not depend on the order or the number of threads in which agents are visited, and two
scenarios with the same seed meet the same luck (common random numbers): their difference is due to the
rules and needs far fewer seeds than two independent runs.

Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014, the SplitMix64 finaliser;
used here as a hash of a counter rather than as a sequence.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.economy.compiled import Float64s, Int64s, Whole, compiled

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11), np.uint64(32)
_LOW32 = np.uint64(0xFFFFFFFF)
_UNIT = 2.0**-53

# Purposes: what a draw is for. Numbers are part of a run's identity; append, never renumber.
CALL_COUNT, CALL, POPULATION, SUPPLY, CLAIM, COORDINATOR, RAIL, ATTACK, ENTRY, RETRIEVE, ERROR, AUDIT = range(1, 13)


@compiled
def mix(x: np.uint64) -> np.uint64:
    """A bijection of 64 bits in which every input bit moves about half of the output bits."""
    x = (x ^ (x >> _S30)) * _FIRST
    x = (x ^ (x >> _S27)) * _SECOND
    return x ^ (x >> _S31)


@compiled
def stream(seed: int, step: int, purpose: int) -> np.uint64:
    """The key of all draws of one purpose on one day of one run."""
    key = mix(np.uint64(seed) + GOLDEN)
    key = mix(key + np.uint64(step) * GOLDEN + np.uint64(1))
    return mix(key + np.uint64(purpose) * GOLDEN + np.uint64(2))


def key_of(seed: int, step: int, purpose: int) -> np.uint64:
    """`stream` for callers outside kernels, where a compiled function gives back a plain `int`."""
    return np.uint64(stream(seed, step, purpose))


@compiled
def bits(key: np.uint64, counter: Whole) -> np.uint64:
    """64 random bits for draw number `counter` >= 0 of a stream."""
    return mix(key + np.uint64(counter) * GOLDEN)


@compiled
def uniform(key: np.uint64, counter: Whole) -> float:
    """A float strictly between 0 and 1."""
    return (np.float64(bits(key, counter) >> _S11) + 0.5) * _UNIT


@compiled
def below(key: np.uint64, counter: Whole, n: Whole) -> Whole:
    """A whole number from 0 to n - 1, for n < 2^32; the bias is below n / 2^32."""
    return np.int64(((bits(key, counter) >> _S32) * np.uint64(n)) >> _S32)


@compiled
def poisson(u: float, mean: float) -> Whole:
    """The Poisson quantile of `u`: exact by summation up to a mean of 40, by the normal beyond."""
    if mean <= 0.0:
        return 0
    if mean > 40.0:
        return max(0, math.floor(mean + math.sqrt(mean) * normal(u) + 0.5))
    term = math.exp(-mean)
    total, k = term, 0
    while u > total and k < 200:
        k += 1
        term *= mean / k
        total += term
    return k


@compiled
def normal(u: float) -> float:
    """The standard normal quantile of `u`, to 4.5e-4.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, formula 26.2.23.
    """
    tail = u if u < 0.5 else 1.0 - u
    t = math.sqrt(-2.0 * math.log(tail))
    z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)))
    return -z if u < 0.5 else z


@compiled
def exponential(word: np.uint64) -> float:
    """A draw from the exponential law of mean 1: -ln of 53 bits, to 1e-9, in plain arithmetic only.

    No library logarithm is called, so the bits are the same on every machine, and it is twice as fast.
    """
    x = (np.float64(word >> _S11) + 0.5) * _UNIT
    raw = np.float64(x).view(np.int64)
    exponent = (raw >> np.int64(52)) - np.int64(1023)
    mantissa = np.int64((raw & np.int64(0xFFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000)).view(np.float64)
    if mantissa > 1.4142135623730951:
        mantissa *= 0.5
        exponent += 1
    s = (mantissa - 1.0) / (mantissa + 1.0)
    q = s * s
    series = 2.0 * s * (1.0 + q * (1.0 / 3.0 + q * (0.2 + q * (1.0 / 7.0 + q * (1.0 / 9.0)))))
    return -(exponent * 0.6931471805599453 + series)


@compiled
def shuffle(key: np.uint64, n: int) -> Int64s:
    """A random order of 0..n-1 (Fisher-Yates)."""
    order = np.arange(n)
    for i in range(n - 1, 0, -1):
        j = below(key, i, i + 1)
        order[i], order[j] = order[j], order[i]
    return order


ALIAS = np.dtype([("chance", np.uint32), ("other", np.int32)])
"""One slot of a table for weighted draws: keep it below `chance` (in 2^-32), else take `other`."""

Table = NDArray[Any]
"""(n,) of `ALIAS`."""


@compiled
def alias_table(weights: Float64s, table: Table) -> float:
    """Fill a table from which an index is drawn in proportion to its weight, in constant time.

    Source: Walker's alias method, in the construction of Vose, 1991.

    Args:
        weights: (n,) non-negative; all zero makes every draw index 0.
        table: (n,) filled; chances are rounded to 2^-32.

    Returns:
        The sum of the weights.
    """
    n = weights.size
    total = 0.0
    for i in range(n):
        total += weights[i]
    if total <= 0.0:
        for i in range(n):
            table[i].chance, table[i].other = np.uint32(0), np.int32(0)
        return 0.0
    chance, work = np.empty(n), np.empty(n, np.int32)
    small, large = 0, n
    for i in range(n):
        chance[i] = weights[i] * n / total
        table[i].other = i
        if chance[i] < 1.0:
            work[small] = i
            small += 1
        else:
            large -= 1
            work[large] = i
    # Small entries are taken from the front as they come, large ones from the back.
    front, back = 0, large
    while front < small and back < n:
        lean, rich = work[front], work[back]
        front += 1
        table[lean].other = rich
        chance[rich] -= 1.0 - chance[lean]
        if chance[rich] < 1.0:
            # The rich one has become lean; the slot of the work list that was just freed is the next lean one.
            back += 1
            front -= 1
            work[front] = rich
    for k in range(front, small):
        chance[work[k]] = 1.0
    for k in range(back, n):
        chance[work[k]] = 1.0
    for i in range(n):
        table[i].chance = np.uint32(min(chance[i] * 4294967296.0, 4294967295.0))
    return total


@compiled
def pick(word: np.uint64, table: Table) -> Whole:
    """Draw an index from a table with one 64-bit word: the high half chooses the slot, the low half the side."""
    slot = np.int64(((word >> _S32) * np.uint64(table.size)) >> _S32)
    entry = table[slot]
    # Arithmetic instead of a branch: the side cannot be predicted, and a wrong guess would wait for memory twice.
    other = np.int64(entry.other)
    keep = np.int64(np.uint32(word & _LOW32) < entry.chance)
    return other + (slot - other) * keep
