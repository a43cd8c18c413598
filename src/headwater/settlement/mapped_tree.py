"""The payout tree of very many payees: the same hashes as `PayoutTree`, kept as arrays, in files when given a folder.

    addresses.bin   20 bytes a position, zeros where nobody is       amounts.bin   u64 a position, cumulative
    level-00.bin    32 bytes a position: hashes of leaves            level-HH.bin  the row HH above
    tree.json       chain, contract, token, epoch, width, root; written last, removed while anything changes

An update hashes only the leaves that changed and the nodes over them; a proof reads one hash a level. Every
proof is climbed before it is given, so a damaged file is found, not published. The folder is a copy of what
an epoch says and may be deleted: it is built again from the epoch in seconds.

Invariants: as `PayoutTree`, and from one update to the next an index keeps its address and no amount falls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import ConflictError, InvalidError, InvariantError, MissingError
from headwater.core.limits import PAYOUT_UNITS_MAX, PUSH_PAYEES_MAX, TREE_WIDTH_MAX
from headwater.settlement.bulk_keccak import WORDS, Hasher, Hashes, hasher
from headwater.settlement.tree import TOTAL_MAX, Domain, Leaf, Proof, RangeProof, absent_node, verify

ADDRESS_BYTES = 20
_HEAD = "tree.json"
_HASH_CHUNK = 1 << 20
"""Leaves hashed at a time, so that temporary arrays stay small."""

Indices = NDArray[np.int64]
Addresses = NDArray[np.uint8]
Amounts = NDArray[np.uint64]


class MappedTree:
    """A tree over arrays; make it with `build`, open an earlier one with `open`."""

    def __init__(self, domain: Domain, folder: Path | None, hash_with: Hasher) -> None:
        self.domain = domain
        self.folder = folder
        self._hasher = hash_with
        self._addresses: Addresses = np.empty((0, ADDRESS_BYTES), dtype=np.uint8)
        self._amounts: Amounts = np.empty(0, dtype=np.uint64)
        self._levels: list[Hashes] = []

    @classmethod
    def build(
        cls,
        addresses: Addresses,
        amounts: Amounts,
        domain: Domain,
        *,
        folder: Path | None = None,
        hash_with: Hasher | None = None,
    ) -> MappedTree:
        """Hash a tree in which position `i` pays `amounts[i]` to `addresses[i]`.

        Args:
            addresses: (n, 20) uint8; the zero address says that nobody is at a position.
            amounts: (n,) uint64, 0..2^48-1; 0 where nobody is.
            folder: where to keep the tree; in memory when left out. What was in it is replaced.

        Raises:
            InvalidError: shapes, an amount out of range, an address twice, or the contract's own address.
        """
        tree = cls(domain, folder, hash_with or hasher())
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _HEAD).unlink(missing_ok=True)
        size = len(addresses)
        if addresses.shape != (size, ADDRESS_BYTES) or amounts.shape != (size,) or size > TREE_WIDTH_MAX:
            raise InvalidError(
                f"{addresses.shape} addresses and {amounts.shape} amounts make no tree of at most {TREE_WIDTH_MAX}",
                code="leaves_invalid",
                fix="give n rows of 20 bytes and n amounts",
            )
        tree._check_amounts(amounts)
        _check_unique(addresses[addresses.any(axis=1)], domain)
        if (amounts[~addresses.any(axis=1)] != 0).any():
            raise InvalidError(
                "an amount stands where nobody is", code="address_invalid", fix="give the payee's address"
            )
        tree._resize(max(size, 1))
        tree._addresses[:size], tree._amounts[:size] = addresses, amounts
        tree._check_total()
        for first in range(0, size, _HASH_CHUNK):
            tree._hash_leaves(np.arange(first, min(first + _HASH_CHUNK, size)))
        for height in range(tree.depth):
            above = tree._levels[height + 1]
            tree._hasher.nodes(tree._levels[height], np.arange(len(above)), _absent(height), above)
        tree._keep()
        return tree

    @classmethod
    def open(cls, folder: Path, *, hash_with: Hasher | None = None) -> MappedTree:
        """The tree kept in `folder`.

        Raises:
            MissingError: there is none, or it was being changed when its process ended: build it again.
        """
        try:
            head: dict[str, Any] = json.loads((folder / _HEAD).read_text("ascii"))
        except FileNotFoundError:
            raise MissingError(
                f"there is no finished payout tree in {folder}",
                code="tree_unfinished",
                fix="build it again from the epoch; it takes seconds",
            ) from None
        tree = cls(Domain(**head["domain"]), folder, hash_with or hasher())
        tree._resize(head["width"])
        if tree.root.hex() != head["root"]:
            raise InvariantError(f"the tree in {folder} is not the one it names", code="tree_damaged", fix="rebuild it")
        return tree

    def update(self, indices: Indices, addresses: Addresses, amounts: Amounts, domain: Domain) -> None:
        """Go on to the next epoch: the leaves at `indices` have new amounts, or are new; the others stay.

        Doing it again with the same values changes nothing, so an interrupted one is simply repeated.

        Args:
            indices: (m,) int64, each once. addresses: (m, 20). amounts: (m,), cumulative.

        Raises:
            InvalidError, ConflictError: as `build`; ``leaf_reused`` for another address at an index,
                ``leaf_lowered`` for an amount that falls.
        """
        order = np.argsort(indices, kind="stable")
        indices, addresses, amounts = indices[order], addresses[order], amounts[order]
        self._check_update(indices, addresses, amounts, domain)
        if self.folder is not None:
            (self.folder / _HEAD).unlink(missing_ok=True)
        before = self.width
        changed = indices
        if len(indices) and int(indices[-1]) >= before:
            self._resize(int(indices[-1]) + 1)
            # Places between are absent but their nodes are not there yet; place 0 lies under every new row.
            changed = np.unique(np.concatenate([indices, np.arange(before, self.width), [0]]))
        self.domain = domain
        self._addresses[indices], self._amounts[indices] = addresses, amounts
        self._check_total()
        self._hash_leaves(changed)
        for height in range(self.depth):
            changed = changed >> 1
            if len(changed):
                changed = changed[np.concatenate([[True], changed[1:] != changed[:-1]])]
            self._hasher.nodes(self._levels[height], changed, _absent(height), self._levels[height + 1])
        self._keep()

    @property
    def width(self) -> int:
        """Positions up to the last one that is present."""
        return len(self._amounts)

    @property
    def depth(self) -> int:
        """The row of leaves has 2^depth positions."""
        return (self.width - 1).bit_length()

    @property
    def top(self) -> bytes:
        """The uppermost node, before the domain is bound to it."""
        return bytes(self._levels[-1][0])

    @property
    def root(self) -> bytes:
        """What is posted."""
        return self.domain.bind(self.top, self.depth)

    @property
    def total(self) -> int:
        """The sum of all amounts, token units."""
        # Halves apart: 2^24 amounts of 48 bits do not fit 64.
        low = int((self._amounts & np.uint64(0xFFFFFF)).sum())
        return (int((self._amounts >> np.uint64(24)).sum()) << 24) + low

    def leaf(self, index: int) -> Leaf:
        """The leaf at `index`.

        Raises:
            MissingError: nobody has that index in this epoch.
        """
        if not (0 <= index < self.width and self._addresses[index].any()):
            raise MissingError(
                f"epoch {self.domain.epoch} has no leaf with index {index}",
                code="leaf_missing",
                fix="ask for an index that the epoch's leaves contain",
            )
        return Leaf(index, "0x" + self._addresses[index].tobytes().hex(), int(self._amounts[index]))

    def prove(self, index: int) -> Proof:
        """The path of the leaf at `index`, which was climbed to the root.

        Raises:
            MissingError: nobody has that index in this epoch.
            InvariantError: a file was damaged.
        """
        proof = Proof(self.leaf(index), self._path(index, 0))
        if not verify(proof, self.domain, self.root):
            raise InvariantError(f"the tree does not prove leaf {index}", code="tree_damaged", fix="rebuild it")
        return proof

    def prove_range(self, start: int, count: int) -> RangeProof:
        """As `PayoutTree.prove_range`.

        Raises:
            InvalidError: not an aligned range of the tree. MissingError: every position of it is absent.
        """
        height = count.bit_length() - 1
        aligned = count > 0 and count == 1 << height and count <= PUSH_PAYEES_MAX and start % count == 0
        if not (aligned and start >= 0 and start + count <= 1 << self.depth):
            raise InvalidError(
                f"positions {start}..{start + count - 1} are not an aligned range of a tree {1 << self.depth} wide",
                code="range_invalid",
                fix=f"take a power of two up to {min(PUSH_PAYEES_MAX, 1 << self.depth)}, starting at a multiple of it",
            )
        places = range(start, min(start + count, self.width))
        present = tuple(self.leaf(index) for index in places if self._addresses[index].any())
        if not present:
            raise MissingError(
                f"positions {start}..{start + count - 1} are all absent",
                code="leaf_missing",
                fix="take a range that holds a payee",
            )
        return RangeProof(start, height, present, self._path(start, height))

    def leaves(self) -> Iterator[Leaf]:
        """Those present, ascending by index."""
        return (self.leaf(index) for index in np.flatnonzero(self._addresses.any(axis=1)).tolist())

    def _path(self, index: int, height: int) -> tuple[bytes, ...]:
        path = []
        for level in range(height, self.depth):
            row, sibling = self._levels[level], (index >> level) ^ 1
            path.append(row[sibling].tobytes() if sibling < len(row) else absent_node(level))
        return tuple(path)

    def _hash_leaves(self, indices: Indices) -> None:
        # A slice of the mapping where there is one, so that nothing is copied.
        whole = len(indices) and int(indices[-1]) - int(indices[0]) + 1 == len(indices)
        where: Any = slice(int(indices[0]), int(indices[-1]) + 1) if whole else indices
        self._hasher.leaves(indices, self._addresses[where], self._amounts[where], self._levels[0])

    def _check_amounts(self, amounts: Amounts) -> None:
        if len(amounts) and int(amounts.max()) > PAYOUT_UNITS_MAX:
            raise InvalidError(
                f"a leaf has {int(amounts.max())} token units, the most is {PAYOUT_UNITS_MAX}",
                code="leaf_amount_invalid",
                fix="check the amount; a payee beyond it needs a second account",
            )

    def _check_total(self) -> None:
        if self.total > TOTAL_MAX:
            raise InvalidError(
                f"the leaves add up to {self.total} token units, the most is {TOTAL_MAX}",
                code="leaf_amount_invalid",
                fix="check the amounts",
            )

    def _check_update(self, indices: Indices, addresses: Addresses, amounts: Amounts, domain: Domain) -> None:
        self._check_amounts(amounts)
        if len(indices) and not (int(indices[0]) >= 0 and int(indices[-1]) < TREE_WIDTH_MAX):
            raise InvalidError(
                f"indices {indices[0]}..{indices[-1]}", code="leaf_index_invalid", fix=f"use 0..{TREE_WIDTH_MAX - 1}"
            )
        if (indices[1:] == indices[:-1]).any():
            raise InvalidError("a leaf index is given twice", code="leaf_index_repeated", fix="give each index once")
        if not addresses.any(axis=1).all():
            raise InvalidError("a leaf pays the zero address", code="address_invalid", fix="leave the payee out")
        old = indices < self.width
        here = self._addresses[indices[old]]
        held = here.any(axis=1)
        if (here[held] != addresses[old][held]).any():
            raise ConflictError(
                "an index has another address than before", code="leaf_reused", fix="give a new payee a new index"
            )
        if (self._amounts[indices[old]] > amounts[old]).any():
            raise ConflictError("an amount is lower than before", code="leaf_lowered", fix="amounts are cumulative")
        new = np.concatenate([addresses[old][~held], addresses[~old]])
        if len(new):
            present = self._addresses[self._addresses.any(axis=1)]
            _check_unique(np.concatenate([present, new]), domain)

    def _resize(self, width: int) -> None:
        self._addresses = self._array("addresses.bin", self._addresses, width, ADDRESS_BYTES, np.dtype(np.uint8))
        self._amounts = self._array("amounts.bin", self._amounts[:, None], width, 1, np.dtype(np.uint64))[:, 0]
        levels = []
        for height in range((width - 1).bit_length() + 1):
            before = self._levels[height] if height < len(self._levels) else np.empty((0, WORDS), dtype=np.uint64)
            rows = -(-width >> height)
            levels.append(self._array(f"level-{height:02d}.bin", before, rows, WORDS, np.dtype(np.uint64)))
        self._levels = levels

    def _array(self, name: str, before: NDArray[Any], rows: int, columns: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """`before` with `rows` rows, new ones zero; in the folder, if there is one, where it stays as it is."""
        if self.folder is None:
            array = np.zeros((rows, columns), dtype=kind)
            array[: len(before)] = before
            return array
        path, size = self.folder / name, rows * columns * kind.itemsize
        with path.open("ab") as file:
            file.truncate(size)
        return np.asarray(np.memmap(path, dtype=kind, mode="r+", shape=(rows, columns)))

    def _keep(self) -> None:
        if self.folder is None:
            return
        head = {"domain": asdict(self.domain), "width": self.width, "root": self.root.hex()}
        draft = self.folder / f"{_HEAD}.new"
        draft.write_text(json.dumps(head), "ascii")
        draft.replace(self.folder / _HEAD)


def _absent(height: int) -> Hashes:
    return np.frombuffer(absent_node(height), dtype=np.uint64)


def _check_unique(addresses: Addresses, domain: Domain) -> None:
    """Refuse an address that is there twice, and the contract's own."""
    words = np.ascontiguousarray(addresses).view(np.dtype((np.void, ADDRESS_BYTES)))[:, 0]
    head = np.ascontiguousarray(addresses[:, :8]).view(np.uint64)[:, 0]
    order = np.argsort(head, kind="stable")
    alike = np.flatnonzero(head[order][1:] == head[order][:-1])
    suspects = words[np.unique(np.concatenate([order[alike], order[alike + 1]]))]  # same first eight bytes: few
    for found, count in zip(*np.unique(suspects, return_counts=True), strict=True):
        if count > 1:
            raise InvalidError(
                f"0x{bytes(found).hex()} stands at {count} indices",
                code="leaf_address_repeated",
                fix="add the amounts up in one leaf: an address is paid at one index only",
            )
    if (words == np.void(bytes.fromhex(domain.contract[2:]))).any():
        raise InvalidError(
            "a leaf pays the payout contract itself", code="address_invalid", fix="give the payee's own address"
        )
