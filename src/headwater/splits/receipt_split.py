"""The payouts of a receipt from its own shares: made with this when it is issued, and checked with it by a stranger."""

from __future__ import annotations

from headwater.receipts import Receipt, ReceiptAttribution, ReceiptPayout
from headwater.splits.policy import Policy
from headwater.splits.waterfall import Credit, Division, Findings, divide


def divide_receipt(price_units: int, account: ReceiptAttribution, policy: Policy) -> Division:
    """Divide a price by the shares that a receipt holds; shares of weight zero are not paid."""
    credits = tuple(
        Credit(share.contribution, share.weight_ppb, tuple((o.account, o.share_ppb) for o in share.owners))
        for share in account.shares
        if share.weight_ppb
    )
    return divide(price_units, policy, Findings(account.grade, credits, account.residual_ppb, account.residual_account))


def payouts_of(division: Division) -> tuple[ReceiptPayout, ...]:
    """The payouts of a division as a receipt holds them."""
    return tuple(ReceiptPayout(p.account, p.amount_units, p.line, p.contribution_id) for p in division.payouts)


def recompute_split(receipt: Receipt, policy_text: str) -> tuple[ReceiptPayout, ...]:
    """The payouts that a receipt should have under a policy given as TOML.

    Raises:
        InvalidError: the text is not a policy, or the receipt's shares are not a whole.
    """
    return payouts_of(divide_receipt(receipt.price, receipt.attribution, Policy.from_toml(policy_text)))
