"""The tree of very many payees: the scalar tree's roots and proofs, however it was built, changed or kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, InvariantError, MissingError
from headwater.settlement import Domain, Leaf, MappedTree, PayoutTree, verify, verify_range
from headwater.settlement.bulk_keccak import PlainHasher, hash_bulk, hasher
from headwater.settlement.tree import hash_each

VECTORS = json.loads((Path(__file__).parents[2] / "spec/vectors/payout_tree.json").read_text())
CONTRACT, TOKEN = "0x" + "c0" * 20, "0x" + "70" * 20
DOMAIN, NEXT = Domain(10, CONTRACT, TOKEN, 7), Domain(10, CONTRACT, TOKEN, 8)


def arrays(leaves: list[Leaf]) -> tuple[np.ndarray, np.ndarray]:
    """Addresses and amounts by position; zeros where nobody is."""
    width = max((leaf.index for leaf in leaves), default=-1) + 1
    addresses, amounts = np.zeros((width, 20), dtype=np.uint8), np.zeros(width, dtype=np.uint64)
    for leaf in leaves:
        addresses[leaf.index] = np.frombuffer(bytes.fromhex(leaf.address[2:]), dtype=np.uint8)
        amounts[leaf.index] = leaf.amount
    return addresses, amounts


def changed(leaves: list[Leaf]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices, addresses and amounts as an update takes them."""
    addresses, amounts = arrays(leaves)
    indices = np.array([leaf.index for leaf in leaves], dtype=np.int64)
    return indices, addresses[indices], amounts[indices]


@st.composite
def leaf_lists(draw, largest: int = 70) -> list[Leaf]:
    """Leaves with gaps, unique addresses and any amounts."""
    indices = draw(st.lists(st.integers(0, largest), min_size=1, max_size=40, unique=True))
    amounts = draw(st.lists(st.integers(0, 2**47), min_size=len(indices), max_size=len(indices)))
    return [Leaf(i, f"0x{i + 1:040x}", amount) for i, amount in zip(indices, amounts, strict=True)]


@settings(deadline=None, max_examples=60)
@given(leaves=leaf_lists(), data=st.data())
def test_built_and_updated_trees_have_the_scalar_trees_root_and_proofs(leaves, data):
    """Any tree, grown in one or two steps by compiled or plain hashing, is the tree the definition gives."""
    with_ = data.draw(st.sampled_from([hasher(), PlainHasher()]))
    first = data.draw(st.integers(1, len(leaves)))
    grown = MappedTree.build(*arrays(leaves[:first]), DOMAIN, hash_with=with_)
    assert grown.root == PayoutTree.build(leaves[:first], DOMAIN).root

    raised = [Leaf(leaf.index, leaf.address, leaf.amount + 3) for leaf in leaves[: first // 2]] + leaves[first:]
    grown.update(*changed(raised), NEXT)
    now = {leaf.index: leaf for leaf in leaves} | {leaf.index: leaf for leaf in raised}
    scalar = PayoutTree.build(list(now.values()), NEXT)

    assert (grown.root, grown.depth, grown.total) == (scalar.root, scalar.depth, scalar.total)
    assert tuple(grown.leaves()) == scalar.leaves
    index = data.draw(st.sampled_from(sorted(now)))
    assert grown.prove(index) == scalar.prove(index)
    height = data.draw(st.integers(0, scalar.depth))
    ranged = grown.prove_range(index >> height << height, 1 << height)
    assert ranged == scalar.prove_range(index >> height << height, 1 << height)
    assert verify_range(ranged, NEXT, scalar.root)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("with_", [hasher(), PlainHasher()], ids=["compiled", "plain"])
def test_published_vectors(case, with_):
    """Root and proofs of the published vectors come out of arrays too."""
    leaves = [Leaf(leaf["index"], leaf["address"], int(leaf["amount"])) for leaf in case["leaves"]]
    tree = MappedTree.build(*arrays(leaves), Domain(**case["domain"]), hash_with=with_)

    assert tree.root.hex() == case["root"]
    for proof in case["proofs"]:
        assert [sibling.hex() for sibling in tree.prove(proof["index"]).path] == proof["path"]


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 135), count=st.integers(0, 40), seed=st.integers(0, 2**32 - 1))
def test_bulk_hashing_agrees_with_an_independent_keccak(size, count, seed):
    """Every message length of one block, in any number, whatever lanes stay empty."""
    messages = np.random.default_rng(seed).bytes(size * count)
    expected = b"".join(keccak(messages[at : at + size]) for at in range(0, len(messages), size))

    assert hash_bulk(messages, size) == hash_each(messages, size) == expected


def test_a_large_scalar_tree_uses_bulk_hashing_and_keeps_its_root():
    """Past the size from which it is worth it, `build` gives the root that single hashing gives."""
    leaves = [Leaf(i, f"0x{i + 1:040x}", i) for i in range(1_500)]

    assert PayoutTree.build(leaves, DOMAIN).root == PayoutTree.build(leaves, DOMAIN, hash_many=hash_each).root


