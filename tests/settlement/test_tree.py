"""The payout tree against a second implementation, published vectors and forged proofs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import InvalidError, MissingError
from headwater.settlement import Domain, Leaf, PayoutTree, Proof, RangeProof, verify, verify_absent, verify_range

VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/payout_tree.json").read_text())

CONTRACT, TOKEN = "0x" + "c0" * 20, "0x" + "70" * 20
DOMAIN = Domain(10, CONTRACT, TOKEN, 7)


def naive_top(leaves: dict[int, tuple[str, int]], start: int, width: int) -> bytes:
    """The node over [start, start + width), by recursion from the definition."""
    if width == 1:
        if start not in leaves:
            return b"\x00" * 32
        address, amount = leaves[start]
        tail = amount.to_bytes(8, "big")
        return keccak(start.to_bytes(4, "big") + bytes.fromhex(address[2:]) + tail)[:24] + tail
    half = width // 2
    below = sum(amount for index, (_, amount) in leaves.items() if start <= index < start + width)
    children = naive_top(leaves, start, half) + naive_top(leaves, start + half, half)
    return keccak(children)[:24] + below.to_bytes(8, "big")


def naive_path(leaves: dict[int, tuple[str, int]], index: int, width: int) -> list[bytes]:
    """Siblings of one leaf, lowest first, by recursion."""
    if width == 1:
        return []
    half = width // 2
    low = index // width * width
    if index < low + half:
        return [*naive_path(leaves, index, half), naive_top(leaves, low + half, half)]
    return [*naive_path(leaves, index, half), naive_top(leaves, low, half)]


def naive_root(top: bytes, width: int, chain_id: int, contract: str, token: str, epoch: int) -> bytes:
    """The root to post, from the definition."""
    words = b"".join(number.to_bytes(32, "big") for number in (chain_id, int(contract, 16), int(token, 16), epoch))
    depth = width.bit_length() - 1
    return keccak(keccak(keccak(text="headwater.payout.v2") + words) + depth.to_bytes(32, "big") + top)


def naive_width(leaves: dict[int, tuple[str, int]]) -> int:
    """The smallest power of two that holds every index."""
    width = 1
    while width <= max(leaves, default=0):
        width *= 2
    return width


@st.composite
def trees(draw, largest: int = 40) -> PayoutTree:
    """Trees with gaps, of unique addresses and any amounts."""
    indices = draw(st.lists(st.integers(0, largest), min_size=1, max_size=largest, unique=True))
    numbers = draw(st.lists(st.integers(1, 2**160 - 1), min_size=len(indices), max_size=len(indices), unique=True))
    amounts = draw(st.lists(st.integers(0, 2**48 - 1), min_size=len(indices), max_size=len(indices)))
    leaves = [Leaf(i, f"0x{n:040x}", a) for i, n, a in zip(indices, numbers, amounts, strict=True)]
    return PayoutTree.build(leaves, DOMAIN)


@settings(deadline=None, max_examples=60)
@given(tree=trees(), at=st.integers(0, 10**6))
def test_tree_agrees_with_a_recursive_implementation(tree, at):
    """Root and path are what the definition gives when it is followed word for word."""
    leaves = {leaf.index: (leaf.address, leaf.amount) for leaf in tree.leaves}
    width = naive_width(leaves)
    index = tree.leaves[at % len(tree.leaves)].index

    assert tree.top == naive_top(leaves, 0, width)
    assert tree.root == naive_root(tree.top, width, 10, CONTRACT, TOKEN, 7)
    assert list(tree.prove(index).path) == naive_path(leaves, index, width)


@settings(deadline=None, max_examples=60)
@given(tree=trees(), data=st.data())
def test_every_leaf_and_every_range_can_be_proved(tree, data):
    """What is in the tree is provable, alone and together with its neighbours."""
    leaf = data.draw(st.sampled_from(tree.leaves))
    height = data.draw(st.integers(0, tree.depth))
    start = leaf.index >> height << height
    proof = tree.prove_range(start, 1 << height)

    assert verify(tree.prove(leaf.index), DOMAIN, tree.root)
    assert leaf in proof.leaves
    assert verify_range(proof, DOMAIN, tree.root)


@settings(deadline=None, max_examples=60)
@given(tree=trees(), data=st.data())
def test_a_changed_proof_verifies_nowhere(tree, data):
    """Any change of leaf, path, domain or root breaks the proof."""
    leaf = data.draw(st.sampled_from(tree.leaves))
    proof = tree.prove(leaf.index)
    amount = data.draw(st.integers(0, 2**48 - 1).filter(lambda amount: amount != leaf.amount))
    index = data.draw(st.integers(0, 2**32 - 1).filter(lambda index: index != leaf.index))
    other = PayoutTree.build([*tree.leaves[1:], Leaf(99, "0x" + "9" * 40, 5)], DOMAIN)

    forged = [
        replace(proof, leaf=replace(leaf, amount=amount)),
        replace(proof, leaf=replace(leaf, index=index)),
        replace(proof, leaf=replace(leaf, address="0x" + "e" * 40)),
        replace(proof, path=proof.path[1:] if proof.path else (b"\0" * 32,)),
        replace(proof, path=(*proof.path, b"\0" * 32)),
    ]
    if proof.path:
        forged.append(replace(proof, path=(bytes([proof.path[0][0] ^ 1]) + proof.path[0][1:], *proof.path[1:])))
    assert not any(verify(one, DOMAIN, tree.root) for one in forged)
    assert not verify(proof, DOMAIN, other.root)
    elsewhere = [
        replace(DOMAIN, chain_id=11),
        replace(DOMAIN, contract="0x" + "c1" * 20),
        replace(DOMAIN, token="0x" + "71" * 20),
        replace(DOMAIN, epoch=8),
    ]
    assert not any(verify(proof, domain, tree.root) for domain in elsewhere)


def tree_of(count: int, domain: Domain = DOMAIN) -> PayoutTree:
    """`count` payees without gaps."""
    return PayoutTree.build([Leaf(i, f"0x{i + 1:040x}", 100 + i) for i in range(count)], domain)


def test_range_of_other_payees_does_not_verify():
    """A range proof with a payee left out, added, changed or moved is refused."""
    tree = tree_of(12)
    proof = tree.prove_range(8, 4)
    extra = Leaf(12, "0x" + "ee" * 20, 1)

    assert verify_range(proof, DOMAIN, tree.root)
    for forged in (
        replace(proof, leaves=proof.leaves[:-1]),
        replace(proof, leaves=(*proof.leaves[:-1], replace(proof.leaves[-1], amount=1))),
        replace(proof, leaves=(*proof.leaves, extra)),
        replace(proof, start=0),
        replace(proof, start=9),
        replace(proof, height=1),
        replace(proof, height=9),
        replace(proof, path=proof.path[:-1]),
        replace(proof, leaves=(*proof.leaves, proof.leaves[0])),
    ):
        assert not verify_range(forged, DOMAIN, tree.root)


def test_a_node_is_no_leaf_and_a_leaf_is_no_node():
    """A path that starts one row up, with the node's bytes in place of a leaf's, has no leaf that fits it."""
    tree = tree_of(4)
    proof = tree.prove(2)
    shorter = Proof(replace(proof.leaf, index=1), proof.path[1:])

    assert not verify(shorter, DOMAIN, tree.root)
    assert not verify_range(RangeProof(1, 0, (replace(proof.leaf, index=1),), proof.path[1:]), DOMAIN, tree.root)


def test_a_tree_without_leaves_proves_nothing():
    """An epoch in which nobody can be paid has a root, and no leaf climbs to it."""
    tree = PayoutTree.build([], DOMAIN)

    assert tree.total == 0
    assert not verify(Proof(Leaf(0, "0x" + "11" * 20, 1), ()), DOMAIN, tree.root)


def test_order_of_leaves_does_not_matter():
    """The root depends on what the leaves are, not on how they were listed."""
    leaves = [Leaf(i, f"0x{i + 1:040X}", i) for i in range(9)]

    assert PayoutTree.build(leaves[::-1], DOMAIN).root == PayoutTree.build(leaves, DOMAIN).root


def test_bulk_hashing_takes_the_place_of_single_hashing():
    """A bulk keccak given to `build` sees messages of one size a time and decides the root."""
    sizes = []

    def hash_many(messages: bytes, size: int) -> bytes:
        sizes.append((size, len(messages) // size))
        return b"".join(keccak(messages[i : i + size]) for i in range(0, len(messages), size))

    leaves = [Leaf(i, f"0x{i + 1:040x}", i) for i in range(5)]

    assert PayoutTree.build(leaves, DOMAIN, hash_many=hash_many).root == PayoutTree.build(leaves, DOMAIN).root
    assert sizes == [(32, 5), (64, 3), (64, 2), (64, 1)]


def test_the_top_says_what_all_leaves_add_up_to():
    """The last eight bytes of every node are the sum below it, so the top's are the total that is posted."""
    tree = tree_of(12)

    assert int.from_bytes(tree.top[-8:], "big") == tree.total == sum(100 + i for i in range(12))
    assert int.from_bytes(tree.prove(0).path[-1][-8:], "big") == sum(100 + i for i in range(8, 12))


