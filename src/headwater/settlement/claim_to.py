"""A claim that somebody else sends: the payee signs where its money goes and what the sender may keep.

    domain  EIP712Domain(name "headwater payout", version "1", chainId, verifyingContract)
    struct  ClaimTo(address account,uint256 cumulative,address to,uint256 fee,address relayer,uint256 deadline)

The terms name one cumulative amount, so they pay once. Knows nothing of fees in gas, or of how it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.core.address import plain_address
from headwater.core.errors import InvalidError, RefusedError
from headwater.core.limits import PAYOUT_UNITS_MAX
from headwater.settlement import typed_data
from headwater.settlement.typed_data import SigningDomain

CLAIM_TO_TYPE = "ClaimTo(address account,uint256 cumulative,address to,uint256 fee,address relayer,uint256 deadline)"
_NOBODY = "0x" + "00" * 20


@dataclass(frozen=True, slots=True)
class ClaimTo:
    """What a payee agrees to."""

    account: str  # the payee's address
    cumulative: int  # token units of its leaf
    to: str  # who receives what is due, less the fee
    fee: int  # token units for the relayer
    relayer: str  # who receives the fee, whoever sends it
    deadline_s: int  # last second at which this counts, since 1970

    def __post_init__(self) -> None:
        for name in ("account", "to", "relayer"):
            object.__setattr__(self, name, plain_address(getattr(self, name)))
        if not 0 <= self.fee < self.cumulative <= PAYOUT_UNITS_MAX:
            raise InvalidError(
                f"a fee of {self.fee} on {self.cumulative} token units",
                code="claim_to_invalid",
                fix="the fee is below what is due, and that within the limits of a payee",
            )
        if self.to == _NOBODY or (self.fee and self.relayer == _NOBODY):
            raise InvalidError("nobody to pay", code="claim_to_invalid", fix="name the address that receives it")
        if not 0 < self.deadline_s < 2**63:
            raise InvalidError(
                f"a deadline of {self.deadline_s}", code="claim_to_invalid", fix="give seconds since 1970"
            )

    def digest(self, domain: SigningDomain) -> bytes:
        """The 32 bytes that the payee signs."""
        words = (
            typed_data.address_word(self.account),
            typed_data.word(self.cumulative),
            typed_data.address_word(self.to),
            typed_data.word(self.fee),
            typed_data.address_word(self.relayer),
            typed_data.word(self.deadline_s),
        )
        return typed_data.digest(domain, CLAIM_TO_TYPE, b"".join(words))


def payout_domain(chain_id: int, contract: str) -> SigningDomain:
    """Where signatures for a Payout contract count."""
    return SigningDomain("headwater payout", "1", chain_id, contract)


def sign_claim_to(terms: ClaimTo, domain: SigningDomain, key: bytes) -> bytes:
    """The payee's 65-byte signature of its terms.

    Raises:
        RefusedError: the key is not the payee's.
    """
    signature = typed_data.sign(terms.digest(domain), key)
    check_claim_to(terms, signature, domain)
    return signature


def check_claim_to(terms: ClaimTo, signature: bytes, domain: SigningDomain) -> None:
    """See that the payee signed these terms for the contract of `domain`.

    Raises:
        InvalidError: the signature is malformed.
        RefusedError: somebody else signed, or other terms.
    """
    if typed_data.signer_of(terms.digest(domain), signature) != terms.account:
        raise RefusedError(
            f"{terms.account} did not sign these terms for {domain.contract} on chain {domain.chain_id}",
            code="claim_to_not_signed",
            fix="sign the terms with the payee's key for this contract",
        )
