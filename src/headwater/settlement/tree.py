"""The payout tree: one 32-byte root that says what every payee may have been paid in all, up to an epoch.

    leaf   = sum64(keccak256(index u32 | address 20 | amount u64), amount)      32 bytes hashed
    node   = sum64(keccak256(left 32 | right 32), left's sum + right's sum)     64 bytes hashed
    root   = keccak256(domain 32 | depth u256 | top 32)                         96 bytes hashed
    domain = keccak256(tag 32 | chain id u256 | contract u256 | token u256 | epoch u256)   160 bytes hashed

`sum64(hash, sum)` is a hash whose last 8 bytes are replaced by a sum, so that every node says what all leaves
below it add up to, and the top what the epoch promises (a Merkle-sum tree, one word a node). Integers are
big-endian. A leaf that is absent is 32 zero bytes; the row of leaves is padded with absent ones to the next
power of two, and nodes over absent leaves are hashed like any other. Amounts are *cumulative*: what the payee
may have received since the first epoch, in token units.

Why a proof cannot be bent: the three kinds of hash read 32, 64 and 96 bytes, so none can stand for another;
the root holds the depth, which is the length of every path; a leaf names its own index, and
`index < 2^depth` leaves it one position; the domain names the place and the epoch; a sum is hashed into every
node above it. Nobody can show an absent leaf as a payee, because that takes a preimage of zero. 192 bits of
each hash are kept: two trees with one root take 2^96 hashes to find, a second tree for a given one 2^192.

Invariants: indices are unique, addresses are unique, amounts are in 0..2^48-1, their sum is below 2^64. Knows
nothing of ledgers, of what has been paid, or of how a root reaches a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from headwater.core.address import plain_address
from headwater.core.errors import InvalidError, MissingError
from headwater.core.keccak import keccak256
from headwater.core.limits import PAYEES_MAX, PAYOUT_UNITS_MAX, PUSH_PAYEES_MAX, TREE_WIDTH_MAX
from headwater.settlement.bulk_keccak import hash_bulk

HASH_SIZE_BYTES = 32
_ZERO_ADDRESS = "0x" + "00" * 20

ABSENT = bytes(HASH_SIZE_BYTES)
"""What stands in the row of leaves where no payee has that index."""

DOMAIN_TAG = keccak256(b"headwater.payout.v2")
SUM_SIZE_BYTES = 8
TOTAL_MAX = 2**64 - 1
DEPTH_MAX = 32

BULK_LEAVES_MIN = 1_024
"""From so many leaves on, loading compiled code is cheaper than hashing one by one."""

HashMany = Callable[[bytes, int], bytes]
"""Hash many messages of one size: (n * size concatenated bytes, size) -> (n * 32 concatenated digests)."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """What one payee may have been paid in all."""

    index: int  # 0..2^32-1, given once for ever by the operator's ledger
    address: str  # 0x and 40 hex digits, kept in lower case; the one account this index ever pays
    amount: int  # cumulative token units, 0..2^48-1; 0 holds the place of a payee with nothing due yet

    def __post_init__(self) -> None:
        if not 0 <= self.index < PAYEES_MAX:
            raise InvalidError(
                f"leaf index {self.index} is not in 0..{PAYEES_MAX - 1}",
                code="leaf_index_invalid",
                fix="use the index the ledger gave the payee",
            )
        object.__setattr__(self, "address", plain_address(self.address))
        if self.address == _ZERO_ADDRESS:
            raise InvalidError(
                f"leaf {self.index} pays the zero address", code="address_invalid", fix="leave the payee out"
            )
        if not 0 <= self.amount <= PAYOUT_UNITS_MAX:
            raise InvalidError(
                f"leaf {self.index} has {self.amount} token units, not 0..{PAYOUT_UNITS_MAX}",
                code="leaf_amount_invalid",
                fix="check the amount; a payee beyond it needs a second account",
            )

    def record(self) -> bytes:
        """The 28 bytes a push sends for this payee: address 20 | amount u64."""
        return bytes.fromhex(self.address[2:]) + self.amount.to_bytes(8, "big")

    def message(self) -> bytes:
        """The 32 bytes that are hashed."""
        return self.index.to_bytes(4, "big") + self.record()

    def hash(self) -> bytes:
        """The leaf's 32-byte word: hash and amount."""
        message = self.message()
        return keccak256(message)[:-SUM_SIZE_BYTES] + message[-SUM_SIZE_BYTES:]