def test_an_empty_place_can_be_shown():
    """A path shows that nobody stands at an index; where somebody does it shows nothing."""
    tree = PayoutTree.build([Leaf(0, "0x" + "11" * 20, 1), Leaf(9, "0x" + "22" * 20, 1)], DOMAIN)

    for index in (1, 8, 15):
        assert verify_absent(index, tree.path(index), DOMAIN, tree.root)
    for index in (0, 9, 16, 25):
        assert not verify_absent(index, tree.path(index), DOMAIN, tree.root)
    assert not verify_absent(1, tree.path(1)[:-1], DOMAIN, tree.root)


def test_payload_is_start_and_records():
    """A push carries 4 bytes of start and 28 a position, zeros where nobody is, and no zeros it can leave off."""
    leaves = [Leaf(i, f"0x{i + 1:040x}", i + 5) for i in (0, 8, 10, 12)]
    tree = PayoutTree.build(leaves, DOMAIN)
    payload = tree.prove_range(8, 8).payload()

    assert payload[:4] == (8).to_bytes(4, "big")
    assert payload[4 : 4 + 28] == bytes(19) + b"\x09" + (13).to_bytes(8, "big")
    assert payload[4 + 28 : 4 + 56] == bytes(28)
    assert len(payload) == 4 + 28 * 5


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_payload_never_shrinks_below_its_height(count):
    """However many trailing positions are absent, the records still need the range's own height."""
    tree = PayoutTree.build([Leaf(8, "0x" + "11" * 20, 1), Leaf(20, "0x" + "22" * 20, 1)], DOMAIN)
    records = (len(tree.prove_range(8, count).payload()) - 4) // 28

    assert count // 2 < records <= count


