"""Payments: what is due is paid once, to whom it belongs, and nothing else ever is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.chain import RevertedError
from headwater.chain.client import words
from headwater.settlement import Leaf, PayoutTree, Proof, RangeProof, format_address

AMOUNTS = {i: (i + 1) * 1_000 for i in range(13)}


def address(index: int) -> str:
    """The address of the usual payee with this index."""
    return f"0x{0xBEEF << 64 | index + 1:040x}"


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


def test_a_payee_is_paid_its_amount_by_anybody(vault):
    """A stranger's claim pays the payee, not the stranger, and is counted."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    paid = vault.stranger.claim(1, tree.prove(5))

    assert (paid.amount, paid.payees, paid.skipped) == (6_000, 1, ())
    assert vault.chain.balance(address(5)) == 6_000
    assert vault.chain.balance(vault.node.signers[2].address) == 0
    assert vault.chain.paid(5) == 6_000
    assert vault.chain.index_of(address(5)) == 5
    assert vault.chain.index_of(address(6)) is None
    assert vault.chain.status().paid == 6_000


def test_claiming_again_changes_nothing(vault):
    """A replayed claim is refused, and so is one with a lowered amount."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    vault.chain.claim(1, tree.prove(5))
    lowered = vault.tree(2, AMOUNTS | {5: 1, 0: 10_000})
    vault.post(lowered)

    assert reason(lambda: vault.chain.claim(1, tree.prove(5))) == "Payout: nothing due"
    assert reason(lambda: vault.chain.claim(2, lowered.prove(5))) == "Payout: nothing due"
    assert vault.chain.balance(address(5)) == 6_000


def test_one_claim_settles_all_epochs(vault):
    """A payee that missed an epoch gets the difference in one claim, from the newer root."""
    vault.post(vault.tree(1, AMOUNTS))
    tree = vault.tree(2, {i: a + 500 for i, a in AMOUNTS.items()})
    vault.post(tree)

    assert vault.chain.claim(2, tree.prove(12)).amount == 13_500


def test_push_pays_everybody_in_the_range_once(vault):
    """A pushed range pays each payee what is missing; pushed again it pays nothing."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    vault.chain.claim(1, tree.prove(2))
    proof = tree.prove_range(0, 8)
    paid = vault.stranger.push(1, proof)
    again = vault.stranger.push(1, proof)

    assert (paid.amount, paid.payees, paid.skipped) == (36_000 - 3_000, 7, ())
    assert (again.amount, again.payees, again.skipped) == (0, 0, ())
    assert [vault.chain.balance(address(i)) for i in range(13)] == [AMOUNTS[i] if i < 8 else 0 for i in range(13)]
    assert [vault.chain.paid(i) for i in range(8)] == [AMOUNTS[i] for i in range(8)]


def test_push_leaves_unwanted_payees_due(vault):
    """Only the wanted ones are paid; the others can still claim."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    paid = vault.chain.push(1, tree.prove_range(8, 8), wanted=[9, 12])

    assert (paid.amount, paid.payees) == (10_000 + 13_000, 2)
    assert vault.chain.claim(1, tree.prove(8)).amount == 9_000


def test_push_skips_a_lowered_amount(vault):
    """A payee whose amount fell is passed over; its neighbours are paid."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    vault.chain.push(1, tree.prove_range(0, 4))
    lowered = vault.tree(2, {i: a + 500 for i, a in AMOUNTS.items()} | {2: 1})
    vault.post(lowered)
    paid = vault.chain.push(2, lowered.prove_range(0, 4))

    assert (paid.amount, paid.payees, paid.skipped) == (1_500, 3, ())
    assert vault.chain.paid(2) == AMOUNTS[2]


