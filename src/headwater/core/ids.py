"""Identifiers: a short prefix that says what is named, then hex. Content ids are digests, call ids are random."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import NewType

from headwater.core.errors import InvalidError

ContributorId = NewType("ContributorId", str)
ContributionId = NewType("ContributionId", str)
CallId = NewType("CallId", str)
ReceiptId = NewType("ReceiptId", str)
AccountId = NewType("AccountId", str)

_HEX_DIGITS = 32
_CALL = re.compile(r"call_[0-9a-f]{32}")
_RECEIPT = re.compile(r"[0-9a-f]{64}")


def contributor_id(namespace: str, name: str) -> ContributorId:
    """The id of the contributor called `name` in `namespace`; case, spacing and Unicode form do not matter.

    >>> contributor_id("peps", "Ada  Lovelace") == contributor_id("peps", "ada lovelace")
    True
    """
    plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return ContributorId("ctr_" + _hex(f"{namespace}\x00{plain}".encode()))


def contribution_id(kind: str, content: bytes) -> ContributionId:
    """The id of a contribution: the same bytes registered as the same kind are the same contribution."""
    return ContributionId("ctb_" + _hex(kind.encode() + b"\x00" + content))


def pseudonym(key_id: str) -> str:
    """The payer's name in receipts: the same for every call of a key, and no way back to the key."""
    return "pay_" + hashlib.sha256(b"headwater payer\x00" + key_id.encode()).hexdigest()[:32]


def call_id(random_bytes: bytes) -> CallId:
    """A call's id from 16 random bytes, which the caller supplies."""
    if len(random_bytes) != 16:
        raise ValueError(f"a call id takes 16 random bytes, got {len(random_bytes)}")
    return CallId("call_" + random_bytes.hex())


def is_call_id(text: str) -> bool:
    """Whether `text` has the form of a call id."""
    return _CALL.fullmatch(text) is not None


def receipt_id(raw: bytes) -> ReceiptId:
    """A receipt's id: SHA-256 of its canonical bytes, 64 hex digits."""
    return ReceiptId(hashlib.sha256(raw).hexdigest())


def check_receipt_id(text: str) -> ReceiptId:
    """`text` as a receipt id.

    Raises:
        InvalidError: not 64 lower-case hex digits.
    """
    if _RECEIPT.fullmatch(text) is None:
        raise InvalidError(
            f"{text[:80]!r} is not a receipt id", code="receipt_id_invalid", fix="give the 64 hex digits of the receipt"
        )
    return ReceiptId(text)


def _hex(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:_HEX_DIGITS]
