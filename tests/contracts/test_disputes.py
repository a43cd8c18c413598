"""Stopping a wrong root without a judge: proofs of fraud, challenges, and where the bonds go."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwater.chain import Disputes, RevertedError
from headwater.settlement import Leaf, PayoutTree
from headwater.settlement.fraud import Lowered, WrongSum, find_fraud, show

BOND = 5_000
DELAY_S = 60
DATA = b"\x07" * 32
AMOUNTS = {i: (i + 1) * 1_000 for i in range(6)}


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


@pytest.fixture
def bonded(vault):
    """A deployment that asks for bonds, with a first active root; the stranger has money for a bond."""
    owner = vault.node.chain(0)
    manifest = owner.deploy(guardian=vault.node.signers[1].address, cap=100_000, delay_s=DELAY_S, bond=BOND)
    owner.fund(1_000_000)
    Disputes(owner).stake(BOND)
    other = replace(vault, chain=owner, guardian=vault.node.chain(1, manifest), stranger=vault.node.chain(2, manifest))
    owner.mint(vault.node.signers[2].address, 10 * BOND)
    other.post(other.tree(1, AMOUNTS))
    return other


def post_second(vault, amounts: dict[int, int], total: int | None = None) -> PayoutTree:
    """Post a second root and leave it pending."""
    tree = vault.tree(2, amounts)
    vault.chain.post(2, tree.root, tree.total if total is None else total, DATA)
    return tree


@pytest.mark.parametrize(
    "change",
    [{5: 5_999, 0: 8_000}, {5: None, 0: 9_000}, {3: None, 4: None, 5: None, 0: 16_000}],
    ids=["lowered", "left out", "tree too narrow"],
)
def test_a_lowered_leaf_ends_the_root(bonded, change):
    """Two paths cancel the root at once; the poster's stake goes to whoever brought them."""
    before = bonded.tree(1, AMOUNTS)
    after = post_second(bonded, {i: a for i, a in (AMOUNTS | change).items() if a is not None})
    fraud = find_fraud(before, after, after.total)
    assert isinstance(fraud, Lowered)
    stranger = Disputes(bonded.stranger)
    held = bonded.chain.balance(bonded.node.signers[2].address)
    stranger.refute(2, fraud)

    assert bonded.chain.status_of(2) == "unknown"
    assert bonded.chain.status().promised == before.total
    assert (stranger.staked(), stranger.owed(bonded.node.signers[2].address)) == (0, BOND)
    stranger.withdraw()
    assert bonded.chain.balance(bonded.node.signers[2].address) == held + BOND
    assert bonded.chain.status().bonds_held == 0
    assert bonded.chain.status().paid == 0
    assert bonded.chain.claim(1, before.prove(5)).amount == 6_000
    assert reason(lambda: bonded.chain.post(3, before.root, before.total, DATA)) == "Epochs: no stake"


def test_an_index_given_to_another_account_ends_the_root(bonded):
    """However alike two accounts end, the whole account is compared: no tag decides what is fraud."""
    before = bonded.tree(1, AMOUNTS)
    same_tag = "0x77" + before.leaf(2).address[4:]
    leaves = [replace(leaf, address=same_tag, amount=9_000) if leaf.index == 2 else leaf for leaf in before.leaves]
    after = PayoutTree.build(leaves, bonded.chain.domain(2))
    bonded.chain.post(2, after.root, after.total, DATA)
    fraud = find_fraud(before, after, after.total)

    assert isinstance(fraud, Lowered)
    Disputes(bonded.stranger).refute(2, fraud)
    assert bonded.chain.root_at(2) is None


@pytest.mark.parametrize("off", [-1_000, 1, 500])
def test_leaves_that_do_not_add_up_end_the_root(bonded, off):
    """The top of the tree shows its own sum; another total than that cannot stand."""
    amounts = {i: a + 1_000 for i, a in AMOUNTS.items()}
    after = post_second(bonded, amounts, total=sum(amounts.values()) + off)
    fraud = find_fraud(bonded.tree(1, AMOUNTS), after, sum(amounts.values()) + off)

    assert fraud == WrongSum(after.depth, after.top, after.total)
    Disputes(bonded.stranger).refute(2, fraud)
    assert bonded.chain.status().promised == sum(AMOUNTS.values())