@pytest.mark.parametrize("count", [1, 2, 4, 16])
def test_ranges_of_every_size_reach_the_root(vault, count):
    """Short ranges share a word of paid amounts with their neighbours and keep off them."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    start = 10 // count * count
    paid = vault.chain.push(1, tree.prove_range(start, count))

    assert paid.amount == sum(AMOUNTS.get(i, 0) for i in range(start, start + count))
    assert [vault.chain.paid(i) for i in AMOUNTS] == [
        a if start <= i < start + count else 0 for i, a in AMOUNTS.items()
    ]


def test_gaps_in_the_tree_are_pushed_over(vault):
    """Positions without a payee are hashed as absent and pay nobody."""
    tree = vault.tree(1, {3: 300, 4: 400, 9: 900, 22: 2_200})
    vault.post(tree)

    assert vault.chain.push(1, tree.prove_range(0, 16)).amount == 1_600
    assert vault.chain.push(1, tree.prove_range(16, 8)).amount == 2_200


def test_a_whole_push_of_256_fits_and_pays(vault):
    """The largest range goes through in one transaction."""
    tree = vault.tree(1, {i: 10 + i for i in range(300)})
    vault.post(tree)
    paid = vault.chain.push(1, tree.prove_range(0, 256))

    assert (paid.amount, paid.payees) == (sum(10 + i for i in range(256)), 256)
    assert vault.chain.push(1, tree.prove_range(256, 64)).payees == 44


def test_an_index_stays_with_its_account(vault):
    """An index that turns up with another account pays it nothing, alone or in a range."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    vault.chain.push(1, tree.prove_range(0, 4))
    leaves = [Leaf(i, address(i), a + 500) for i, a in AMOUNTS.items() if i not in (1, 2)]
    thief = Leaf(1, "0x" + "77" * 20, 50_000)
    tree = PayoutTree.build([*leaves, thief, Leaf(2, "0x" + "78" * 20, 3_500)], vault.chain.domain(2))
    vault.post(tree)

    assert reason(lambda: vault.chain.claim(2, tree.prove(1))) == "Payout: index is another account's"
    paid = vault.chain.push(2, tree.prove_range(0, 4))
    assert (paid.amount, paid.skipped) == (1_000, ((1, "index_taken"), (2, "index_taken")))
    assert vault.chain.balance(thief.address) == 0


def test_an_account_is_not_paid_at_a_second_index(vault):
    """A payee that moves to a fresh index is not paid what it already has."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    vault.chain.claim(1, tree.prove(1))
    leaves = [Leaf(i, address(i), a) for i, a in AMOUNTS.items() if i != 1]
    tree = PayoutTree.build([*leaves, Leaf(13, address(1), 2_000)], vault.chain.domain(2))
    vault.post(tree)

    assert reason(lambda: vault.chain.claim(2, tree.prove(13))) == "Payout: account has another index"
    assert vault.chain.push(2, tree.prove_range(12, 2)).skipped == ((13, "account_bound"),)
    assert vault.chain.balance(address(1)) == 2_000


def test_one_account_at_two_indices_of_one_push_is_paid_once(vault):
    """Two leaves of one account in the same range pay at the first of them only."""
    twin = [Leaf(0, address(0), 1_000), Leaf(1, address(1), 700)]
    tree = PayoutTree.build(twin, vault.chain.domain(1))
    forged = _tree_with_twins(vault)
    vault.chain.post(1, forged.root, 2_000, b"\7" * 32)
    vault.chain.jump(60)
    paid = vault.chain.push(1, forged.prove_range(0, 2))

    assert tree.root != forged.root
    assert (paid.amount, paid.skipped) == (1_000, ((1, "account_bound"),))


def _tree_with_twins(vault) -> PayoutTree:
    """A tree that `build` would refuse: one account at two indices."""
    from headwater.core.keccak import keccak256

    first, second = Leaf(0, address(0), 1_000), Leaf(1, address(0), 700)
    domain = vault.chain.domain(1)
    row = first.hash() + second.hash()
    top = keccak256(row)[:24] + (1_700).to_bytes(8, "big")
    return PayoutTree(domain, (first, second), domain.bind(top, 1), 1, (row, top), {0: 0, 1: 1})


def test_forged_claims_reach_no_root(vault):
    """Wrong amount, account, index, path and epoch are all refused."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    other = vault.tree(2, {i: a + 1 for i, a in AMOUNTS.items()})
    vault.post(other)
    proof = tree.prove(5)
    wrong = "Tree: proof does not reach the root"
    beyond = "Tree: beyond the tree"

    def claim(forged: Proof, epoch: int = 1) -> str:
        return reason(lambda: vault.chain.claim(epoch, forged))

    assert claim(replace(proof, leaf=replace(proof.leaf, amount=6_001))) == wrong
    assert claim(replace(proof, leaf=replace(proof.leaf, address="0x" + "77" * 20))) == wrong
    assert claim(replace(proof, leaf=replace(proof.leaf, index=4))) == wrong
    assert claim(replace(proof, leaf=replace(proof.leaf, index=5 + 16))) == beyond
    assert claim(replace(proof, leaf=replace(proof.leaf, index=2), path=proof.path[1:])) == wrong
    assert claim(replace(proof, path=proof.path[:-1])) == wrong
    assert claim(replace(proof, path=(*proof.path, b"\0" * 32))) == wrong
    assert claim(replace(proof, path=proof.path[::-1])) == wrong
    assert claim(proof, epoch=2) == wrong
    assert claim(proof, epoch=3) == "Epochs: no active root"
    assert vault.chain.status().paid == 0


