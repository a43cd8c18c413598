"""The transparency log as a Merkle tree: append, root at any size, proofs of inclusion and of consistency.

SHA-256; a leaf is hashed with 0x00 before it and a node with 0x01, so neither passes for the other.
The tree keeps the hash of every full subtree (about 64 bytes per leaf). Knows nothing of receipts,
files or signatures.
Source: Laurie, Messeri and Stradling, 2021, RFC 9162 section 2.1, whose tree is that of RFC 6962.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import InvalidError
from headwater.core.limits import PROOF_PATH_MAX

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

_sha256 = hashlib.sha256


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What the log was at one size; equal heads mean equal logs."""

    size: int
    root: bytes  # 32


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """That the leaf at `index` is in the log whose head is (`size`, `root`)."""

    index: int
    size: int
    path: tuple[bytes, ...]  # sibling hashes, leaf upwards
    root: bytes  # 32


@dataclass(frozen=True, slots=True)
class Frontier:
    """The least that can be appended to: the roots of the full subtrees, largest first. No proofs."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> Frontier:
        """The frontier with one leaf hash more."""
        peaks, position, node = list(self.peaks), self.size, leaf
        while position & 1:
            node = node_hash(peaks.pop(), node)
            position >>= 1
        return Frontier(self.size + 1, (*peaks, node))

    @property
    def head(self) -> TreeHead:
        """Size and root of what was appended."""
        return TreeHead(self.size, _bag(self.peaks))


def leaf_hash(data: bytes) -> bytes:
    """The hash of an entry: for a receipt, of its canonical bytes."""
    return _sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return _sha256(b"\x01" + left + right).digest()


class LogTree:
    """All full subtrees of a growing log, level by level."""

    __slots__ = ("_levels",)

    def __init__(self, leaves: Iterable[bytes] = ()) -> None:
        self._levels: list[bytearray] = [bytearray()]  # level k: roots of subtrees of 2^k leaves, 32 bytes each
        self.extend(leaves)

    def __len__(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    def append(self, leaf: bytes) -> int:
        """Add one leaf hash; the new leaf's index. O(1) hashes on average, O(log n) at most."""
        self.extend((leaf,))
        return len(self) - 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes of 32 bytes, in order."""
        added = b"".join(leaves)
        if len(added) % HASH_BYTES:
            raise ValueError(f"leaf hashes take 32 bytes each, got {len(added)} bytes")
        self._levels[0] += added
        level = 0
        while len(below := self._levels[level]) >= 2 * HASH_BYTES:
            if level + 1 == len(self._levels):
                self._levels.append(bytearray())
            above = self._levels[level + 1]
            start = 2 * len(above)
            fresh = bytes(below[start : start + (len(below) - start) // (2 * HASH_BYTES) * (2 * HASH_BYTES)])
            if not fresh:
                return
            pairs = range(0, len(fresh), 2 * HASH_BYTES)
            above += b"".join([_sha256(b"\x01" + fresh[at : at + 2 * HASH_BYTES]).digest() for at in pairs])
            level += 1

    def leaf(self, index: int) -> bytes:
        """The leaf hash at `index`, 32 bytes."""
        self._check_index(index, len(self))
        return self._node(0, index)

    def root(self, size: int | None = None) -> bytes:
        """The root of the first `size` leaves; of all of them when not given."""
        size = self._check_size(len(self) if size is None else size)
        return self._range_root(0, size) if size else EMPTY_ROOT

    def head(self, size: int | None = None) -> TreeHead:
        """The head of the first `size` leaves; of all of them when not given."""
        size = len(self) if size is None else size
        return TreeHead(size, self.root(size))

    def nodes(self, height: int, first: int, count: int) -> bytes:
        """The roots of `count` full subtrees of 2^height leaves, from place `first` on; 32 bytes each."""
        if not 0 <= first <= first + count <= len(self) >> height:
            raise InvalidError(
                f"{count} subtrees of 2^{height} leaves from place {first} are not in a log of {len(self)}",
                code="log_index_invalid",
                fix="ask for full subtrees only",
            )
        return bytes(self._levels[height][first * HASH_BYTES : (first + count) * HASH_BYTES])

    def prove_inclusion(self, index: int, size: int | None = None) -> InclusionProof:
        """That the leaf at `index` is among the first `size`."""
        size = self._check_size(len(self) if size is None else size)
        self._check_index(index, size)
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _largest_power_below(end - start)
            if index < middle:
                path.append(self._range_root(middle, end))
                end = middle
            else:
                path.append(self._range_root(start, middle))
                start = middle
        return InclusionProof(index, size, tuple(reversed(path)), self.root(size))

    def prove_consistency(self, old_size: int, new_size: int | None = None) -> tuple[bytes, ...]:
        """That the first `old_size` leaves are still the first ones among `new_size`.

        Raises:
            InvalidError: not 0 < old_size <= new_size <= size of the log.
        """
        new_size = self._check_size(len(self) if new_size is None else new_size)
        if not 0 < old_size <= new_size:
            raise InvalidError(
                f"no consistency proof leads from size {old_size} to {new_size}",
                code="log_size_invalid",
                fix="give 0 < old size <= new size",
            )
        path: list[bytes] = []
        start, end, whole = 0, new_size, True
        while old_size != end:
            middle = start + _largest_power_below(end - start)
            if old_size <= middle:
                path.append(self._range_root(middle, end))
                end = middle
            else:
                path.append(self._range_root(start, middle))
                start, whole = middle, False
        if not whole:
            path.append(self._range_root(start, end))
        return tuple(reversed(path))

    def _node(self, level: int, position: int) -> bytes:
        return bytes(self._levels[level][position * HASH_BYTES : (position + 1) * HASH_BYTES])

    def _range_root(self, start: int, end: int) -> bytes:
        """Root of leaves start..end-1, where start is a multiple of the largest power of two not above end - start."""
        peaks = []
        while start < end:
            level = (end - start).bit_length() - 1
            peaks.append(self._node(level, start >> level))
            start += 1 << level
        return _bag(peaks)

    def _check_size(self, size: int) -> int:
        if not 0 <= size <= len(self):
            raise InvalidError(
                f"the log holds {len(self)} entries, size {size} was asked for",
                code="log_size_invalid",
                fix=f"give a size from 0 to {len(self)}",
            )
        return size

    def _check_index(self, index: int, size: int) -> None:
        if not 0 <= index < size:
            raise InvalidError(
                f"index {index} is not among the first {size} entries",
                code="log_index_invalid",
                fix=f"give an index from 0 to {size - 1}" if size else "append an entry first",
            )


def verify_inclusion(leaf: bytes, proof: InclusionProof) -> bool:
    """Whether `proof` shows that the leaf hash is in the log with the proof's size and root."""
    if not 0 <= proof.index < proof.size or len(proof.path) > PROOF_PATH_MAX or len(leaf) != HASH_BYTES:
        return False
    index, last, node = proof.index, proof.size - 1, leaf
    for sibling in proof.path:
        if last == 0 or len(sibling) != HASH_BYTES:
            return False
        if index & 1 or index == last:
            node = node_hash(sibling, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and node == proof.root


def verify_consistency(old: TreeHead, new: TreeHead, path: Sequence[bytes]) -> bool:
    """Whether `path` shows that the log `old` is a beginning of the log `new`. The empty log begins every log."""
    if not 0 <= old.size <= new.size or len(path) > PROOF_PATH_MAX or any(len(node) != HASH_BYTES for node in path):
        return False
    if old.size == new.size:
        return not path and old.root == new.root
    if old.size == 0:
        return not path and old.root == EMPTY_ROOT
    nodes = list(path)
    if old.size & (old.size - 1) == 0:
        nodes.insert(0, old.root)  # a full subtree is not repeated in the proof
    if not nodes:
        return False
    index, last = old.size - 1, new.size - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    old_node = new_node = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if index & 1 or index == last:
            old_node, new_node = node_hash(node, old_node), node_hash(node, new_node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            new_node = node_hash(new_node, node)
        index, last = index >> 1, last >> 1
    return last == 0 and old_node == old.root and new_node == new.root


def _bag(peaks: Sequence[bytes]) -> bytes:
    if not peaks:
        return EMPTY_ROOT
    *rest, node = peaks
    for peak in reversed(rest):
        node = node_hash(peak, node)
    return node


def _largest_power_below(count: int) -> int:
    """The largest power of two that is less than `count` >= 2."""
    return 1 << ((count - 1).bit_length() - 1)
