"""The division of answers in which nothing registered was offered: policy lines, and a residual that is all the rest.

The same arithmetic as `divide`, with everything that does not depend on the price worked out beforehand; a gateway
does this for each call it passes on. Tests hold the two together.
"""

from __future__ import annotations

from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId, ContributionId
from headwater.core.money import AMOUNT_MAX, BPS, PPB, allocate
from headwater.splits.policy import COMMONS, Policy
from headwater.splits.waterfall import RESIDUAL, Findings, divide

Paid = tuple[AccountId, int, str, ContributionId | None]
"""A payout: account, nano units (> 0), line, and no contribution."""


class ResidualSplit:
    """Divides prices of such answers under one policy."""

    __slots__ = ("_findings", "_payees", "_policy", "_shared", "_weights")

    def __init__(self, policy: Policy, residual_account: AccountId = COMMONS) -> None:
        self._policy, self._findings = policy, Findings("A", (), PPB, residual_account)
        self._shared = any(line.payees for line in policy.lines)  # a line with several payees is divided again
        self._weights = (*(line.bps for line in policy.lines), BPS - policy.take_bps)
        last = residual_account if policy.residual == "base_model" else COMMONS
        self._payees = (*((line.account, line.name) for line in policy.lines), (last, RESIDUAL))

    def payouts(self, price_units: int) -> list[Paid]:
        """Who is paid what, in policy order and then the residual; amounts of zero are left out.

        Raises:
            InvalidError: ``price_out_of_range``.
        """
        if self._shared:
            whole = divide(price_units, self._policy, self._findings)
            return [(p.account, p.amount_units, p.line, p.contribution_id) for p in whole.payouts]
        if not 0 <= price_units <= AMOUNT_MAX:
            raise InvalidError(
                f"price is {price_units} nano", code="price_out_of_range", fix="a price is from 0 to 10^38 - 1"
            )
        amounts = allocate(price_units, self._weights)
        return [
            (account, amount, line, None)
            for (account, line), amount in zip(self._payees, amounts, strict=True)
            if amount
        ]
