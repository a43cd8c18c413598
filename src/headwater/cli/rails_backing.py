"""The share-holders' line: which payees of a home are revenue shares, read from its rails.json without the chain.

Empty for a home without rails, so statements and receipts look as before. Who holds how many shares changes from
block to block; `headwater rails shares show` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headwater.core.errors import MissingError
from headwater.core.ids import ContributorId
from headwater.rails import Issued, RailsManifest
from headwater.store.registry_store import RegistryStore

RAILS_FILE = "rails.json"
"""Beside the deployment's manifest in a home."""


def shares_behind(folder: Path, registry: RegistryStore, accounts: Iterable[str]) -> dict[str, Issued]:
    """Those of some ledger accounts whose money goes to share-holders, and to which."""
    path = folder / RAILS_FILE
    if not path.is_file():
        return {}
    by_address = {one.address.lower(): one for one in RailsManifest.load(path).shares}
    found: dict[str, Issued] = {}
    for account in dict.fromkeys(accounts):
        kind, _, owner = account.partition(":")
        if kind != "contributor":
            continue
        try:
            address = registry.contributor(ContributorId(owner)).payout_address
        except MissingError:
            continue
        if address is not None and address.lower() in by_address:
            found[account] = by_address[address.lower()]
    return found


def deployed_rails(folder: Path) -> tuple[str, ...]:
    """Names of the contracts that a home's rails are made of, for whoever verifies their sources."""
    path = folder / RAILS_FILE
    if not path.is_file():
        return ()
    manifest = RailsManifest.load(path)
    names = {
        "Bond": manifest.bond,
        "Advance": manifest.advance,
        "Lane": manifest.advance,
        "Stream": manifest.stream,
        "Governance": manifest.governance,
        "RevenueShare": manifest.shares,
    }
    return tuple(name for name, there in names.items() if there)


def backing_line(account: str, issued: Issued) -> str:
    """One line for people."""
    return (
        f"{account} is paid to the holders of {issued.supply} shares {issued.symbol} of {issued.subject} at "
        f"{issued.address}: headwater rails shares show {issued.subject}"
    )


def backing_json(issued: Issued) -> dict[str, Any]:
    """The same for programs."""
    return {
        "payee": issued.address,
        "subject": issued.subject,
        "name": issued.name,
        "symbol": issued.symbol,
        "supply": issued.supply,
        "terms": issued.terms or None,
    }