@pytest.mark.parametrize(
    "change",
    [{"chain_id": 1}, {"contract": "0x" + "c0" * 20}, {"token": "0x" + "70" * 20}, {"epoch": 2}],
    ids=lambda change: next(iter(change)),
)
def test_a_root_for_another_place_pays_nobody(vault, change):
    """A root that was bound to another chain, contract, token or epoch opens to no proof here."""
    domain = replace(vault.chain.domain(1), **change)
    tree = PayoutTree.build([Leaf(i, address(i), a) for i, a in AMOUNTS.items()], domain)
    vault.chain.post(1, tree.root, tree.total, b"\7" * 32)
    vault.chain.jump(60)

    assert reason(lambda: vault.chain.claim(1, tree.prove(0))) == "Tree: proof does not reach the root"
    assert reason(lambda: vault.chain.push(1, tree.prove_range(0, 4))) == "Tree: proof does not reach the root"


def test_forged_pushes_reach_no_root(vault):
    """Changed, missing and added payees, unaligned starts, nodes as leaves and ranges beyond the tree are refused."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    proof = tree.prove_range(8, 4)
    wrong = "Tree: proof does not reach the root"
    first = proof.leaves[0]

    def push(forged: RangeProof) -> str:
        return reason(lambda: vault.chain.push(1, forged))

    assert push(replace(proof, leaves=(replace(first, amount=1), *proof.leaves[1:]))) == wrong
    assert push(replace(proof, leaves=proof.leaves[1:])) == wrong
    assert push(replace(proof, start=4, leaves=tree.prove_range(4, 4).leaves)) == wrong
    assert push(replace(proof, path=proof.path[:-1])) == "Tree: beyond the tree"
    assert push(replace(proof, path=(*proof.path, b"\0" * 32))) == wrong
    assert push(replace(tree.prove_range(12, 1), path=tree.prove_range(12, 1).path[1:])) == "Tree: beyond the tree"
    moved = RangeProof(16, 2, tuple(replace(leaf, index=leaf.index + 8) for leaf in proof.leaves), proof.path)
    assert push(moved) == "Tree: beyond the tree"
    contract = vault.contract()

    def raw(payload: bytes) -> str:
        return reason(lambda: vault.send(contract.functions.push(1, payload, 2**256 - 1, words(proof.path))))

    body = proof.payload()[4:]
    assert raw((9).to_bytes(4, "big") + body) == "Payout: start is not aligned"
    assert raw((8).to_bytes(4, "big") + body[:-1]) == "Payout: records are cut"
    assert raw((8).to_bytes(4, "big")) == "Payout: records are cut"
    assert raw((8).to_bytes(4, "big") + bytes(28 * 4)) == wrong
    assert raw((2**32 - 4).to_bytes(4, "big") + body) == "Tree: beyond the tree"
    assert vault.chain.status().paid == 0


def test_a_node_cannot_be_shown_as_a_leaf(vault):
    """The 64 bytes under a node fit no leaf: the claim of a leaf made of hashes is refused."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    # What a tree without prefixes would accept: a node's children read as index, account and amount, one row up.
    children = tree.prove(3).leaf.hash() + tree.prove(2).leaf.hash()
    account, amount = format_address(children[4:24]), int.from_bytes(children[24:32]) & (2**48 - 1)
    call = vault.contract().functions.claim(1, 1, account, amount, words(tree.prove(2).path[1:]))

    assert reason(lambda: vault.send(call)) == "Tree: proof does not reach the root"


