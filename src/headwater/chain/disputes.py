"""Stopping a wrong root: stakes, challenges, answers and proofs of fraud, through one deployment.

What is wrong with a root is found by `headwater.settlement.fraud`; this sends it. Whoever sends pays the gas and,
for a challenge, puts up a bond that the test token is minted for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headwater.chain.client import Chain, web3_address, words
from headwater.chain.sender import Sent
from headwater.core.errors import MissingError
from headwater.settlement.fraud import Fraud, Lowered, Shown

NOBODY = "0x" + "00" * 20


@dataclass(frozen=True, slots=True)
class OpenChallenge:
    """A leaf that somebody asks for."""

    challenger: str  # EIP-55
    index: int
    deadline_s: int  # seconds since 1970


class Disputes:
    """The disputes of a deployment, as one of its accounts sees them."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def bond(self) -> int:
        """Token units that a poster has staked and a challenger puts up."""
        return int(self._read("bond"))

    def staked(self) -> int:
        """Token units that the poster has staked."""
        return int(self._read("staked"))

    def owed(self, address: str) -> int:
        """Token units of bonds that `address` can withdraw."""
        return int(self._read("owed", web3_address(address)))

    def open_challenge(self) -> OpenChallenge | None:
        """The open challenge of the pending root, if there is one."""
        challenger, index, deadline_s = self._read("challenge_open")
        return None if challenger == NOBODY else OpenChallenge(challenger, index, deadline_s)

    def stake(self, amount: int) -> Sent:
        """Add token units of the signer's to the poster's stake; nothing can be posted below the bond."""
        self._chain.approve(amount, "staking")
        return self._send("stake", amount)

    def unstake(self, amount: int) -> Sent:
        """Make a part of the stake withdrawable; the signer is the poster, and no root is pending."""
        return self._send("unstake", amount)

    def withdraw(self) -> Sent:
        """Send the signer the bonds it is owed."""
        return self._send("withdraw")

    def challenge(self, epoch: int, index: int) -> Sent:
        """Ask for the leaf of an index in the pending root, with a bond; any index will do.

        Raises:
            RevertedError: the epoch is not pending, or a challenge is open.
        """
        bond = self.bond()
        if bond:
            self._chain.approve(bond, "challenging")
        return self._send("challenge", epoch, index)

    def answer(self, epoch: int, shown: Shown) -> Sent:
        """Show the leaf that was asked for; the bond joins the poster's stake.

        Raises:
            RevertedError: no challenge is open, or this is not what the root has there.
        """
        return self._send("answer", epoch, *_leaf(shown))

    def expire(self, epoch: int) -> Sent:
        """End a root whose challenge was not answered in time."""
        return self._send("expire", epoch)

    def refute(self, epoch: int, fraud: Fraud) -> Sent:
        """End the pending root by a proof of fraud.

        Raises:
            RevertedError: the epoch is not pending, or the proof does not hold.
        """
        if isinstance(fraud, Lowered):
            return self._send("refute", epoch, fraud.old.index, *_leaf(fraud.old), *_leaf(fraud.new))
        return self._send("refute_sums", epoch, fraud.depth, int.from_bytes(fraud.top, "big"))

    def pending(self) -> int:
        """The epoch whose root is pending.

        Raises:
            MissingError: none is.
        """
        epoch = self._chain.status().newest_epoch
        if epoch == 0 or self._chain.status_of(epoch) != "pending":
            raise MissingError("no root is pending", code="epoch_missing", fix="wait until an epoch is posted")
        return epoch

    def _read(self, name: str, *arguments: Any) -> Any:
        return self._chain.sender.read(self._chain.payout().functions[name](*arguments), f"reading {name}")

    def _send(self, name: str, *arguments: Any) -> Sent:
        return self._chain.sender.send(self._chain.payout().functions[name](*arguments), f"sending {name}")


def _leaf(shown: Shown) -> tuple[Any, int, list[int]]:
    return web3_address(shown.address or NOBODY), shown.amount, words(shown.path)
