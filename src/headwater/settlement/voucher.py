"""A payer's promise to a payee: how much it may have had in all. Money without a transaction.

Amounts are cumulative for one payer and one payee, in token units, so only the newest voucher counts and a lost
or repeated one does no harm. `Credit.vy` pays them; a gateway checks one for each request with `check`.

    domain  EIP712Domain(name "headwater credit", version "1", chainId, verifyingContract)
    struct  Voucher(address payer,address payee,uint256 cumulative)

Knows nothing of balances, of what has been closed, or of where vouchers are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from headwater.core.address import plain_address
from headwater.core.canonical import Json
from headwater.core.errors import InvalidError, RefusedError
from headwater.settlement import typed_data
from headwater.settlement.typed_data import SigningDomain

SCHEMA = "headwater.voucher/1"
VOUCHER_TYPE = "Voucher(address payer,address payee,uint256 cumulative)"
CUMULATIVE_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Voucher:
    """`payee` may have had `cumulative` token units from `payer` since the beginning."""

    payer: str  # address, kept in lower case
    payee: str  # address, kept in lower case
    cumulative: int  # token units, 1..2^64-1

    def __post_init__(self) -> None:
        object.__setattr__(self, "payer", plain_address(self.payer))
        object.__setattr__(self, "payee", plain_address(self.payee))
        if not 1 <= self.cumulative <= CUMULATIVE_MAX:
            raise InvalidError(
                f"a voucher over {self.cumulative} token units",
                code="voucher_invalid",
                fix=f"use 1..{CUMULATIVE_MAX}, cumulative since the first voucher",
            )

    def digest(self, domain: SigningDomain) -> bytes:
        """The 32 bytes that the payer signs."""
        words = typed_data.address_word(self.payer) + typed_data.address_word(self.payee)
        return typed_data.digest(domain, VOUCHER_TYPE, words + typed_data.word(self.cumulative))

    def typed(self, domain: SigningDomain) -> Json:
        """What a wallet is asked to sign, as ``eth_signTypedData_v4`` takes it."""
        return {
            "types": {
                "EIP712Domain": [
                    {"name": "name", "type": "string"},
                    {"name": "version", "type": "string"},
                    {"name": "chainId", "type": "uint256"},
                    {"name": "verifyingContract", "type": "address"},
                ],
                "Voucher": [
                    {"name": "payer", "type": "address"},
                    {"name": "payee", "type": "address"},
                    {"name": "cumulative", "type": "uint256"},
                ],
            },
            "primaryType": "Voucher",
            "domain": {
                "name": domain.name,
                "version": domain.version,
                "chainId": domain.chain_id,
                "verifyingContract": domain.contract,
            },
            "message": {"payer": self.payer, "payee": self.payee, "cumulative": str(self.cumulative)},
        }


@dataclass(frozen=True, slots=True)
class SignedVoucher:
    """A voucher with its payer's signature, which need not be right: see `check`."""

    voucher: Voucher
    signature: bytes  # 65, r | s | v

    def as_json(self) -> Json:
        """The voucher as JSON, amounts as decimal strings."""
        return {
            "schema": SCHEMA,
            "payer": self.voucher.payer,
            "payee": self.voucher.payee,
            "cumulative_token_units": str(self.voucher.cumulative),
            "signature": "0x" + self.signature.hex(),
        }

    @classmethod
    def from_json(cls, value: Json) -> SignedVoucher:
        """Read what `as_json` wrote.

        Raises:
            InvalidError: another schema, a missing field, or a value out of range.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ValueError(f"schema {value['schema']!r}")
            voucher = Voucher(value["payer"], value["payee"], int(value["cumulative_token_units"]))
            signature = bytes.fromhex(value["signature"].removeprefix("0x"))
            if len(signature) != typed_data.SIGNATURE_SIZE_BYTES:
                raise ValueError(f"a signature of {len(signature)} bytes")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidError(
                f"not a voucher: {error}", code="voucher_invalid", fix="send it as the payer signed it"
            ) from None
        return cls(voucher, signature)

    def compact(self) -> tuple[str, int, int, int]:
        """Payer, cumulative, r and s with v in its highest bit (EIP-2098), as `Credit.close` takes them."""
        r, s = int.from_bytes(self.signature[:32], "big"), int.from_bytes(self.signature[32:64], "big")
        return self.voucher.payer, self.voucher.cumulative, r, s | (self.signature[64] - 27) << 255


def credit_domain(chain_id: int, contract: str) -> SigningDomain:
    """Where vouchers of a Credit contract count."""
    return SigningDomain("headwater credit", "1", chain_id, contract)


def sign_voucher(voucher: Voucher, domain: SigningDomain, key: bytes) -> SignedVoucher:
    """Sign a voucher with the payer's 32-byte key.

    Raises:
        RefusedError: the key is not the payer's.
    """
    signed = SignedVoucher(voucher, typed_data.sign(voucher.digest(domain), key))
    check(signed, domain)
    return signed


def check(signed: SignedVoucher, domain: SigningDomain) -> None:
    """See that the payer signed this voucher for the contract of `domain`.

    Raises:
        InvalidError: the signature is malformed.
        RefusedError: somebody else signed it, or it was signed for another contract, chain, payee or amount.
    """
    signer = typed_data.signer_of(signed.voucher.digest(domain), signed.signature)
    if signer != signed.voucher.payer:
        raise RefusedError(
            f"the voucher of {signed.voucher.payer} was not signed by it for {domain.contract} on chain"
            f" {domain.chain_id}",
            code="voucher_not_signed",
            fix="sign the voucher with the payer's key for this contract",
        )