@dataclass(frozen=True, slots=True)
class Domain:
    """Where and when a root counts: a proof for one domain proves nothing in another."""

    chain_id: int  # EIP-155, >= 1
    contract: str  # address of the Payout contract, kept in lower case
    token: str  # address of the ERC-20 it pays in, kept in lower case
    epoch: int  # 1..2^32-1

    def __post_init__(self) -> None:
        object.__setattr__(self, "contract", plain_address(self.contract))
        object.__setattr__(self, "token", plain_address(self.token))
        if not 1 <= self.chain_id < 2**64:
            raise InvalidError(
                f"chain id {self.chain_id} is not in 1..2^64-1", code="domain_invalid", fix="use the chain's EIP-155 id"
            )
        if not 1 <= self.epoch < 2**32:
            raise InvalidError(
                f"epoch {self.epoch} is not in 1..2^32-1", code="domain_invalid", fix="number epochs from 1"
            )

    def digest(self) -> bytes:
        """The 32 bytes that are hashed together with the depth and the top of the tree."""
        words = (self.chain_id, int(self.contract, 16), int(self.token, 16), self.epoch)
        return keccak256(DOMAIN_TAG + b"".join(word.to_bytes(32, "big") for word in words))

    def bind(self, top: bytes, depth: int) -> bytes:
        """The root to post for a tree with `depth` rows above its leaves, whose uppermost node is `top`."""
        return keccak256(self.digest() + depth.to_bytes(32, "big") + top)


@dataclass(frozen=True, slots=True)
class Proof:
    """The path of one leaf, lowest sibling first."""

    leaf: Leaf
    path: tuple[bytes, ...]  # (depth,) 32-byte siblings


@dataclass(frozen=True, slots=True)
class RangeProof:
    """All payees under one node, and the path of that node: what a push sends."""

    start: int  # index of the first position, a multiple of 2^height
    height: int  # the node covers 2^height positions, height <= 8
    leaves: tuple[Leaf, ...]  # those present, ascending by index
    path: tuple[bytes, ...]  # (depth - height,) 32-byte siblings, lowest first

    @property
    def count(self) -> int:
        """Positions covered, present or not."""
        return 1 << self.height

    def payload(self) -> bytes:
        """The bytes the contract reads: start u32 | one 28-byte record per position, zeros where absent.

        Trailing absent positions are left off as far as the height stays clear: a contract takes the
        smallest height that holds the records sent.
        """
        present = {leaf.index - self.start: leaf.record() for leaf in self.leaves}
        shortest = (self.count >> 1) + 1 if self.height else 1
        length = max(max(present, default=0) + 1, shortest)
        return self.start.to_bytes(4, "big") + b"".join(present.get(i, bytes(28)) for i in range(length))