@pytest.mark.parametrize(
    ("leaf", "code"),
    [
        ((-1, "0x" + "11" * 20, 1), "leaf_index_invalid"),
        ((2**32, "0x" + "11" * 20, 1), "leaf_index_invalid"),
        ((0, "0x" + "11" * 19, 1), "address_invalid"),
        ((0, "0x" + "00" * 20, 1), "address_invalid"),
        ((0, "0x" + "11" * 20, -1), "leaf_amount_invalid"),
        ((0, "0x" + "11" * 20, 2**48), "leaf_amount_invalid"),
    ],
)
def test_leaves_out_of_range_are_refused(leaf, code):
    """A leaf that the contract could not hold is not made."""
    with pytest.raises(InvalidError) as refused:
        Leaf(*leaf)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("leaves", "code"),
    [
        ([Leaf(1, "0x" + "11" * 20, 1), Leaf(1, "0x" + "22" * 20, 1)], "leaf_index_repeated"),
        ([Leaf(1, "0x" + "AB" * 20, 1), Leaf(2, "0x" + "ab" * 20, 1)], "leaf_address_repeated"),
        ([Leaf(2**24, "0x" + "11" * 20, 1)], "leaf_index_invalid"),
        ([Leaf(0, CONTRACT, 1)], "address_invalid"),
    ],
)
def test_trees_that_would_pay_wrongly_are_refused(leaves, code):
    """An index or an address twice, an index without end, and money to the contract itself make no tree."""
    with pytest.raises(InvalidError) as refused:
        PayoutTree.build(leaves, DOMAIN)
    assert refused.value.code == code


@pytest.mark.parametrize(("start", "count"), [(0, 0), (0, 3), (2, 4), (0, 512), (8, 8), (-4, 4), (16, 16)])
def test_ranges_that_are_no_node_are_refused(start, count):
    """A range is a power of two of positions, aligned to itself, inside the tree, at most 256."""
    with pytest.raises(InvalidError):
        tree_of(5).prove_range(start, count)


def test_asking_for_nobody_is_missing():
    """An index or a range without a payee is said to be missing."""
    tree = PayoutTree.build([Leaf(0, "0x" + "11" * 20, 1), Leaf(9, "0x" + "22" * 20, 1)], DOMAIN)

    with pytest.raises(MissingError):
        tree.prove(1)
    with pytest.raises(MissingError):
        tree.prove_range(4, 4)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_published_vectors(case):
    """Root and proofs of the published vectors come out of this implementation and of the recursive one."""
    domain = Domain(**case["domain"])
    leaves = [Leaf(leaf["index"], leaf["address"], int(leaf["amount"])) for leaf in case["leaves"]]
    plain = {leaf["index"]: (leaf["address"], int(leaf["amount"])) for leaf in case["leaves"]}
    tree = PayoutTree.build(leaves, domain)

    assert tree.root.hex() == case["root"]
    width = naive_width(plain)
    assert naive_root(naive_top(plain, 0, width), width, **case["domain"]).hex() == case["root"]
    for proof in case["proofs"]:
        assert [sibling.hex() for sibling in tree.prove(proof["index"]).path] == proof["path"]
    for range_ in case["ranges"]:
        proof = tree.prove_range(range_["start"], range_["count"])
        assert [sibling.hex() for sibling in proof.path] == range_["path"]
        assert proof.payload().hex() == range_["payload"]
