"""The bit account of one answer: who explains how many of its bits.

`v(S) = sum over tokens of log2 p(token | fixed parts and S) - log2 r(token)`, in bits beyond a frozen
reference `r`. The base model's part is `v(nobody)`, a player's part its Owen value (the Shapley value
when every owner has one part), and the parts add up to `v(everybody)` per token.

Knows nothing of money: `Share.weight_ppb` is where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvariantError
from headwater.core.money import share_ppb

Channel = Literal["grounded", "learned", "reproduced"]
Grade = Literal["A", "B", "C"]

MICRO = 1_000_000
"""Micro-bits in a bit; receipts hold micro-bits as integers."""

STEP = 1_000
"""Micro-bits in a millibit. Bits are compared with zero and with the floor in whole millibits, to nearest: what
two runs on other numbers of threads disagree on, some millionths of a bit, cannot turn a tie over."""


@dataclass(frozen=True, slots=True)
class Share:
    """One contribution's part in an answer, as one estimator sees it."""

    part_id: str  # the contribution
    owner: str
    channel: Channel
    weight_ppb: int  # normalised; shares and residual of an answer sum to 10^9
    bits: float  # raw estimate; may be negative, never paid on
    low_bits: float  # 95 % interval; equal to `bits` when exact
    high_bits: float
    token_bits: NDArray[np.float64]  # (tokens,) sums to `bits`

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval, in bits."""
        return self.low_bits

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval, in bits."""
        return self.high_bits

    @property
    def payable(self) -> bool:
        """Whether the whole interval lies above zero: a share of which that is unsure is not paid."""
        return self.low_bits > 0 and _payable(microbits(self.bits)) > 0


@dataclass(frozen=True, slots=True)
class Attribution:
    """What supplied one answer. `base_bits` + the bits of grounded shares == `total_bits`."""

    shares: tuple[Share, ...]
    base_bits: float  # what the base model explains alone, beyond the reference
    total_bits: float
    base_token_bits: NDArray[np.float64]  # (tokens,)
    residual_ppb: int  # the part of the pool that no registered contribution earned
    grade: Grade
    passes: int  # prompts scored
    tokens: int  # answer tokens
    estimator: str
    version: str
    players: int  # after merging
    merged: tuple[tuple[str, ...], ...] = ()  # ids of parts that played as one
    copies: tuple[tuple[str, str], ...] = ()  # (copy, original): near-copies whose credit went to another owner
    seed: int = 0

    @property
    def exact(self) -> bool:
        """Whether the shares have no sampling error."""
        return self.grade == "A"


def microbits(bits: float) -> int:
    """A measured number of bits as the nearest whole number of micro-bits (ties to even).

    The one place where a measurement becomes an integer; what is paid follows from it.

    Raises:
        InvariantError: not finite, or beyond 2^53 micro-bits.

    >>> microbits(1.25)
    1250000
    """
    scaled = bits * MICRO
    if not abs(scaled) < 2**53:
        raise InvariantError(f"{bits} bits cannot be written as micro-bits", code="microbits_out_of_range")
    return round(scaled)


def weigh(
    grounded: Sequence[int],
    reproduced: Sequence[int],
    base: int,
    *,
    model_weight_ppm: int,
    evidence_floor_millibits: int,
    unsure: int = 0,
) -> tuple[tuple[int, ...], int]:
    """Weights from micro-bits, in whole numbers, so that anybody can do it again from a receipt.

    Args:
        grounded: micro-bits of the parts of the prompt; what is not positive to a millibit weighs nothing.
        reproduced: micro-bits of copied texts, which are part of `base` and are taken from it here.
        base: micro-bits of the base model.
        model_weight_ppm: what a bit of the base model weighs beside a contribution's, in millionths.
        evidence_floor_millibits: grounded parts that together explain less weigh nothing: it is noise.
        unsure: micro-bits of parts whose interval includes zero; they are not paid, and nobody else is paid for them.

    Returns:
        (weights in ppb of grounded, then reproduced parts; residual in ppb), 10^9 in all.
    """
    sure = [_payable(bits) for bits in grounded]
    enough = _millibits(sum(sure)) >= evidence_floor_millibits
    own = base - sum(reproduced)
    weights = [bits * enough * 1_000_000 for bits in sure] + [_payable(bits) * 1_000_000 for bits in reproduced]
    return share_ppb(weights, max(0, own) * model_weight_ppm + max(0, unsure) * enough * 1_000_000)


def sure_and_unsure(
    shares: Sequence[tuple[int, int]], owners: Sequence[str | None] | None = None
) -> tuple[tuple[int, ...], int]:
    """Micro-bits that may be paid on, and how many are withheld because their interval includes zero.

    What one part of an owner takes away comes off what the owner's other parts give, in proportion and rounded
    down: who cuts a text into one that harms and one that repairs is paid as for the whole text.

    Args:
        shares: (micro-bits, lower end of the interval in micro-bits) of each part.
        owners: whose each part is; None, for one or for all: nobody else's.

    >>> sure_and_unsure([(9, 3), (5, -1), (-4, -6)])
    ((9, 0, -4), 5)
    >>> sure_and_unsure([(9, 3), (6, 2), (-5, -6)], ["ann", "ann", "ann"])
    ((6, 4, -5), 0)
    """
    owners = owners or [None] * len(shares)
    given: dict[str, int] = {}
    taken: dict[str, int] = {}
    for (bits, _), owner in zip(shares, owners, strict=True):
        if owner is not None:
            side = given if bits > 0 else taken
            side[owner] = side.get(owner, 0) + bits

    def net(bits: int, owner: str | None) -> int:
        if owner is None or bits <= 0 or not taken.get(owner):
            return bits
        return bits * max(0, given[owner] + taken[owner]) // given[owner]

    left = [net(bits, owner) for (bits, _), owner in zip(shares, owners, strict=True)]
    sure = tuple(bits if low > 0 else min(0, bits) for bits, (_, low) in zip(left, shares, strict=True))
    return sure, sum(bits for bits, (_, low) in zip(left, shares, strict=True) if low <= 0 < bits)


def _millibits(microbits_: int) -> int:
    """Whole millibits, to nearest, halves up."""
    return (microbits_ + STEP // 2) // STEP


def _payable(microbits_: int) -> int:
    """The bits, or nothing when they are not positive to a millibit."""
    return microbits_ if _millibits(microbits_) > 0 else 0
