"""The bit account of one answer: who explains how many of its bits.

`v(S) = sum over tokens of log2 p(token | fixed parts and S) - log2 r(token)`, in bits beyond a frozen
reference `r`. The base model's part is `v(nobody)`, a player's part its Owen value (the Shapley value
when every owner has one part), and the parts add up to `v(everybody)` per token.

Knows nothing of money: `Share.weight_ppb` is where it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Channel = Literal["grounded", "learned", "reproduced"]
Grade = Literal["A", "B", "C"]

MICRO = 1_000_000
"""Micro-bits in a bit; receipts hold micro-bits as integers."""


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
    players: int

    @property
    def exact(self) -> bool:
        """Whether the shares have no sampling error."""
        return self.grade == "A"
