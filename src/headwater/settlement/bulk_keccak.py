"""Bulk keccak-256: compiled code where it may run, the C implementation message by message where it may not.

Rows of hashes are (n, 4) uint64 arrays, four words of eight bytes as they lie in memory on a little-endian
machine. The compiled kernels are loaded when they are first needed, so that a small home never waits for them.
With `NUMBA_DISABLE_JIT=1`, without numba, or on a big-endian machine the fallback gives the same bytes, slower.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headwater.core.keccak import keccak256

Hashes = NDArray[np.uint64]
"""(n, 4): n digests."""

WORDS = 4
BLOCK_BYTES = 136
"""What one permutation absorbs; messages of a tree are shorter."""


class Hasher(Protocol):
    """Hashes leaves and nodes of a payout tree in bulk."""

    def leaves(
        self, indices: NDArray[np.int64], addresses: NDArray[np.uint8], amounts: NDArray[np.uint64], row: Hashes
    ) -> None:
        """Write the hash of each leaf at its index of `row`; zeros for one of the zero address."""
        ...

    def nodes(self, below: Hashes, parents: NDArray[np.int64], absent: Hashes, above: Hashes) -> None:
        """Write the hash of the two places of `below` under each of `parents`; `absent` stands past its end."""
        ...


class CompiledHasher:
    """numba kernels, sixteen messages at a time."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def leaves(
        self, indices: NDArray[np.int64], addresses: NDArray[np.uint8], amounts: NDArray[np.uint64], row: Hashes
    ) -> None:
        """As `Hasher.leaves`."""
        self._kernels.hash_leaves(indices, addresses, amounts, row)

    def nodes(self, below: Hashes, parents: NDArray[np.int64], absent: Hashes, above: Hashes) -> None:
        """As `Hasher.nodes`."""
        self._kernels.hash_nodes(below, parents, absent, above)


class PlainHasher:
    """One message after another through the C implementation."""

    def leaves(
        self, indices: NDArray[np.int64], addresses: NDArray[np.uint8], amounts: NDArray[np.uint64], row: Hashes
    ) -> None:
        """As `Hasher.leaves`."""
        for place, address, amount in zip(indices.tolist(), addresses, amounts.tolist(), strict=True):
            message = place.to_bytes(4, "big") + address.tobytes() + amount.to_bytes(8, "big")
            row[place] = _words(keccak256(message)[:24] + message[24:]) if address.any() else 0

    def nodes(self, below: Hashes, parents: NDArray[np.int64], absent: Hashes, above: Hashes) -> None:
        """As `Hasher.nodes`."""
        for parent in parents.tolist():
            pair = b"".join((below[at] if at < len(below) else absent).tobytes() for at in (2 * parent, 2 * parent + 1))
            total = int.from_bytes(pair[24:32]) + int.from_bytes(pair[56:64])
            above[parent] = _words(keccak256(pair)[:24] + total.to_bytes(8))


@cache
def hasher() -> Hasher:
    """The fastest hasher that works here."""
    kernels = _kernels()
    return PlainHasher() if kernels is None else CompiledHasher(kernels)


def hash_bulk(messages: bytes, size: int) -> bytes:
    """The keccak-256 digests of messages of `size` bytes each, concatenated; `size` is below 136."""
    kernels = _kernels() if 0 < size < BLOCK_BYTES else None
    if kernels is None:
        return b"".join(keccak256(messages[at : at + size]) for at in range(0, len(messages), size))
    rows = np.frombuffer(messages, dtype=np.uint8).reshape(-1, size)
    digests = np.empty((len(rows), WORDS), dtype=np.uint64)
    kernels.hash_messages(rows, digests)
    return digests.tobytes()


@cache
def _kernels() -> Any:
    try:
        from numba import config
    except ImportError:
        return None
    if getattr(config, "DISABLE_JIT", 0) or sys.byteorder != "little":
        return None
    from headwater.settlement import keccak_kernels

    return keccak_kernels


def _words(digest: bytes) -> Hashes:
    return np.frombuffer(digest, dtype=np.uint64)
