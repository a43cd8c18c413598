"""What measuring a call may cost, known before the call: passes, the tokens they read, and a price for each.

The cost is a line of its own on the receipt, taken off the price before the policy divides the rest, and with
the policy's lines it stays under the policy's cap. Without a price for a scored token measuring is paid
from the policy's own lines and only the number of passes is limited.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.attribution.budget import PASSES_DEFAULT
from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId
from headwater.core.limits import COALITIONS_MAX
from headwater.core.money import BPS
from headwater.splits.policy import Policy

ATTRIBUTION = "attribution"
"""Line name of what measuring the shares costs."""

ATTRIBUTION_ACCOUNT = AccountId("operator:attribution")
PASSES_MIN = 2  # everybody and nobody: below this nothing is measured and nothing is charged


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be spent on one answer."""

    passes: int  # 0: nothing is measured, the pool is the residual's
    passes_wanted: int  # what an exact account needs
    cost_units: int  # nano units, part of the price


UNMEASURED = Plan(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Measuring:
    """What the operator allows."""

    max_passes: int = PASSES_DEFAULT
    max_cost_bps: int = 0  # of the price of the call without measuring
    scored_token_units: int = 0  # nano units for a token read while measuring; 0: not charged apart

    def __post_init__(self) -> None:
        if not (
            PASSES_MIN <= self.max_passes <= COALITIONS_MAX
            and 0 <= self.max_cost_bps <= BPS
            and self.scored_token_units >= 0
        ):
            raise InvalidError(
                f"max_passes {self.max_passes}, max_cost_bps {self.max_cost_bps}, "
                f"{self.scored_token_units} nano a scored token",
                code="measuring_invalid",
                fix=f"use {PASSES_MIN} to {COALITIONS_MAX} passes, 0 to {BPS} bps and a price of 0 or more",
            )

    def limit_units(self, price_units: int, policy: Policy) -> int:
        """The most that measuring may add to a price, under the operator's limit and the policy's cap."""
        if not self.scored_token_units:
            return 0
        return price_units * min(self.max_cost_bps, policy.take_cap_bps - policy.take_bps) // BPS  # rounded down

    def plan(
        self, *, players: int, fixed_tokens: int, player_tokens: int, answer_tokens: int, limit_units: int
    ) -> Plan:
        """Passes and cost of one answer; a player is there in half of the passes.

        >>> Measuring(64, 900, 10).plan(
        ...     players=6, fixed_tokens=60, player_tokens=600, answer_tokens=40, limit_units=200_000)
        Plan(passes=50, passes_wanted=64, cost_units=200000)
        """
        wanted = min(1 << players, COALITIONS_MAX)
        passes = min(wanted, self.max_passes)
        each = (fixed_tokens + -(-player_tokens // 2) + answer_tokens) * self.scored_token_units
        if each:
            passes = min(passes, limit_units // each)
        needed = min(PASSES_MIN, wanted)
        passes = passes if passes >= needed else 0
        return Plan(passes, wanted, passes * each)


MEASURING = Measuring()
"""Measured exactly up to eight players, paid from the policy's lines."""