def test_a_right_root_cannot_be_refuted(bonded):
    """Higher amounts and new payees are no fraud, and forged evidence proves nothing."""
    before = bonded.tree(1, AMOUNTS)
    after = post_second(bonded, {i: a + 500 for i, a in AMOUNTS.items()} | {6: 1, 9: 1})
    stranger = Disputes(bonded.stranger)
    old, new = show(before, 4), show(after, 4)
    wrong = "Tree: proof does not reach the root"

    assert find_fraud(before, after, after.total) is None
    assert reason(lambda: stranger.refute(2, Lowered(old, new))) == "Disputes: nothing is wrong with it"
    assert reason(lambda: stranger.refute(2, Lowered(replace(old, amount=9_999), new))) == wrong
    assert reason(lambda: stranger.refute(2, Lowered(old, replace(new, amount=1)))) == wrong
    assert reason(lambda: stranger.refute(2, Lowered(old, replace(new, address=None, amount=0)))) == wrong
    assert reason(lambda: stranger.refute(2, Lowered(old, replace(new, path=new.path[:-1])))) == wrong
    assert reason(lambda: stranger.refute(2, Lowered(old, replace(new, path=new.path[1:])))) == wrong
    other = replace(show(after, 0), index=4)
    assert reason(lambda: stranger.refute(2, Lowered(old, other))) == wrong
    right = WrongSum(after.depth, after.top, after.total)
    assert reason(lambda: stranger.refute(2, right)) == "Disputes: nothing is wrong with it"
    forged = replace(right, top=after.top[:-8] + bytes(8))
    assert reason(lambda: stranger.refute(2, forged)) == "Disputes: not the top of that root"
    assert bonded.chain.status_of(2) == "pending"


def test_an_active_root_is_beyond_dispute(bonded):
    """After the delay nothing ends a root: payees already claim from it."""
    before = bonded.tree(1, AMOUNTS)
    after = post_second(bonded, AMOUNTS | {5: 5_999, 0: 8_000})
    fraud = find_fraud(before, after, after.total)
    bonded.chain.jump(DELAY_S)
    stranger = Disputes(bonded.stranger)

    assert reason(lambda: stranger.refute(2, fraud)) == "Epochs: already active"
    assert reason(lambda: stranger.challenge(2, 0)) == "Epochs: already active"
    assert reason(lambda: stranger.challenge(1, 0)) == "Epochs: not the newest root"


