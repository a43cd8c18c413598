"""What an attribution may cost, said before it starts: scored prompts, and how sure is sure enough.

Pure. Knows nothing of prices; `flow` turns passes into money.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headwater.core.errors import InvalidError
from headwater.core.limits import COALITIONS_MAX

PASSES_DEFAULT = 256
"""Every subset of eight players."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that may be spent on one answer.

    A game whose coalitions all fit is measured exactly (grade A), any other is sampled (grade B).
    """

    passes: int = PASSES_DEFAULT  # prompts scored, 2 or more when there are players
    tolerance_bits: float = 0.0  # stop when every share is known to so many bits, 95 %; 0 spends all

    def __post_init__(self) -> None:
        if not 1 <= self.passes <= COALITIONS_MAX:
            raise InvalidError(
                f"a budget of {self.passes} passes", code="budget_invalid", fix=f"use 1 to {COALITIONS_MAX} passes"
            )
        if not (math.isfinite(self.tolerance_bits) and self.tolerance_bits >= 0):
            raise InvalidError(
                f"a tolerance of {self.tolerance_bits} bits",
                code="budget_invalid",
                fix="use 0 or a few tenths of a bit",
            )