@dataclass(frozen=True, slots=True)
class PayoutTree:
    """All leaves of one epoch, hashed. Build it with `PayoutTree.build`."""

    domain: Domain
    leaves: tuple[Leaf, ...]  # ascending by index
    root: bytes  # what is posted
    depth: int  # the row of leaves has 2^depth positions
    _rows: tuple[bytes, ...] = field(repr=False)  # row 0 is leaves; rows stop after the last one that is present
    _place: dict[int, int] = field(repr=False)  # index -> place in `leaves`

    @classmethod
    def build(cls, leaves: Sequence[Leaf], domain: Domain, *, hash_many: HashMany | None = None) -> PayoutTree:
        """Hash `leaves` into a tree, in any order.

        Args:
            leaves: (n,) with unique indices and unique addresses; gaps between indices are absent leaves, and
                with no leaf at all the root is one that nobody can claim from.
            domain: where the root will be posted.
            hash_many: bulk keccak; the default is compiled code for many leaves and single hashing for few.

        Raises:
            InvalidError: an index or address given twice, an index beyond the widest tree, or a
                leaf that pays the contract itself (its money could never leave again).
        """
        hash_many = hash_many or (hash_bulk if len(leaves) >= BULK_LEAVES_MIN else hash_each)
        ordered = tuple(sorted(leaves, key=lambda leaf: leaf.index))
        _check_leaves(ordered, domain)
        width = ordered[-1].index + 1 if ordered else 1
        messages = b"".join(leaf.message() for leaf in ordered)
        hashes = hash_many(messages, 32)
        row = bytearray(width * HASH_SIZE_BYTES)
        for i, leaf in enumerate(ordered):
            at = leaf.index * 32
            row[at : at + 32] = hashes[i * 32 : i * 32 + 24] + messages[i * 32 + 24 : i * 32 + 32]
        depth = (width - 1).bit_length()
        rows = [bytes(row)]
        for height in range(depth):
            rows.append(_parents(rows[-1], absent_node(height), hash_many))
        place = {leaf.index: i for i, leaf in enumerate(ordered)}
        return cls(domain, ordered, domain.bind(rows[-1], depth), depth, tuple(rows), place)

    @property
    def total(self) -> int:
        """The sum of all amounts: what the vault must have been funded with in all, in token units."""
        return sum(leaf.amount for leaf in self.leaves)

    @property
    def top(self) -> bytes:
        """The uppermost node, before domain and depth are bound to it; its last 8 bytes are `total`."""
        return self._rows[-1]

    def leaf(self, index: int) -> Leaf:
        """The leaf at `index`.

        Raises:
            MissingError: nobody has that index in this epoch.
        """
        if index not in self._place:
            raise MissingError(
                f"epoch {self.domain.epoch} has no leaf with index {index}",
                code="leaf_missing",
                fix="ask for an index that the epoch's leaves contain",
            )
        return self.leaves[self._place[index]]

    def find(self, index: int) -> Leaf | None:
        """The leaf at `index`, or None when nobody has it in this epoch."""
        place = self._place.get(index)
        return None if place is None else self.leaves[place]

    def prove(self, index: int) -> Proof:
        """The path of the leaf at `index`.

        Raises:
            MissingError: nobody has that index in this epoch.
        """
        return Proof(self.leaf(index), self._path(index, 0))

    def path(self, index: int) -> tuple[bytes, ...]:
        """The siblings of position `index`, (depth,), whether it has a leaf or not: for the answer to a challenge.

        An index beyond the tree stands for its place modulo the tree's width.
        """
        return self._path(index & ((1 << self.depth) - 1), 0)

    def prove_range(self, start: int, count: int) -> RangeProof:
        """The payees under the node that covers `count` positions from `start`, and its path.

        Args:
            start: a multiple of `count`.
            count: a power of two, at most 256 and at most the tree's width.

        Raises:
            InvalidError: not such a range.
            MissingError: every position of it is absent.
        """
        height = count.bit_length() - 1
        aligned = count > 0 and count == 1 << height and count <= PUSH_PAYEES_MAX and start % count == 0
        if not (aligned and start >= 0 and start + count <= 1 << self.depth):
            raise InvalidError(
                f"positions {start}..{start + count - 1} are not an aligned range of a tree {1 << self.depth} wide",
                code="range_invalid",
                fix=f"take a power of two up to {min(PUSH_PAYEES_MAX, 1 << self.depth)}, starting at a multiple of it",
            )
        present = tuple(self.leaves[self._place[i]] for i in range(start, start + count) if i in self._place)
        if not present:
            raise MissingError(
                f"positions {start}..{start + count - 1} are all absent",
                code="leaf_missing",
                fix="take a range that holds a payee",
            )
        return RangeProof(start, height, present, self._path(start, height))

    def _path(self, index: int, height: int) -> tuple[bytes, ...]:
        """Siblings of the node at `height` over `index`, up to the top."""
        path = []
        for level in range(height, self.depth):
            at = ((index >> level) ^ 1) * 32
            path.append(self._rows[level][at : at + 32] or absent_node(level))
        return tuple(path)


def verify(proof: Proof, domain: Domain, root: bytes) -> bool:
    """Whether `proof` shows that its leaf is part of the tree posted as `root` in `domain`."""
    return len(proof.path) <= DEPTH_MAX and _climbs(proof.leaf.index, 0, proof.leaf.hash(), proof.path, domain, root)


