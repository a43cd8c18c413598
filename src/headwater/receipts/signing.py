"""The operator's signature on a receipt: EIP-712 over its id, call, price and policy.

The id covers every byte of the receipt; call, price and policy are signed beside it so that a wallet
can show them. The domain names no chain: a receipt holds wherever its epoch is posted. Signatures
are deterministic (RFC 6979) with low s, written as r, s, v (65 bytes) in lower-case hex after 0x;
any other form is refused, so nobody can turn one signature into a second one. Knows nothing of where keys are kept.
Source: Bloemen, Logvinov and Evans, 2017, EIP-712.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

import coincurve

from headwater.core.errors import InvalidError, InvariantError
from headwater.core.ids import ReceiptId, receipt_id
from headwater.core.keccak import keccak256
from headwater.receipts.receipt import Receipt

SIGNATURE_BYTES: Final = 65
DOMAIN_NAME: Final = "headwater"
DOMAIN_VERSION: Final = "1"
RECEIPT_TYPE: Final = "Receipt(bytes32 id,string callId,string price,bytes32 policyDigest)"

_ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_TEXT: Final = re.compile(r"0x[0-9a-f]{130}")
_DOMAIN: Final = keccak256(
    keccak256(b"EIP712Domain(string name,string version)")
    + keccak256(DOMAIN_NAME.encode())
    + keccak256(DOMAIN_VERSION.encode())
)
_PREFIX: Final = b"\x19\x01" + _DOMAIN
_RECEIPT_TYPE_HASH: Final = keccak256(RECEIPT_TYPE.encode())


class Signer(Protocol):
    """Whoever holds the operator's key: a file, a device, a service."""

    @property
    def address(self) -> str:
        """0x and 40 lower-case hex digits."""
        ...

    def sign(self, digest: bytes) -> bytes:
        """The 65 bytes r, s, v of a 32-byte digest; s is low and v is 27 or 28."""
        ...


class KeySigner:
    """Signs with a secp256k1 key held in memory."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < _ORDER:
            raise InvalidError(
                f"a signing key takes 32 bytes within the curve's order, got {len(secret)} bytes",
                code="signing_key_invalid",
                fix="make a new key file",
            )
        self._key = coincurve.PrivateKey(secret)
        self.address: str = _address(self._key.public_key)

    def __repr__(self) -> str:
        return f"KeySigner({self.address})"

    def sign(self, digest: bytes) -> bytes:
        """The 65 bytes r, s, v of a 32-byte digest; the same digest always gives the same bytes."""
        compact = self._key.sign_recoverable(digest, hasher=None)
        return compact[:64] + bytes([27 + compact[64]])


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """A receipt as it leaves the operator."""

    receipt: Receipt
    raw: bytes  # canonical bytes
    id: ReceiptId
    signature: str  # 0x and 130 hex digits


def issue(receipt: Receipt, signer: Signer) -> SignedReceipt:
    """Turn a receipt into bytes, check them and sign them.

    Raises:
        InvariantError: a field or sum is wrong, or the receipt names another operator than the signer.
    """
    if receipt.operator != signer.address:
        raise InvariantError(
            f"receipt of {receipt.call_id} names the operator {receipt.operator}, the key is {signer.address}",
            code="operator_mismatch",
        )
    raw = receipt.to_bytes()
    identity = receipt_id(raw)
    signature = signer.sign(signing_digest(identity, receipt.call_id, receipt.price, receipt.policy_digest))
    return SignedReceipt(receipt, raw, identity, "0x" + signature.hex())


def signing_digest(identity: str, call_id: str, price: int, policy_digest: str) -> bytes:
    """The 32 bytes that are signed: EIP-712 digest of id, call id, price in nano units and policy digest."""
    struct = keccak256(
        _RECEIPT_TYPE_HASH
        + bytes.fromhex(identity)
        + keccak256(call_id.encode())
        + keccak256(str(price).encode())
        + _digest_bytes(policy_digest)
    )
    return keccak256(_PREFIX + struct)


@lru_cache(maxsize=64)  # few policies are in force
def _digest_bytes(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("sha256:"))


def recover(receipt: Receipt, raw: bytes, signature: str) -> str:
    """The address that signed `raw`, the bytes of `receipt`.

    Raises:
        InvalidError: not a signature in its one form.
    """
    return recover_address(
        signing_digest(receipt_id(raw), receipt.call_id, receipt.price, receipt.policy_digest),
        parse_signature(signature),
    )


def recover_address(digest: bytes, signature: bytes) -> str:
    """The address whose key made `signature` (r, s, v) over `digest`.

    Raises:
        InvalidError: s is high, v is neither 27 nor 28, or no key fits.
    """
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (27, 28):
        raise _refused("it must be 65 bytes that end in 27 or 28")
    if int.from_bytes(signature[32:64], "big") > _ORDER // 2:
        raise _refused("its s is in the upper half of the curve's order")
    try:
        key = coincurve.PublicKey.from_signature_and_message(
            signature[:64] + bytes([signature[64] - 27]), digest, hasher=None
        )
    except Exception as error:  # the library raises bare Exception and ValueError for numbers off the curve
        raise _refused(f"no key fits it ({error})") from None
    return _address(key)


def parse_signature(text: str) -> bytes:
    """The 65 bytes of a signature written as 0x and 130 lower-case hex digits.

    Raises:
        InvalidError: written in any other way.
    """
    if _TEXT.fullmatch(text) is None:
        raise _refused(f"it is written as {text[:20]!r}…, not as 0x and 130 lower-case hex digits")
    return bytes.fromhex(text[2:])


def _address(key: coincurve.PublicKey) -> str:
    return "0x" + keccak256(key.format(compressed=False)[1:])[12:].hex()


def _refused(reason: str) -> InvalidError:
    return InvalidError(
        f"not a receipt's signature: {reason}", code="signature_invalid", fix="use the signature as it was issued"
    )
