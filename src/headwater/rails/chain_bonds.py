"""Bonds on the chain: the Bond contract as a `BondBook`, with what owners of stakes and deciders do beside it.

Accounts are addresses and units are millionths of the token. Which duties a key has is decided by the contract.
"""

from __future__ import annotations

from typing import Any

from headwater.core.errors import MissingError
from headwater.rails.bond_book import SLASH_STATES, Role, Slash, SlashRequest, Stake
from headwater.rails.digests import digest_bytes, digest_text
from headwater.rails.seams import ContractHandle, Contracts


class ChainBonds:
    """One Bond contract, seen by one account."""

    def __init__(self, contracts: Contracts, address: str) -> None:
        self._contracts, self._unit = contracts, contracts.token_unit
        self._bond: ContractHandle = contracts.at("Bond", address)

    @classmethod
    def deploy(
        cls,
        contracts: Contracts,
        *,
        guardian: str,
        slasher: str,
        arbiter: str,
        unbond_s: int,
        slash_s: int,
        appeal_s: int,
        owner: str | None = None,
    ) -> ChainBonds:
        """Deploy one in the token of the deployment.

        Args:
            slasher: asks for slashes: who carries out decisions of review and disputes.
            arbiter: decides appeals; never the slasher.
            unbond_s: seconds between asking a stake back and taking it; longer than a decision takes.
            slash_s: seconds to appeal.
            appeal_s: seconds the arbiter has.

        Raises:
            RevertedError: a role or delay that the contract refuses.
        """
        owner = owner or contracts.me
        made = contracts.create("Bond", contracts.token, owner, guardian, slasher, arbiter, unbond_s, slash_s, appeal_s)
        return cls(contracts, made.address)

    @property
    def address(self) -> str:
        """Of the contract."""
        return self._bond.address

    def stake_of(self, account: str, role: Role) -> Stake:
        """All there is to know of a stake."""
        amount, frozen, asked, due = self._bond.read("stakes", account, int(role))
        return Stake(amount // self._unit, frozen // self._unit, asked // self._unit, due)

    def staked(self, account: str, role: Role) -> int:
        """Millionths that `account` is sure to answer with."""
        return int(self._bond.read("staked", account, int(role))) // self._unit

    def stake(self, account: str, role: Role, units: int) -> Any:
        """Stake millionths of the signer's for an account, approving them first."""
        self._contracts.approve(units, self.address)
        return self._bond.send("stake", account, int(role), units * self._unit)

    def ask_back(self, role: Role, units: int) -> Any:
        """Announce that the signer takes a stake back; 0 withdraws that."""
        return self._bond.send("ask_back", int(role), units * self._unit)

    def take_back(self, role: Role, to: str | None = None) -> int:
        """Send the signer what it asked back and no slash has frozen; gives millionths."""
        sent = self._bond.send("take_back", int(role), to or self._contracts.me)
        return int(self._bond.told("TakenBack", sent)[0]["amount"]) // self._unit

    def slash(self, request: SlashRequest) -> Slash:
        """Freeze the amount and start the time to appeal; the signer is the slasher.

        Raises:
            RevertedError: not the slasher, or more than is staked and not frozen.
        """
        sent = self._bond.send(
            "slash",
            request.account,
            int(request.role),
            request.units * self._unit,
            request.to,
            digest_bytes(request.reason),
        )
        return self.slash_of(self._bond.told("SlashAsked", sent)[0]["id"])

    def slash_of(self, id: int) -> Slash:
        """A slash, as the contract has it.

        Raises:
            MissingError: there is none of that number.
        """
        account, role, amount, to, reason, until, status = self._bond.read("slashes", id)
        if status == 0:
            raise MissingError(f"no slash {id}", code="slash_missing", fix="see `headwater rails bond show`")
        request = SlashRequest(account, Role(role), amount // self._unit, to, digest_text(reason))
        return Slash(id, request, SLASH_STATES[status - 1], until)

    def slashes(self) -> tuple[Slash, ...]:
        """Every slash there was, oldest first."""
        return tuple(self.slash_of(id) for id in range(1, int(self._bond.read("slash_count")) + 1))

    def appeal(self, id: int) -> Any:
        """Take a slash of the signer's to the arbiter."""
        return self._bond.send("appeal", id)

    def decide(self, id: int, *, upheld: bool) -> Any:
        """End an appeal; the signer is the arbiter."""
        return self._bond.send("decide", id, upheld)

    def finish(self, id: int) -> Slash:
        """End a slash whose time is over, whoever the signer is."""
        self._bond.send("finish", id)
        return self.slash_of(id)

    def release(self, id: int) -> Any:
        """Take a slash back; the signer is the slasher."""
        return self._bond.send("release", id)

    def owed(self, account: str) -> int:
        """Millionths that slashes have brought an account."""
        return int(self._bond.read("owed", account)) // self._unit

    def withdraw(self, to: str | None = None) -> Any:
        """Send the signer what slashes have brought it."""
        return self._bond.send("withdraw", to or self._contracts.me)

    def status(self) -> dict[str, Any]:
        """Roles, delays in seconds, and millionths held."""
        unbond_s, slash_s, appeal_s = self._bond.read("delays")
        return {
            "address": self.address,
            "slasher": self._bond.read("slasher"),
            "arbiter": self._bond.read("arbiter"),
            "owner": self._bond.read("owner"),
            "guardian": self._bond.read("guardian"),
            "unbond_s": unbond_s,
            "slash_s": slash_s,
            "appeal_s": appeal_s,
            "held_token_units": str(int(self._bond.read("total")) // self._unit),
            "slashes": int(self._bond.read("slash_count")),
        }
