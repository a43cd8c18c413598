"""The payouts of a receipt from its own shares: made with this when it is issued, and checked with it by a stranger."""

from __future__ import annotations

from headwater.attribution.bits import sure_and_unsure, weigh
from headwater.core.errors import InvalidError
from headwater.core.money import BPS
from headwater.receipts import Receipt, ReceiptAttribution, ReceiptPayout
from headwater.splits.measuring import ATTRIBUTION, ATTRIBUTION_ACCOUNT
from headwater.splits.policy import Policy
from headwater.splits.waterfall import Credit, Division, Findings, Payout, divide


def divide_receipt(price_units: int, account: ReceiptAttribution, policy: Policy) -> Division:
    """Divide a price by the shares that a receipt holds; shares of weight zero are not paid."""
    credits = tuple(
        Credit(share.contribution, share.weight_ppb, tuple((o.account, o.share_ppb) for o in share.owners))
        for share in account.shares
        if share.weight_ppb
    )
    findings = Findings(account.grade, credits, account.residual_ppb, account.residual_account)
    cost = attribution_units(price_units, account, policy)
    rest = divide(price_units - cost, policy, findings)
    first = (Payout(ATTRIBUTION_ACCOUNT, cost, ATTRIBUTION),) if cost else ()
    return Division(price_units, rest.pool_units, (*first, *rest.payouts))


def attribution_units(price_units: int, account: ReceiptAttribution, policy: Policy) -> int:
    """What measuring cost, as the receipt says.

    Raises:
        InvalidError: not a whole amount, or with the policy's lines above the policy's cap.
    """
    cost = dict(account.parameters).get("attribution_units", 0)
    allowed = (price_units * (policy.take_cap_bps - policy.take_bps)) // BPS  # rounded down
    if isinstance(cost, str) or not 0 <= cost <= allowed:
        raise InvalidError(
            f"measuring cost {cost} nano of a price of {price_units}; the policy's cap leaves {allowed}",
            code="attribution_overcharged",
            fix="ask the operator for a corrected receipt",
        )
    return cost


def payouts_of(division: Division) -> tuple[ReceiptPayout, ...]:
    """The payouts of a division as a receipt holds them."""
    return tuple(ReceiptPayout(p.account, p.amount_units, p.line, p.contribution_id) for p in division.payouts)


def recompute_split(receipt: Receipt, policy_text: str) -> tuple[ReceiptPayout, ...]:
    """The payouts that a receipt should have under a policy given as TOML, from its micro-bits on.

    Raises:
        InvalidError: the text is not a policy, or the receipt's weights do not follow from its bits under it.
    """
    policy = Policy.from_toml(policy_text)
    check_weights(receipt.attribution, policy)
    return payouts_of(divide_receipt(receipt.price, receipt.attribution, policy))


def check_weights(account: ReceiptAttribution, policy: Policy) -> None:
    """Refuse weights that a receipt's own bits do not give under a policy.

    Raises:
        InvalidError: ``weights_differ`` or ``policy_differs``.
    """
    # Where nothing was offered nothing was measured, and the receipt of a relayed call names no floor.
    unasked = None if account.shares or account.total_microbits else policy.evidence_floor_millibits
    floor = dict(account.parameters).get("evidence_floor_millibits", unasked)
    if (account.model_weight_ppm, floor) != (policy.model_weight_ppm, policy.evidence_floor_millibits):
        raise InvalidError(
            f"measured with model weight {account.model_weight_ppm} ppm and floor {floor} millibits",
            code="policy_differs",
            fix=f"the policy says {policy.model_weight_ppm} ppm and {policy.evidence_floor_millibits} millibits",
        )
    weights, residual = weights_of(account, policy)
    if weights != tuple(share.weight_ppb for share in account.shares) or residual != account.residual_ppb:
        raise InvalidError(
            f"the bits give weights {weights} and residual {residual}",
            code="weights_differ",
            fix="ask the operator for a corrected receipt",
        )


def weights_of(account: ReceiptAttribution, policy: Policy) -> tuple[tuple[int, ...], int]:
    """(weights of the shares, in their order; residual), in ppb, that a receipt's own bits give under a policy."""
    of_channel = {
        channel: [
            i for i, one in enumerate(account.shares) if (one.channel == "reproduced") == (channel == "reproduced")
        ]
        for channel in ("grounded", "reproduced")
    }
    grounded = [account.shares[i] for i in of_channel["grounded"]]
    sure, unsure = sure_and_unsure(
        [(s.microbits, s.low_microbits) for s in grounded],
        ["+".join(sorted(o.contributor for o in s.owners)) if s.channel == "grounded" else None for s in grounded],
    )
    weights, residual = weigh(
        sure,
        [account.shares[i].microbits for i in of_channel["reproduced"]],
        account.base_microbits,
        model_weight_ppm=policy.model_weight_ppm,
        evidence_floor_millibits=policy.evidence_floor_millibits,
        unsure=unsure,
    )
    placed = dict(zip([*of_channel["grounded"], *of_channel["reproduced"]], weights, strict=True))
    return tuple(placed[i] for i in range(len(account.shares))), residual
