"""Digests as contracts take them: the 32 bytes of a ``sha256:…``."""

from __future__ import annotations

import re

from headwater.core.errors import InvalidError

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def digest_bytes(text: str) -> bytes:
    """The 32 bytes of a digest.

    Raises:
        InvalidError: not one.
    """
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise InvalidError(
            f"{text[:80]!r} is not a digest", code="digest_invalid", fix="give sha256: and 64 hex digits"
        )
    return bytes.fromhex(found[1])


def digest_text(raw: bytes) -> str:
    """The digest of 32 bytes as text."""
    return f"sha256:{raw.hex()}"
