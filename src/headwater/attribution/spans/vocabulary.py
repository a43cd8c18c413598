"""Which small id a token hash has in one segment: an open-addressing table that is stored as it is.

Rows are (hash, id) side by side, so a look-up is one cache line; ids count from 1 in order of first
appearance, 0 means "not here" and ends documents. Knows nothing of words.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.memory import compiled, prefetch

_ROWS_MIN = 16


class Vocabulary:
    """A growing table of token hashes."""

    __slots__ = ("rows", "size")

    def __init__(self) -> None:
        self.rows: NDArray[np.uint64] = np.zeros(2 * _ROWS_MIN, dtype=np.uint64)
        self.size = 0  # ids given so far

    def make_room(self, words: int) -> None:
        """Grow so that `intern` can take so many new words."""
        while self.size + words > _room_of(self.rows):
            grown = np.zeros(self.rows.size * 2, dtype=np.uint64)
            _rehash(self.rows, grown)
            self.rows = grown

    def intern(self, hashes: NDArray[np.uint64], out: NDArray[np.int32]) -> None:
        """Write the id of each hash to `out`, giving new ones to those not seen before."""
        done = 0
        while True:
            done, self.size = intern(hashes, out, done, self.rows, self.size)
            if done == hashes.size:
                return
            self.make_room(_room_of(self.rows) - self.size + 1)


def _room_of(rows: NDArray[np.uint64]) -> int:
    return (rows.size >> 1) * 5 // 8


def hashes_by_id(rows: NDArray[np.uint64], size: int) -> NDArray[np.uint64]:
    """The hash of every id: (size + 1,), with 0 for id 0."""
    out = np.zeros(size + 1, dtype=np.uint64)
    out[rows[1::2].astype(np.int64)] = rows[::2]
    out[0] = 0
    return out


@compiled
def intern(hashes, out, begin, rows, size):
    """Number words from place `begin` on until the table has no room; returns (next place, words in the table)."""
    mask = (rows.size >> 1) - 1
    room = (rows.size >> 1) * 5 // 8
    for i in range(begin, hashes.size):
        if i + 16 < hashes.size:
            prefetch(rows, np.intp(hashes[i + 16] & np.uint64(mask)) << 1)
        hashed = hashes[i]
        slot = np.intp(hashed & np.uint64(mask))
        while rows[2 * slot] != hashed and rows[2 * slot] != np.uint64(0):
            slot = (slot + 1) & mask
        if rows[2 * slot] == np.uint64(0):
            if size >= room:
                return i, size
            size += 1
            rows[2 * slot] = hashed
            rows[2 * slot + 1] = size
        out[i] = rows[2 * slot + 1]
    return hashes.size, size


@compiled
def _rehash(rows, grown):
    mask = (grown.size >> 1) - 1
    for i in range(0, rows.size, 2):
        if rows[i] != np.uint64(0):
            slot = np.intp(rows[i] & np.uint64(mask))
            while grown[2 * slot] != np.uint64(0):
                slot = (slot + 1) & mask
            grown[2 * slot], grown[2 * slot + 1] = rows[i], rows[i + 1]
