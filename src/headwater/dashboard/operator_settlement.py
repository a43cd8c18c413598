"""The settlement plan of the newest closed epoch, at the gas price of the moment: push, claim or wait, payee by payee.

Nothing is sent. What is asked of the chain grows with the payees, so a large epoch is planned by the command instead.
"""

from __future__ import annotations

from typing import Any, Final

from headwater.chain.oracle import read_fees
from headwater.core.errors import MissingError, RefusedError
from headwater.core.instants import DAY_NS
from headwater.dashboard.contributor_claims import ETHER_UNITS
from headwater.settle import Settlement
from headwater.settlement.claim import plan_pushes
from headwater.settlement.planning import Due, plan

PAYEES_MAX: Final = 2_000
SHOWN: Final = 50


def plan_of(books: Settlement) -> dict[str, Any]:
    """The plan as a page shows it; amounts are token units.

    Raises:
        MissingError: no epoch has been closed.
        RefusedError: there are too many payees for a page.
    """
    epochs = books.books.epochs
    last = epochs.last()
    if last is None:
        raise MissingError("no epoch has been closed", code="epoch_missing", fix="run headwater epoch close")
    tree = books.tree(last.epoch)
    if len(tree.leaves) > PAYEES_MAX:
        raise RefusedError(
            f"epoch {last.epoch} has {len(tree.leaves)} payees", code="plan_too_large", fix="run headwater settle plan"
        )
    days = max(1, (last.closed_at_ns - epochs.all()[0].closed_at_ns) // DAY_NS)
    accounts = {payee.index: str(payee.account) for payee in epochs.payees()}
    dues = []
    on_chain = books.chain.paid_many(leaf.index for leaf in tree.leaves)
    for leaf in tree.leaves:
        paid = on_chain[leaf.index]
        if leaf.amount > paid:
            dues.append(Due(leaf.index, accounts[leaf.index], leaf.amount - paid, paid > 0, leaf.amount // days))
    posted = books.chain.root_at(last.epoch) is not None
    found = plan(
        dues,
        read_fees(books.chain.sender),
        ether_units=ETHER_UNITS,
        ranges=lambda indices: plan_pushes(tree, indices),
        posted=posted,
    )
    return {
        "epoch": last.epoch,
        "posted": posted,
        "post": found.post,
        "gas_price_wei": str(found.gas_price_wei),
        "moved_token_units": found.moved_units,
        "push_fee_wei": str(found.push_fee_wei),
        "post_fee_wei": str(found.post_fee_wei),
        "fee_share_ppb": found.share_ppb,
        "counts": {action: found.count(action) for action in ("push", "claim", "wait")},
        "payees": [
            {
                "account": one.due.account,
                "due_token_units": one.due.units,
                "action": one.action,
                "threshold_token_units": one.threshold_units,
                "days": one.days,
            }
            for one in sorted(found.decisions, key=lambda one: -one.due.units)[:SHOWN]
        ],
    }