@pytest.mark.parametrize("index", [2, 7, 300], ids=["a leaf", "an empty place", "beyond the tree"])
def test_an_answered_challenge_costs_its_bond(bonded, index):
    """Whoever challenges a root that was published pays for it, and the root waits a whole delay more."""
    after = post_second(bonded, {i: a + 500 for i, a in AMOUNTS.items()})
    stranger, poster = Disputes(bonded.stranger), Disputes(bonded.chain)
    held = bonded.chain.balance(bonded.node.signers[2].address)
    stranger.challenge(2, index)
    opened = stranger.open_challenge()

    assert (opened.challenger, opened.index) == (bonded.node.signers[2].address, index)
    assert bonded.chain.balance(bonded.node.signers[2].address) == held - BOND
    assert reason(lambda: stranger.challenge(2, 0)) == "Disputes: a challenge is open"
    wrong = replace(show(after, 2), amount=1)
    assert reason(lambda: poster.answer(2, wrong)) == "Tree: proof does not reach the root"
    bonded.chain.jump(DELAY_S // 2)
    poster.answer(2, show(after, index))
    assert poster.open_challenge() is None
    assert (poster.staked(), stranger.owed(bonded.node.signers[2].address)) == (2 * BOND, 0)
    bonded.chain.jump(DELAY_S - 10)
    assert bonded.chain.status_of(2) == "pending"
    bonded.chain.jump(10)
    assert bonded.chain.claim(2, after.prove(0)).amount == 1_500
    bonded.chain.push(2, after.prove_range(0, 8))
    assert bonded.chain.status().paid == after.total


def test_challenges_can_be_repeated_and_each_costs_a_bond(bonded):
    """Spam holds a root up at a price, paid to the poster; it ends when the spammer has no more to lose."""
    after = post_second(bonded, {i: a + 500 for i, a in AMOUNTS.items()})
    stranger, poster = Disputes(bonded.stranger), Disputes(bonded.chain)
    start = bonded.chain.balance(bonded.node.signers[2].address)
    for index in range(3):
        stranger.challenge(2, index)
        poster.answer(2, show(after, index))

    assert bonded.chain.balance(bonded.node.signers[2].address) == start - 3 * BOND
    assert poster.staked() == 4 * BOND
    bonded.chain.jump(DELAY_S)
    assert bonded.chain.status_of(2) == "active"
    poster.unstake(4 * BOND)
    poster.withdraw()
    assert bonded.chain.status().bonds_held == 0


def test_a_root_that_nobody_can_show_ends_by_silence(bonded):
    """A poster that publishes nothing cannot answer; its stake is the challenger's and the bond comes back."""
    bonded.chain.post(2, b"\x66" * 32, sum(AMOUNTS.values()) + 99_000, DATA)
    stranger = Disputes(bonded.stranger)
    stranger.challenge(2, 0)

    assert reason(lambda: stranger.expire(2)) == "Disputes: there is time to answer"
    bonded.chain.jump(DELAY_S + 1)
    assert bonded.chain.status_of(2) == "pending"
    Disputes(bonded.guardian).expire(2)
    assert bonded.chain.status_of(2) == "unknown"
    assert stranger.owed(bonded.node.signers[2].address) == 2 * BOND
    stranger.withdraw()
    assert reason(stranger.withdraw) == "Disputes: nothing owed"
    assert bonded.chain.status().promised == sum(AMOUNTS.values())


def test_a_copied_proof_pays_who_challenged(bonded):
    """While a challenge is open the stake is the challenger's, even if the poster refutes itself."""
    before = bonded.tree(1, AMOUNTS)
    after = post_second(bonded, AMOUNTS | {5: 1, 0: 8_000})
    stranger, poster = Disputes(bonded.stranger), Disputes(bonded.chain)
    stranger.challenge(2, 5)
    poster.refute(2, find_fraud(before, after, after.total))

    assert stranger.owed(bonded.node.signers[2].address) == 2 * BOND
    assert poster.owed(bonded.node.signers[0].address) == 0


def test_the_guardian_ends_a_challenge_with_the_root(bonded):
    """A cancelled root gives the challenger its bond back and leaves the stake alone."""
    post_second(bonded, AMOUNTS)
    stranger = Disputes(bonded.stranger)
    stranger.challenge(2, 0)
    bonded.guardian.cancel(2)

    assert stranger.open_challenge() is None
    assert (stranger.owed(bonded.node.signers[2].address), stranger.staked()) == (BOND, BOND)


def test_the_stake_answers_for_a_pending_root(bonded):
    """It cannot leave while a root is pending, neither by hand nor with a new poster."""
    post_second(bonded, AMOUNTS)
    poster = Disputes(bonded.chain)
    new = bonded.node.signers[5].address
    functions = bonded.contract().functions

    assert reason(lambda: poster.unstake(1)) == "Disputes: a root is pending"
    assert reason(lambda: bonded.send(functions.set_poster(new))) == "Epochs: a root is pending"
    bonded.chain.jump(DELAY_S)
    assert reason(lambda: Disputes(bonded.stranger).unstake(1)) == "Disputes: not the poster"
    bonded.send(functions.set_poster(new))
    assert (poster.staked(), poster.owed(bonded.node.signers[0].address)) == (0, BOND)
    bonded.send(functions.set_poster(new))
    assert poster.owed(bonded.node.signers[0].address) == BOND


def test_no_root_reaches_the_bonds(bonded):
    """A root that promises every deposit still leaves stake and bonds in the vault."""
    rest = 1_000_000 - sum(AMOUNTS.values())
    bonded.send(bonded.contract().functions.set_cap(rest))
    after = PayoutTree.build(
        [Leaf(i, f"0x{0xBEEF << 64 | i + 1:040x}", a + (rest + 1 if i == 0 else 0)) for i, a in AMOUNTS.items()],
        bonded.chain.domain(2),
    )
    bonded.chain.post(2, after.root, 1_000_000, DATA)
    bonded.chain.jump(DELAY_S)

    for index in range(1, 6):
        bonded.chain.claim(2, after.prove(index))
    assert reason(lambda: bonded.chain.claim(2, after.prove(0))) == "Payout: above what is promised"
    assert bonded.chain.status().held >= BOND
