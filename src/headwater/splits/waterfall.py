"""The waterfall: one price becomes payouts that sum to it, to the last unit.

`allocate` is the only division: price into lines and pool, a line among those who share it, pool into
shares and residual, each share among its owners. Anyone with the receipt and the policy can do it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.core.errors import InvalidError, InvariantError
from headwater.core.ids import AccountId, ContributionId
from headwater.core.money import AMOUNT_MAX, BPS, PPB, allocate
from headwater.splits.policy import COMMONS, Policy

CONTRIBUTORS = "contributors"
"""Line name of what contributors earn from the pool."""

RESIDUAL = "residual"
"""Line name of what nobody registered supplied."""

GRADE_DISCOUNT = "grade_discount"
"""Line name of what a poorer measurement leaves to the commons."""


@dataclass(frozen=True, slots=True)
class Credit:
    """One contribution's weight in an answer, and the accounts that share it."""

    contribution_id: ContributionId
    weight_ppb: int  # 0..10^9; the weights and the residual of an answer sum to 10^9
    owners: tuple[tuple[AccountId, int], ...]  # (account, share_ppb), shares sum to 10^9


@dataclass(frozen=True, slots=True)
class Findings:
    """What an attribution says that matters for money."""

    grade: str
    credits: tuple[Credit, ...]
    residual_ppb: int
    residual_account: AccountId  # whom a `base_model` residual is paid to


@dataclass(frozen=True, slots=True)
class Payout:
    """Decided, not yet booked: an amount for one account and the line it comes from."""

    account: AccountId
    amount_units: int  # > 0
    line: str
    contribution_id: ContributionId | None = None


@dataclass(frozen=True, slots=True)
class Division:
    """A divided price. ``sum(p.amount_units for p in payouts) == price_units``, always."""

    price_units: int
    pool_units: int  # what was left for contributors after the lines
    payouts: tuple[Payout, ...]


def divide(price_units: int, policy: Policy, findings: Findings) -> Division:
    """Divide a price under a policy.

    Args:
        price_units: nano units the caller paid, 0..10^38-1.
        policy: the policy in force; all its lines are cut from the price.
        findings: the shares of the answer.

    Returns:
        Payouts in policy order, those of a line in the order of its payees, then contributions in the order given,
        then the residual. Amounts of zero are left out.

    Raises:
        InvalidError: price out of range, or weights or owner shares that do not sum to 10^9.
    """
    _check(price_units, findings)
    *line_amounts, pool = allocate(price_units, [line.bps for line in policy.lines] + [BPS - policy.take_bps])
    payouts: list[Payout] = []
    for line, amount in zip(policy.lines, line_amounts, strict=True):
        accounts, parts = zip(*(line.payees or ((line.account, PPB),)), strict=True)
        payouts += [
            Payout(account, units, line.name) for account, units in zip(accounts, allocate(amount, parts), strict=True)
        ]
    weights = [credit.weight_ppb for credit in findings.credits]
    *share_amounts, residual = allocate(pool, [*weights, findings.residual_ppb])
    discount_bps = policy.discount_bps(findings.grade)
    discounted = 0
    for credit, share in zip(findings.credits, share_amounts, strict=True):
        kept, cut = allocate(share, [BPS - discount_bps, discount_bps])
        discounted += cut
        accounts, ppb = zip(*credit.owners, strict=True)
        payouts += [
            Payout(account, amount, CONTRIBUTORS, credit.contribution_id)
            for account, amount in zip(accounts, allocate(kept, ppb), strict=True)
        ]
    payouts.append(Payout(COMMONS, discounted, GRADE_DISCOUNT))
    payouts.append(
        Payout(findings.residual_account if policy.residual == "base_model" else COMMONS, residual, RESIDUAL)
    )
    paid = tuple(payout for payout in payouts if payout.amount_units)
    if sum(payout.amount_units for payout in paid) != price_units:
        raise InvariantError(f"payouts do not sum to the price of {price_units} nano", code="split_not_exact")
    return Division(price_units, pool, paid)


def _check(price_units: int, findings: Findings) -> None:
    if not 0 <= price_units <= AMOUNT_MAX:
        raise InvalidError(
            f"price is {price_units} nano", code="price_out_of_range", fix="a price is from 0 to 10^38 - 1 nano units"
        )
    _sums_to_whole("weights and residual", [c.weight_ppb for c in findings.credits] + [findings.residual_ppb])
    for credit in findings.credits:
        _sums_to_whole(f"owner shares of {credit.contribution_id}", [ppb for _, ppb in credit.owners])


def _sums_to_whole(what: str, parts_ppb: Sequence[int]) -> None:
    if sum(parts_ppb) != PPB or min(parts_ppb) < 0:
        raise InvalidError(
            f"{what} sum to {sum(parts_ppb)} ppb",
            code="shares_not_whole",
            fix="non-negative parts must sum to 10^9 ppb",
        )
