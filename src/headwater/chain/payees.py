"""What a payee may do besides claiming: name a recipient, and let somebody else send its claim.

Knows nothing of gas prices: what a relayer asks for is in the terms that the payee signed.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.chain.client import Chain, Paid, web3_address, words
from headwater.chain.sender import Sent
from headwater.settlement.claim_to import ClaimTo
from headwater.settlement.tree import Proof

RECIPIENT_DELAY_S = 2 * 86_400


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who receives what an account is due."""

    now: str  # EIP-55
    named: str  # who is paid from `counts_from_s` on
    counts_from_s: int  # seconds since 1970, 0 when the account never named anybody


class Payees:
    """The payees of a deployment, as one of its accounts sees them."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def set_recipient(self, recipient: str) -> Sent:
        """Name who receives what the signer is due, from two days on; its own address undoes it."""
        call = self._chain.payout().functions.set_recipient(web3_address(recipient))
        return self._chain.sender.send(call, "naming a recipient")

    def recipient_of(self, account: str) -> Recipient:
        """Who receives what `account` is due."""
        call = self._chain.payout().functions.recipient_of(web3_address(account))
        return Recipient(*self._chain.sender.read(call, "reading a recipient"))

    def claim_to(self, epoch: int, proof: Proof, terms: ClaimTo, signature: bytes) -> Paid:
        """Send a payee's claim on its terms, whoever the signer is; `Paid.amount` includes the fee.

        Raises:
            RevertedError: nothing due, terms that the payee did not sign or that are over, a payee with a
                recipient, or a proof that does not reach the root.
        """
        leaf = proof.leaf
        call = self._chain.payout().functions.claim_to(
            epoch,
            leaf.index,
            web3_address(leaf.address),
            leaf.amount,
            words(proof.path),
            web3_address(terms.to),
            terms.fee,
            web3_address(terms.relayer),
            terms.deadline_s,
            signature,
        )
        sent = self._chain.sender.send(call, f"claiming for index {leaf.index}")
        values = self._chain.decoded("ClaimedTo", sent.logs)[0]["args"]
        return Paid(values["amount"] + values["fee"], 1, (), sent.gas_used, sent.fee_wei, sent.hash)