def verify_range(proof: RangeProof, domain: Domain, root: bytes) -> bool:
    """Whether all payees of `proof`, and no others, stand at its positions in the tree posted as `root`."""
    count = proof.count
    shape_fits = 0 <= proof.height <= 8 and proof.start % count == 0 and proof.height + len(proof.path) <= DEPTH_MAX
    places = [leaf.index - proof.start for leaf in proof.leaves]
    if not shape_fits or len(set(places)) != len(places) or not all(0 <= place < count for place in places):
        return False
    row = bytearray(32 * count)
    for place, leaf in zip(places, proof.leaves, strict=True):
        row[place * 32 : place * 32 + 32] = leaf.hash()
    node = bytes(row)
    for _ in range(proof.height):
        node = _parents(node, ABSENT, hash_each)
    return _climbs(proof.start >> proof.height, proof.height, node, proof.path, domain, root)


def hash_each(messages: bytes, size: int) -> bytes:
    """The keccak-256 digests of messages of `size` bytes each, concatenated, one after another."""
    return b"".join(keccak256(messages[i : i + size]) for i in range(0, len(messages), size))


def verify_absent(index: int, path: Sequence[bytes], domain: Domain, root: bytes) -> bool:
    """Whether `path` shows that nobody stands at `index`, an empty place within the tree."""
    place = index & ((1 << len(path)) - 1)
    return place == index and len(path) <= DEPTH_MAX and _climbs(place, 0, ABSENT, path, domain, root)


def _climbs(position: int, height: int, node: bytes, path: Sequence[bytes], domain: Domain, root: bytes) -> bool:
    if position >> len(path) or any(len(sibling) != HASH_SIZE_BYTES for sibling in path):
        return False
    if _sum(node) + sum(_sum(sibling) for sibling in path) > TOTAL_MAX:
        return False
    for sibling in path:
        node = _node(sibling, node) if position & 1 else _node(node, sibling)
        position >>= 1
    return domain.bind(node, height + len(path)) == root


def _sum(word: bytes) -> int:
    return int.from_bytes(word[-SUM_SIZE_BYTES:], "big")


def _node(left: bytes, right: bytes) -> bytes:
    return keccak256(left + right)[:-SUM_SIZE_BYTES] + (_sum(left) + _sum(right)).to_bytes(SUM_SIZE_BYTES, "big")


def _parents(row: bytes, absent: bytes, hash_many: HashMany) -> bytes:
    """The row above; `absent` completes a row of odd length."""
    if len(row) % 64:
        row += absent
    hashes = hash_many(row, 64)
    return b"".join(
        hashes[i : i + 24] + (_sum(row[2 * i : 2 * i + 32]) + _sum(row[2 * i + 32 : 2 * i + 64])).to_bytes(8, "big")
        for i in range(0, len(hashes), 32)
    )


def absent_node(height: int) -> bytes:
    """The node over 2^height absent leaves."""
    while len(_ABSENT_NODES) <= height:
        _ABSENT_NODES.append(_node(_ABSENT_NODES[-1], _ABSENT_NODES[-1]))
    return _ABSENT_NODES[height]


_ABSENT_NODES = [ABSENT]


def _check_leaves(ordered: Sequence[Leaf], domain: Domain) -> None:
    if ordered and ordered[-1].index >= TREE_WIDTH_MAX:
        raise InvalidError(
            f"leaf index {ordered[-1].index} is beyond the widest tree, {TREE_WIDTH_MAX} positions",
            code="leaf_index_invalid",
            fix="give indices without gaps, and more payees a second contract",
        )
    for before, after in pairwise(ordered):
        if before.index == after.index:
            raise InvalidError(
                f"leaf index {after.index} is given twice", code="leaf_index_repeated", fix="give each payee one index"
            )
    total = sum(leaf.amount for leaf in ordered)
    if total > TOTAL_MAX:
        raise InvalidError(
            f"the leaves add up to {total} token units, the most is {TOTAL_MAX}",
            code="leaf_amount_invalid",
            fix="check the amounts",
        )
    seen: dict[str, int] = {}
    for leaf in ordered:
        if leaf.address in seen:
            raise InvalidError(
                f"{leaf.address} stands at index {seen[leaf.address]} and at {leaf.index}",
                code="leaf_address_repeated",
                fix="add the amounts up in one leaf: an address is paid at one index only",
            )
        seen[leaf.address] = leaf.index
    if domain.contract in seen:
        raise InvalidError(
            f"leaf {seen[domain.contract]} pays the payout contract itself",
            code="address_invalid",
            fix="give the payee's own address",
        )