def test_without_compiled_code_the_bytes_are_the_same():
    """With numba switched off the fallback takes over by itself."""
    code = (
        "from headwater.settlement.bulk_keccak import hasher, hash_bulk, PlainHasher\n"
        "assert isinstance(hasher(), PlainHasher)\n"
        "print(hash_bulk(bytes(range(66)), 33).hex())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert run.stdout.strip() == hash_bulk(bytes(range(66)), 33).hex(), run.stderr


def sample(count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` payees without gaps."""
    return arrays([Leaf(i, f"0x{i + 1:040x}", 100 + i) for i in range(count)])


def test_a_kept_tree_is_opened_again_and_goes_on(tmp_path):
    """Files hold the whole tree; an update after reopening equals one built at once."""
    addresses, amounts = sample(300)
    root = MappedTree.build(addresses[:200], amounts[:200], DOMAIN, folder=tmp_path / "tree").root
    again = MappedTree.open(tmp_path / "tree")
    assert (again.root, again.domain) == (root, DOMAIN)
    again.update(np.arange(200, 300), addresses[200:], amounts[200:], NEXT)

    expected = MappedTree.build(addresses, amounts, NEXT)
    assert MappedTree.open(tmp_path / "tree").root == expected.root
    assert verify(MappedTree.open(tmp_path / "tree").prove(299), NEXT, expected.root)


def test_an_unfinished_or_damaged_tree_is_not_used(tmp_path):
    """A process that died in the middle leaves no tree; a flipped byte is found before a proof leaves."""
    addresses, amounts = sample(50)
    folder = tmp_path / "tree"
    tree = MappedTree.build(addresses, amounts, DOMAIN, folder=folder)
    level = folder / "level-01.bin"
    raw = bytearray(level.read_bytes())
    raw[40] ^= 1
    level.write_bytes(raw)
    with pytest.raises(InvariantError) as damaged:
        MappedTree.open(folder).prove(0)
    assert damaged.value.code == "tree_damaged"

    (folder / "tree.json").unlink()
    with pytest.raises(MissingError) as unfinished:
        MappedTree.open(folder)
    assert unfinished.value.code == "tree_unfinished"
    assert MappedTree.build(addresses, amounts, DOMAIN, folder=folder).root == tree.root


def test_an_update_may_be_repeated(tmp_path):
    """The same values again change nothing, so whoever died in between simply does it again."""
    addresses, amounts = sample(50)
    tree = MappedTree.build(addresses, amounts, DOMAIN, folder=tmp_path / "tree")
    change = (np.array([7, 3]), addresses[[7, 3]], amounts[[7, 3]] + np.uint64(5))
    tree.update(*change, NEXT)
    root = tree.root
    tree.update(*change, NEXT)

    assert tree.root == root


@pytest.mark.parametrize(
    ("at", "address", "amount", "kind", "code"),
    [
        (3, "same", 0, ConflictError, "leaf_lowered"),
        (3, "ee" * 20, 10**6, ConflictError, "leaf_reused"),
        (50, f"{4:040x}", 1, InvalidError, "leaf_address_repeated"),
        (50, CONTRACT[2:], 1, InvalidError, "address_invalid"),
        (50, "00" * 20, 1, InvalidError, "address_invalid"),
        (3, "same", 2**48, InvalidError, "leaf_amount_invalid"),
        (2**24, "ee" * 20, 1, InvalidError, "leaf_index_invalid"),
        (-1, "ee" * 20, 1, InvalidError, "leaf_index_invalid"),
    ],
)
def test_changes_that_would_pay_wrongly_are_refused(at, address, amount, kind: type[HeadwaterError], code):
    """No address moves or comes twice, no amount falls or overflows, and the tree stays as it was."""
    addresses, amounts = sample(50)
    tree = MappedTree.build(addresses, amounts, DOMAIN)
    root = tree.root
    row = addresses[at] if address == "same" else np.frombuffer(bytes.fromhex(address), dtype=np.uint8)
    with pytest.raises(kind) as refused:
        tree.update(np.array([at]), row[None, :], np.array([amount], dtype=np.uint64), NEXT)

    assert refused.value.code == code
    assert tree.root == root


def test_trees_that_would_pay_wrongly_are_not_built():
    """An address twice, the contract itself, an amount for nobody, and shapes that do not fit."""
    addresses, amounts = sample(50)
    twice, own, nobody = addresses.copy(), addresses.copy(), addresses.copy()
    twice[9] = twice[40]
    own[9] = np.frombuffer(bytes.fromhex(CONTRACT[2:]), dtype=np.uint8)
    nobody[9] = 0
    for wrong, code in [
        (twice, "leaf_address_repeated"),
        (own, "address_invalid"),
        (nobody, "address_invalid"),
        (addresses[:49], "leaves_invalid"),
    ]:
        with pytest.raises(InvalidError) as refused:
            MappedTree.build(wrong, amounts, DOMAIN)
        assert refused.value.code == code


def test_totals_beyond_64_bits_are_refused():
    """A sum that its node could not hold makes no tree, built or updated; the largest that fits is exact."""
    addresses, amounts = sample(65_537)
    amounts[:] = 2**48 - 1
    amounts[-1] = 0
    tree = MappedTree.build(addresses, amounts, DOMAIN)

    assert tree.total == int.from_bytes(tree.top[-8:], "big") == 65_536 * (2**48 - 1)
    amounts[-1] = 65_537
    for change in (
        lambda: MappedTree.build(addresses, amounts, DOMAIN),
        lambda: tree.update(np.array([65_536]), addresses[-1:], amounts[-1:], NEXT),
    ):
        with pytest.raises(InvalidError) as refused:
            change()
        assert refused.value.code == "leaf_amount_invalid"
