"""Revenue shares: issuing them, who holds them, what they have earned, and collecting it.

The contract's address is the payee: enrol the contributor that owns a datanet or an adapter with it, and claims and
pushes reach the holders. Shares are whole numbers, money is millionths of the token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwater.core.canonical import digest_of
from headwater.rails.digests import digest_bytes
from headwater.rails.manifest import Issued
from headwater.rails.seams import Contracts

_NOBODY = "0x" + "00" * 20


@dataclass(frozen=True, slots=True)
class Holding:
    """What one holder has."""

    holder: str  # EIP-55
    shares: int
    collectable_units: int  # millionths of the token


@dataclass(frozen=True, slots=True)
class Backing:
    """Who stands behind a payee: the share-holders' line of a statement or a receipt."""

    subject: str
    address: str  # the payee
    supply: int
    received_units: int  # millionths that ever arrived
    collected_units: int
    holders: tuple[Holding, ...]  # most shares first

    def as_json(self) -> dict[str, Any]:
        """For a statement: amounts as decimal strings, parts in parts per billion."""
        return {
            "subject": self.subject,
            "payee": self.address,
            "supply": self.supply,
            "received_token_units": str(self.received_units),
            "collected_token_units": str(self.collected_units),
            "holders": [
                {
                    "holder": one.holder,
                    "shares": one.shares,
                    "part_ppb": one.shares * 10**9 // self.supply,
                    "collectable_token_units": str(one.collectable_units),
                }
                for one in self.holders
            ],
        }


class RevenueShares:
    """One RevenueShare contract, seen by one account."""

    def __init__(self, contracts: Contracts, issued: Issued, start_block: int = 0) -> None:
        self._contracts, self.issued, self._start = contracts, issued, start_block
        self._share = contracts.at("RevenueShare", issued.address)
        self._unit = contracts.token_unit

    @classmethod
    def issue(
        cls, contracts: Contracts, *, subject: str, name: str, symbol: str, supply: int, terms: str = "", to: str = ""
    ) -> RevenueShares:
        """Make all shares of a subject there will ever be.

        Args:
            subject: id of whose income it is.
            supply: whole shares.
            terms: digest of what is promised to holders.
            to: who has them at first; the signer by default.

        Raises:
            RevertedError: no shares, or more than the contract counts.
        """
        if terms:
            digest_bytes(terms)
        start = contracts.height()
        bound = digest_bytes(digest_of({"subject": subject, "terms": terms}))
        made = contracts.create("RevenueShare", contracts.token, to or contracts.me, supply, bound, name, symbol)
        return cls(contracts, Issued(subject, made.address, name, symbol, supply, terms), start)

    def holdings(self) -> tuple[Holding, ...]:
        """Everybody who holds shares or has something to collect, most shares first; from the shares' transfers."""
        shares: dict[str, int] = {}
        for log in self._share.history("Transfer", self._start):
            shares[log["sender"]] = shares.get(log["sender"], 0) - log["value"]
            shares[log["receiver"]] = shares.get(log["receiver"], 0) + log["value"]
        shares.pop(_NOBODY, None)
        rows = [Holding(who, held, self.collectable(who)) for who, held in shares.items()]
        return tuple(
            sorted(
                (row for row in rows if row.shares or row.collectable_units), key=lambda row: (-row.shares, row.holder)
            )
        )

    def backing(self) -> Backing:
        """Who stands behind the payee now."""
        return Backing(
            self.issued.subject,
            self.issued.address,
            self.issued.supply,
            int(self._share.read("received")) // self._unit,
            int(self._share.read("collected")) // self._unit,
            self.holdings(),
        )

    def balance(self, holder: str) -> int:
        """Whole shares."""
        return int(self._share.read("balanceOf", holder))

    def collectable(self, holder: str) -> int:
        """Millionths that a holder could collect now."""
        return int(self._share.read("collectable", holder)) // self._unit

    def transfer(self, to: str, shares: int) -> Any:
        """Give shares of the signer's away; what they have earned stays the signer's."""
        return self._share.send("transfer", to, shares)

    def collect(self, holder: str | None = None, *, to: str | None = None) -> int:
        """Send a holder what it has earned, or the signer's own to another address; gives millionths.

        Raises:
            RevertedError: nothing is due, or the token refuses the payee.
        """
        sent = (
            self._share.send("collect", holder or self._contracts.me)
            if to is None
            else self._share.send("collect_to", to)
        )
        return int(self._share.told("Collected", sent)[0]["amount"]) // self._unit

    def share_out(self) -> int:
        """Count what has arrived; gives millionths of new income."""
        told = self._share.told("Received", self._share.send("share_out"))
        return int(told[0]["amount"]) // self._unit if told else 0