def test_leaves_out_of_range_are_refused(vault):
    """An index beyond 32 bits or an amount beyond 48 is refused before it is hashed."""
    vault.post(vault.tree(1, AMOUNTS))
    functions = vault.contract().functions
    me = vault.node.signers[0].address

    assert reason(lambda: vault.send(functions.claim(1, 2**32, me, 1, []))) == "Payout: leaf out of range"
    assert reason(lambda: vault.send(functions.claim(1, 0, me, 2**48, []))) == "Payout: leaf out of range"


def test_a_wrong_root_costs_no_more_than_it_promises(vault):
    """A root whose leaves add up to more than its total pays until the total is spent, then nothing."""
    greedy = vault.tree(1, {0: 600_000, 1: 600_000, 2: 400_000})
    vault.post(greedy, total=1_000_000)
    vault.chain.claim(1, greedy.prove(0))

    assert reason(lambda: vault.chain.claim(1, greedy.prove(1))) == "Payout: above what is promised"
    assert reason(lambda: vault.chain.push(1, greedy.prove_range(0, 4))) == "Payout: above what is promised"
    assert vault.chain.claim(1, greedy.prove(2)).amount == 400_000
    assert vault.chain.status().paid == 1_000_000


def test_later_deposits_do_not_feed_an_older_root(vault):
    """Money that arrives after a greedy root was posted is out of its reach."""
    greedy = vault.tree(1, {0: 600_000, 1: 600_000})
    vault.post(greedy, total=600_000)
    vault.chain.claim(1, greedy.prove(0))
    vault.chain.fund(5_000_000)

    assert reason(lambda: vault.chain.claim(1, greedy.prove(1))) == "Payout: above what is promised"


def test_a_pending_root_lends_nothing_to_the_one_before(vault):
    """While a new root is pending, neither its total nor money deposited meanwhile feeds the older root."""
    greedy = vault.tree(1, {0: 600_000, 1: 600_000})
    vault.post(greedy, total=600_000)
    vault.chain.claim(1, greedy.prove(0))
    vault.chain.post(2, b"\2" * 32, 2_000_000, b"\7" * 32)

    assert reason(lambda: vault.chain.claim(1, greedy.prove(1))) == "Payout: above what is promised"
    vault.chain.fund(5_000_000)
    assert reason(lambda: vault.chain.claim(1, greedy.prove(1))) == "Payout: above what is promised"
    vault.guardian.cancel(2)
    assert vault.chain.status().promised == 600_000
    assert reason(lambda: vault.chain.claim(1, greedy.prove(1))) == "Payout: above what is promised"


def test_the_contract_and_the_library_bind_roots_alike(vault):
    """Both compute the same domain, so a root made off chain fits on chain."""
    for epoch in (1, 2, 2**32 - 1):
        on_chain = vault.contract().functions.domain_of(epoch).call()
        assert bytes(on_chain) == vault.chain.domain(epoch).digest()
