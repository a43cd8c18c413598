"""EIP-712 signatures: what a wallet is asked to sign, and who signed it.

The separator of a domain is computed once and kept, so that checking a message costs three hashes and one
recovery of a public key. Signatures are 65 bytes, r | s | v with v 27 or 28 and s in the lower half of the
order, as the contracts take them. Knows nothing of what is signed, and keeps no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

from coincurve import PrivateKey, PublicKey

from headwater.core.address import plain_address
from headwater.core.errors import InvalidError
from headwater.core.keccak import keccak256

SIGNATURE_SIZE_BYTES = 65
DOMAINS_KEPT_MAX = 64
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
_DOMAIN_TYPE = keccak256(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")


@dataclass(frozen=True, slots=True)
class SigningDomain:
    """Where a signature counts: one contract on one chain."""

    name: str
    version: str
    chain_id: int
    contract: str  # address, kept in lower case

    def __post_init__(self) -> None:
        object.__setattr__(self, "contract", plain_address(self.contract))
        if not 1 <= self.chain_id < 2**64:
            raise InvalidError(
                f"chain id {self.chain_id} is not in 1..2^64-1", code="domain_invalid", fix="use the chain's EIP-155 id"
            )

    def separator(self) -> bytes:
        """The 32 bytes that every message of this domain is hashed with; computed once."""
        return _separator(self)


@lru_cache(maxsize=DOMAINS_KEPT_MAX)
def _separator(domain: SigningDomain) -> bytes:
    words = (keccak256(domain.name.encode()), keccak256(domain.version.encode()), word(domain.chain_id))
    return keccak256(_DOMAIN_TYPE + b"".join(words) + address_word(domain.contract))


@cache
def type_hash(text: str) -> bytes:
    """The hash of a struct's type, such as ``Voucher(address payer,…)``."""
    return keccak256(text.encode("ascii"))


def word(number: int) -> bytes:
    """A number as 32 bytes."""
    return number.to_bytes(32, "big")


def address_word(address: str) -> bytes:
    """An address, 0x and 40 hex digits, as 32 bytes."""
    return bytes(12) + bytes.fromhex(address[2:])


def digest(domain: SigningDomain, struct_type: str, words: bytes) -> bytes:
    """The 32 bytes that are signed for a struct whose fields are `words`, 32 bytes each."""
    return keccak256(b"\x19\x01" + domain.separator() + keccak256(type_hash(struct_type) + words))


def sign(message: bytes, key: bytes) -> bytes:
    """The 65-byte signature of a 32-byte digest by a 32-byte key."""
    raw = PrivateKey(key).sign_recoverable(message, hasher=None)
    return raw[:64] + bytes([27 + raw[64]])


def signer_of(message: bytes, signature: bytes) -> str:
    """The address, in lower case, whose key signed a 32-byte digest.

    Raises:
        InvalidError: not a signature, or one in a form that contracts refuse.
    """
    if len(signature) != SIGNATURE_SIZE_BYTES or signature[64] not in (27, 28):
        raise InvalidError(
            f"a signature has 65 bytes and ends in 27 or 28, got {len(signature)} bytes",
            code="signature_invalid",
            fix="sign the typed data with an ordinary account",
        )
    if int.from_bytes(signature[32:64], "big") > HALF_ORDER:
        raise InvalidError(
            "the signature's s is in the upper half", code="signature_invalid", fix="use s = order - s and the other v"
        )
    try:
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes([signature[64] - 27]), message, hasher=None
        ).format(compressed=False)
    except Exception:  # the library raises several kinds for numbers that are no point
        raise InvalidError(
            "no key made this signature", code="signature_invalid", fix="sign the typed data again"
        ) from None
    return "0x" + keccak256(key[1:])[12:].hex()
