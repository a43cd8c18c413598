"""Account addresses of an EVM chain: 20 bytes inside, EIP-55 mixed-case hex on the wire.

Invariant: `parse_address(format_address(raw)) == raw`. Knows nothing of keys, chains or who owns an address.
"""

from __future__ import annotations

import re

from headwater.core.errors import InvalidError
from headwater.core.keccak import keccak256

ADDRESS_SIZE_BYTES = 20

_FORM = re.compile(r"0x[0-9a-fA-F]{40}")


def parse_address(text: str) -> bytes:
    """The 20 bytes of a hex address; mixed case must carry a correct EIP-55 checksum.

    Raises:
        InvalidError: not ``0x`` and 40 hex digits, or a checksum that does not match.

    >>> parse_address("0x" + "00" * 19 + "2a")[-1]
    42
    """
    if _FORM.fullmatch(text) is None:
        raise InvalidError(f"{text[:80]!r} is not an address", code="address_invalid", fix="give 0x and 40 hex digits")
    raw = bytes.fromhex(text[2:])
    digits = text[2:]
    if digits not in (digits.lower(), digits.upper()) and format_address(raw) != text:
        raise InvalidError(
            f"{text} has a wrong checksum, a character is mistyped",
            code="address_checksum_wrong",
            fix="copy the address again, or write it in lower case if you are sure of it",
        )
    return raw


def format_address(raw: bytes) -> str:
    """The EIP-55 form of a 20-byte address.

    Raises:
        InvalidError: not 20 bytes.

    >>> format_address(bytes.fromhex("5aaeb6053f3e94c9b9a09f33669435e7ef1beaed"))
    '0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed'
    """
    if len(raw) != ADDRESS_SIZE_BYTES:
        raise InvalidError(
            f"an address has {ADDRESS_SIZE_BYTES} bytes, got {len(raw)}", code="address_invalid", fix="give 20 bytes"
        )
    digits = raw.hex()
    nibbles = keccak256(digits.encode()).hex()
    return "0x" + "".join(c.upper() if int(n, 16) >= 8 else c for c, n in zip(digits, nibbles, strict=False))


def plain_address(text: str) -> str:
    """The lower-case form of an address, so that two spellings of one account are equal.

    Raises:
        InvalidError: as `parse_address`.
    """
    return "0x" + parse_address(text).hex()
