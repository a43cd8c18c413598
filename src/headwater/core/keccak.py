"""keccak-256 as Ethereum uses it (not NIST SHA-3), through a maintained C implementation."""

from __future__ import annotations

from sha3 import keccak_256 as _keccak


def keccak256(raw: bytes) -> bytes:
    """The 32-byte keccak-256 digest of `raw`.

    >>> keccak256(b"").hex()
    'c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470'
    """
    digest: bytes = _keccak(raw).digest()
    return digest
