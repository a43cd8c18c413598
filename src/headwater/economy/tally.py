"""What a day's calls are counted by; the last ones are nano units. Kept in the column ``today.tally``."""

from __future__ import annotations

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

MADE, FATE_DECLINED, FATE_UNDECIDED, FATE_OVER_BUDGET = range(4)
"""What becomes of a wish, in ``wish.fate``; only a wish that nothing stopped becomes a call."""
