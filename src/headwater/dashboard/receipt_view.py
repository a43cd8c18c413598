"""A receipt as people read it: where each unit of the price went, by which rule, and what a browser needs to check it.

Plain data out of a receipt, its policy and an epoch's proofs. Knows nothing of HTTP or of who may see it.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from headwater.core.errors import HeadwaterError, MissingError
from headwater.dashboard.figures import money
from headwater.dashboard.sankey import Flow, Node, Sankey, sankey
from headwater.dashboard.site import Site
from headwater.dashboard.strings import say
from headwater.gateway.native import proof_json
from headwater.receipts import Receipt
from headwater.splits import COMMONS, Policy
from headwater.splits.waterfall import CONTRIBUTORS, GRADE_DISCOUNT, RESIDUAL
from headwater.store.receipt_log import LoggedReceipt

DRAWN_MAX: Final = 10
"""Contributions and people that are drawn one by one; the rest are one band."""

_SAID: Final = {
    CONTRIBUTORS: "receipt.rule_contributors",
    RESIDUAL: "receipt.rule_residual",
    GRADE_DISCOUNT: "receipt.rule_grade_discount",
    "attribution": "receipt.rule_attribution",
}


def account_name(account: str, names: Mapping[str, str]) -> str:
    """An account as people call it."""
    kind, _, name = account.partition(":")
    if kind in ("contributor", "escrow"):
        return names.get(name, name)
    if account == COMMONS:
        return say("receipt.commons")
    return name or account


def lines(receipt: Receipt, policy: Policy | None) -> list[dict[str, Any]]:
    """Every line that the price went to, in the order of the receipt, with its rule in words."""
    units: defaultdict[str, int] = defaultdict(int)
    accounts: defaultdict[str, list[str]] = defaultdict(list)
    for payout in receipt.payouts:
        units[payout.line] += payout.amount
        if payout.account not in accounts[payout.line]:
            accounts[payout.line].append(payout.account)
    rules = {} if policy is None else {line.name: line for line in policy.lines}
    return [
        {
            "name": name,
            "units": amount,
            "ppb": amount * 10**9 // max(1, receipt.price),
            "rule": say(_SAID[name]) if name in _SAID else rules[name].rule if name in rules else "",
            "bps": rules[name].bps if name in rules else None,
            "accounts": accounts[name],
        }
        for name, amount in units.items()
    ]


def drawing(receipt: Receipt, titles: Mapping[str, str], names: Mapping[str, str]) -> Sankey:
    """The price from the payer through every line to people."""
    flows: defaultdict[tuple[str, str], int] = defaultdict(int)
    nodes = {"payer": Node(say("receipt.payer"), "c0")}
    earned: defaultdict[str, int] = defaultdict(int)
    for payout in receipt.payouts:
        if payout.contribution is not None:
            earned[payout.contribution] += payout.amount
    drawn = set(sorted(earned, key=lambda one: (-earned[one], one))[:DRAWN_MAX])
    paid: defaultdict[str, int] = defaultdict(int)
    for payout in receipt.payouts:
        paid[payout.account] += payout.amount
    people = set(sorted(paid, key=lambda one: (-paid[one], one))[: 2 * DRAWN_MAX])
    for payout in receipt.payouts:
        line, account = f"line:{payout.line}", f"account:{payout.account}"
        nodes[line] = Node(_label(payout.line), _tone(payout.line))
        flows["payer", line] += payout.amount
        before = line
        if payout.contribution is not None:
            known = payout.contribution in drawn
            one = f"contribution:{payout.contribution}" if known else "contribution:"
            label = titles.get(payout.contribution, payout.contribution) if known else say("receipt.other_works")
            href = f"/contributions/{payout.contribution}" if known else ""
            nodes[one] = Node(_cut(label, 26), "c2", href, amount=False)
            flows[line, one] += payout.amount
            before = one
        if payout.account == f"operator:{payout.line}":
            continue  # the line is its own end
        if payout.account not in people:
            nodes["account:"] = Node(say("receipt.other_people"), "c3")
            flows[before, "account:"] += payout.amount
            continue
        contributor = payout.account.partition(":")[2] if payout.account.startswith(("contributor:", "escrow:")) else ""
        href = f"/contributors/{contributor}" if contributor else ""
        waits = say("receipt.waits") if payout.account.startswith("escrow:") else ""
        label = _cut(account_name(payout.account, names), 20) + (f" ({waits})" if waits else "")
        nodes[account] = Node(label, "c3" if contributor else _tone(payout.line), href)
        flows[before, account] += payout.amount
    drawn_flows = [Flow(source, target, units) for (source, target), units in flows.items()]
    return sankey(
        drawn_flows,
        nodes,
        title=say("receipt.drawing", price=money(receipt.price, receipt.currency)),
        money=lambda units: money(units, receipt.currency),
        beside=345,
    )


def proof(site: Site, logged: LoggedReceipt, receipt: Receipt) -> dict[str, Any]:
    """Everything a browser checks a receipt with, as far as it exists yet."""
    found: dict[str, Any] = {
        "id": receipt.id,
        "receipt": base64.b64encode(logged.raw).decode("ascii"),
        "signature": logged.signature,
        "operator": site.flow.parts.signer.address,
        "log": proof_json(site.flow.parts.log.prove(receipt.id)),
        "epoch": None,
    }
    if site.books is None:
        return found
    try:
        bundle = site.books.bundle(receipt.id)
    except MissingError:
        return found  # its epoch has not been closed
    record = site.epochs.containing(logged.entry.index)
    found["log"] = proof_json(bundle.proof)
    found["epoch"] = {
        "number": record.epoch,
        "manifest": base64.b64encode(bundle.manifest).decode("ascii"),
        "transaction": record.transaction_hash,
        "chain": _on_chain(site, record.epoch),
        "payouts": [
            {
                "account": one.account,
                "index": one.index,
                "address": one.address,
                "amount": str(one.amount),
                "path": [node.hex() for node in one.path],
            }
            for one in bundle.payout_proofs
        ],
    }
    return found


def _on_chain(site: Site, epoch: int) -> dict[str, Any] | None:
    """What the chain holds of an epoch; None where it holds nothing or cannot be asked."""
    assert site.books is not None
    try:
        root, data_hash = site.books.chain.root_at(epoch), site.books.chain.data_hash(epoch)
    except HeadwaterError:
        return None
    return {"root": None if root is None else root.hex(), "data_hash": data_hash.hex()}


def _label(line: str) -> str:
    return line.replace("_", " ")


def _tone(line: str) -> str:
    if line == CONTRIBUTORS:
        return "c2"
    return {RESIDUAL: "base", GRADE_DISCOUNT: "residual"}.get(line, "c1")


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"
