import hashlib
import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.receipts import (
    EMPTY_ROOT,
    Frontier,
    InclusionProof,
    LogTree,
    TreeHead,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)

VECTORS = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "rfc6962.json").read_text("utf-8"))
LEAVES = [bytes.fromhex(leaf) for leaf in VECTORS["leaves"]]

entries = st.lists(st.binary(max_size=8), min_size=1, max_size=70)


def split(count: int) -> int:
    k = 1
    while 2 * k < count:
        k *= 2
    return k


def naive_root(data: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word."""
    if not data:
        return hashlib.sha256(b"").digest()
    if len(data) == 1:
        return hashlib.sha256(b"\x00" + data[0]).digest()
    k = split(len(data))
    return hashlib.sha256(b"\x01" + naive_root(data[:k]) + naive_root(data[k:])).digest()


def naive_path(m: int, data: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 section 2.1.1."""
    if len(data) == 1:
        return []
    k = split(len(data))
    if m < k:
        return [*naive_path(m, data[:k]), naive_root(data[k:])]
    return [*naive_path(m - k, data[k:]), naive_root(data[:k])]


def naive_consistency(m: int, data: list[bytes], whole: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 6962 section 2.1.2."""
    if m == len(data):
        return [] if whole else [naive_root(data)]
    k = split(len(data))
    if m <= k:
        return [*naive_consistency(m, data[:k], whole), naive_root(data[k:])]
    return [*naive_consistency(m - k, data[k:], False), naive_root(data[:k])]


def tree_of(data: list[bytes]) -> LogTree:
    return LogTree(leaf_hash(item) for item in data)


def test_published_roots_at_every_size():
    """The roots of the certificate-transparency test suite come out of the tree, the frontier and the definition."""
    tree, frontier = tree_of(LEAVES), Frontier()

    assert tree.root(0) == frontier.head.root == EMPTY_ROOT == bytes.fromhex(VECTORS["empty_root"])
    for size, text in enumerate(VECTORS["roots"], 1):
        frontier = frontier.append(leaf_hash(LEAVES[size - 1]))
        assert tree.root(size) == naive_root(LEAVES[:size]) == bytes.fromhex(text)
        assert frontier.head == TreeHead(size, bytes.fromhex(text))


@pytest.mark.parametrize("vector", VECTORS["inclusion"], ids=str)
def test_published_inclusion_proofs(vector):
    """The published paths are the ones we make, and they verify."""
    path = tuple(map(bytes.fromhex, vector["path"]))
    proof = tree_of(LEAVES).prove_inclusion(vector["index"], vector["size"])

    assert proof.path == path == tuple(naive_path(vector["index"], LEAVES[: vector["size"]]))
    assert verify_inclusion(leaf_hash(LEAVES[vector["index"]]), proof)


@pytest.mark.parametrize("vector", VECTORS["consistency"], ids=str)
def test_published_consistency_proofs(vector):
    """The published paths between two sizes are the ones we make, and they verify."""
    tree, path = tree_of(LEAVES), tuple(map(bytes.fromhex, vector["path"]))

    assert tree.prove_consistency(vector["old"], vector["new"]) == path
    assert tuple(naive_consistency(vector["old"], LEAVES[: vector["new"]])) == path
    assert verify_consistency(tree.head(vector["old"]), tree.head(vector["new"]), path)


@given(data=entries, cuts=st.lists(st.integers(0, 70), max_size=4))
def test_the_tree_is_the_definition_however_it_grew(data, cuts):
    """Root, paths and frontier equal the recursive definition at every size, appended singly or in any batches."""
    tree, frontier = LogTree(), Frontier()
    marks = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(marks):
        tree.extend(leaf_hash(item) for item in data[start:end])
    single = LogTree()
    for i, item in enumerate(data):
        assert single.append(leaf_hash(item)) == i
        frontier = frontier.append(leaf_hash(item))
        assert tree.root(i + 1) == single.root() == frontier.head.root == naive_root(data[: i + 1])
    index = len(data) // 2
    assert tree.prove_inclusion(index).path == tuple(naive_path(index, data))
    assert tree.prove_consistency(index + 1) == tuple(naive_consistency(index + 1, data))


@settings(max_examples=50)
@given(data=entries, seed=st.randoms(use_true_random=False))
def test_every_honest_proof_verifies_and_no_changed_one_does(data, seed):
    """A flipped byte, a missing, added or swapped node, another index, size, leaf or root: all refused."""
    tree, size = tree_of(data), seed.randint(1, len(data))
    index = seed.randrange(size)
    leaf, proof = tree.leaf(index), tree.prove_inclusion(index, size)
    assert verify_inclusion(leaf, proof)

    path = list(proof.path)
    wrong = [
        InclusionProof(index, size, tuple(path), bytes(32)),
        InclusionProof(index, size, (*path, leaf), proof.root),
    ]
    for i, node in enumerate(path):
        at = seed.randrange(32)
        flipped = node[:at] + bytes([node[at] ^ 1 << seed.randrange(8)]) + node[at + 1 :]
        wrong.append(InclusionProof(index, size, (*path[:i], flipped, *path[i + 1 :]), proof.root))
        wrong.append(InclusionProof(index, size, (*path[:i], *path[i + 1 :]), proof.root))
        wrong.append(InclusionProof(index, size, (*path[:i], node[:31], *path[i + 1 :]), proof.root))
    wrong += [InclusionProof(other, size, proof.path, proof.root) for other in (-1, size, size + 1)]
    wrong += [InclusionProof(index, other, proof.path, proof.root) for other in (0, -1, index)]
    assert not any(verify_inclusion(leaf, proof) for proof in wrong)
    assert not verify_inclusion(hashlib.sha256(leaf).digest(), proof)
    assert not verify_inclusion(leaf[:31], proof)


def test_an_index_cannot_be_exchanged():
    """With different leaves everywhere, a path verifies at its own index only."""
    tree = tree_of([bytes([i]) for i in range(13)])
    for size in range(1, 14):
        for index in range(size):
            proof = tree.prove_inclusion(index, size)
            for other in range(size):
                moved = InclusionProof(other, size, proof.path, proof.root)
                assert verify_inclusion(tree.leaf(index), moved) is (other == index)


def test_every_pair_of_sizes_is_consistent_and_nothing_else_is():
    """All honest pairs verify; changed nodes, roots and sizes do not; a rewritten log never does."""
    data = [bytes([i]) for i in range(20)]
    tree = tree_of(data)
    for new in range(1, 21):
        for old in range(1, new + 1):
            path = tree.prove_consistency(old, new)
            assert path == tuple(naive_consistency(old, data[:new]))
            assert verify_consistency(tree.head(old), tree.head(new), path)
            forked = tree_of([b"forged", *data[1:old]]).head()
            assert not verify_consistency(forked, tree.head(new), path)
            assert not verify_consistency(tree.head(old), TreeHead(new, bytes(32)), path)
            assert not verify_consistency(tree.head(old), tree.head(new), (*path, bytes(32)))
            for i, node in enumerate(path):
                flipped = bytes([node[0] ^ 1]) + node[1:]
                assert not verify_consistency(tree.head(old), tree.head(new), (*path[:i], flipped, *path[i + 1 :]))
                assert not verify_consistency(tree.head(old), tree.head(new), (*path[:i], *path[i + 1 :]))


def test_the_empty_log_begins_every_log():
    """No proof is needed from size zero, and a made-up empty root is refused."""
    head = tree_of(LEAVES).head()
    assert verify_consistency(TreeHead(0, EMPTY_ROOT), head, ())
    assert not verify_consistency(TreeHead(0, bytes(32)), head, ())
    assert not verify_consistency(TreeHead(0, EMPTY_ROOT), head, (bytes(32),))
    assert not verify_consistency(head, TreeHead(0, EMPTY_ROOT), ())


def test_a_node_does_not_pass_for_a_leaf():
    """The two halves of a node, offered as an entry, hash to something else."""
    tree = tree_of(LEAVES[:2])
    assert leaf_hash(tree.leaf(0) + tree.leaf(1)) != tree.root()


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda tree: tree.root(9), "log_size_invalid"),
        (lambda tree: tree.root(-1), "log_size_invalid"),
        (lambda tree: tree.prove_inclusion(8), "log_index_invalid"),
        (lambda tree: tree.prove_inclusion(3, 3), "log_index_invalid"),
        (lambda tree: tree.prove_inclusion(-1), "log_index_invalid"),
        (lambda tree: tree.prove_consistency(0), "log_size_invalid"),
        (lambda tree: tree.prove_consistency(5, 4), "log_size_invalid"),
        (lambda tree: tree.leaf(8), "log_index_invalid"),
    ],
)
def test_what_the_log_does_not_hold_cannot_be_proved(ask, code):
    """Sizes and indices outside the log are refused with the range that would do."""
    with pytest.raises(InvalidError) as refusal:
        ask(tree_of(LEAVES))
    assert refusal.value.code == code
    assert refusal.value.fix


def test_leaves_must_be_hashes():
    """Bytes that are not whole hashes are a caller's mistake, and nothing is added."""
    tree = tree_of(LEAVES)
    with pytest.raises(ValueError, match="32 bytes"):
        tree.append(b"short")
    assert len(tree) == 8
