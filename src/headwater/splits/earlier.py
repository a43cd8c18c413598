"""Who supplied an earlier answer, read from its receipt, for `headwater.attribution.pass_on`."""

from __future__ import annotations

from headwater.attribution.passing_on import Earlier
from headwater.receipts import Receipt


def earlier_answer(receipt: Receipt) -> Earlier:
    """The weights of a receipt; owners are joined by + where a contribution has several, as in a layout."""
    shares = receipt.attribution.shares
    return Earlier(
        tuple(
            (share.contribution, "+".join(sorted(owner.contributor for owner in share.owners)), share.weight_ppb)
            for share in shares
        ),
        receipt.attribution.residual_ppb,
    )
