"""A receipt with other owners: what a dispute holds back, hands over, or finds to be nobody's.

The measurement stays: bits are moved between names, never made. Weights follow from the bits under the receipt's own
policy, and payouts from the weights, so the new receipt passes every check that the old one passed. Pure; issuing,
logging and booking are `headwater.disputes`' and `headwater.corrections`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from headwater.core.errors import InvalidError
from headwater.core.ids import AccountId, ContributionId
from headwater.receipts import Receipt, ReceiptOwner, ReceiptShare
from headwater.splits.policy import Policy
from headwater.splits.receipt_split import divide_receipt, payouts_of, weights_of


@dataclass(frozen=True, slots=True)
class Supplier:
    """Who a share is said to be owed to."""

    contribution: ContributionId
    kind: str
    owners: tuple[ReceiptOwner, ...]


def shares_of(receipt: Receipt, contribution: ContributionId) -> tuple[ReceiptShare, ...]:
    """The shares of a contribution in a receipt; none, or one for each channel."""
    return tuple(share for share in receipt.attribution.shares if share.contribution == contribution)


def held(receipt: Receipt, contribution: ContributionId, account: AccountId, policy_text: str) -> Receipt:
    """`receipt` with whatever `contribution` earns in it paid to `account`, until somebody decides whose it is."""
    return _with(
        receipt,
        [
            replace(share, owners=tuple(replace(owner, account=account) for owner in share.owners))
            if share.contribution == contribution
            else share
            for share in receipt.attribution.shares
        ],
        policy_text,
    )


def reassigned(receipt: Receipt, contribution: ContributionId, supplier: Supplier | None, policy_text: str) -> Receipt:
    """`receipt` with the shares of `contribution` given to `supplier`, or to nobody: then the base model explains them.

    Raises:
        InvalidError: ``share_repeated``: the supplier has a share in the same channel already.
    """
    shares: list[ReceiptShare] = []
    freed = 0
    others = {(s.contribution, s.channel) for s in receipt.attribution.shares if s.contribution != contribution}
    for share in receipt.attribution.shares:
        if share.contribution != contribution:
            shares.append(share)
        elif supplier is None:
            # Copied words are part of what the base model explains already.
            freed += share.microbits if share.channel != "reproduced" else 0
        elif (supplier.contribution, share.channel) in others:
            raise InvalidError(
                f"{supplier.contribution} has a {share.channel} share of receipt {receipt.id} already",
                code="share_repeated",
                fix="dispute the share as nobody's instead",
            )
        else:
            shares.append(
                replace(share, contribution=supplier.contribution, kind=supplier.kind, owners=supplier.owners)
            )
    account = receipt.attribution
    moved = replace(account, base_microbits=account.base_microbits + freed)
    return _with(replace(receipt, attribution=moved), shares, policy_text)


def _with(receipt: Receipt, shares: Sequence[ReceiptShare], policy_text: str) -> Receipt:
    policy = Policy.from_toml(policy_text)
    account = replace(receipt.attribution, shares=tuple(shares))
    weights, residual = weights_of(account, policy)
    weighed = tuple(replace(share, weight_ppb=weight) for share, weight in zip(shares, weights, strict=True))
    account = replace(account, shares=weighed, residual_ppb=residual)
    division = divide_receipt(receipt.price, account, policy)
    return replace(receipt, attribution=account, payouts=payouts_of(division))
