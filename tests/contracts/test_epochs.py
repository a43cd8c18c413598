"""Roots: who may post them, what they may promise, when they count, and who may stop what."""

from __future__ import annotations

import pytest

from headwater.chain import RevertedError
from headwater.core.errors import ConflictError

DELAY_S = 60
CAP = 100_000_000
FUNDS = 250_000_000
DATA = b"\x07" * 32
AMOUNTS = {0: 1_000, 1: 2_000}


def reason(call) -> str:
    """The contract's word when `call` is refused."""
    with pytest.raises(RevertedError) as refused:
        call()
    return refused.value.reason


def root(number: int) -> bytes:
    """Any root."""
    return bytes([number]) * 32


def test_a_root_counts_after_its_delay_and_not_before(vault):
    """Claims wait for the delay to pass."""
    tree = vault.tree(1, AMOUNTS)
    vault.chain.post(1, tree.root, tree.total, DATA)

    assert vault.chain.status_of(1) == "pending"
    assert reason(lambda: vault.chain.claim(1, tree.prove(0))) == "Epochs: root is pending"
    vault.chain.jump(DELAY_S - 10)
    assert reason(lambda: vault.chain.push(1, tree.prove_range(0, 2))) == "Epochs: root is pending"
    vault.chain.jump(10)
    assert vault.chain.status_of(1) == "active"
    assert vault.chain.claim(1, tree.prove(0)).amount == 1_000


def test_only_what_is_funded_can_be_promised(vault):
    """A total above all deposits is refused; deposited money makes room for it."""
    vault.send(vault.contract().functions.set_cap(2 * FUNDS))

    assert reason(lambda: vault.chain.post(1, root(1), FUNDS + 1, DATA)) == "Epochs: not funded"
    vault.chain.fund(1)
    assert vault.chain.post(1, root(1), FUNDS + 1, DATA).total == FUNDS + 1


def test_tokens_sent_without_a_deposit_back_nothing(vault):
    """A plain transfer to the contract does not count as funds."""
    vault.send(vault.contract().functions.set_cap(2 * FUNDS))
    vault.chain.mint(vault.chain.manifest.payout, 1_000)

    assert vault.chain.status().funded == FUNDS
    assert reason(lambda: vault.chain.post(1, root(1), FUNDS + 1, DATA)) == "Epochs: not funded"


def test_an_epoch_raises_the_total_by_the_cap_at_most(vault):
    """The cap is measured against the total before, for each epoch anew."""
    assert reason(lambda: vault.chain.post(1, root(1), CAP + 1, DATA)) == "Epochs: above the cap"
    vault.chain.post(1, root(1), CAP, DATA)
    vault.chain.jump(DELAY_S)
    assert reason(lambda: vault.chain.post(2, root(2), 2 * CAP + 1, DATA)) == "Epochs: above the cap"
    vault.chain.post(2, root(2), 2 * CAP, DATA)


def test_a_total_never_falls(vault):
    """What was promised stays promised."""
    vault.chain.post(1, root(1), 500, DATA)
    vault.chain.jump(DELAY_S)

    assert reason(lambda: vault.chain.post(2, root(2), 499, DATA)) == "Epochs: total fell"
    vault.chain.post(2, root(2), 500, DATA)


def test_one_root_is_pending_at_a_time(vault):
    """A second root waits until the first is active, so a bad poster gets one cap per delay."""
    vault.chain.post(1, root(1), 10, DATA)

    assert reason(lambda: vault.chain.post(2, root(2), 20, DATA)) == "Epochs: another root is pending"


def test_posting_again_finds_what_is_there(vault):
    """The same post answers as the first one did; another root, total or digest is a conflict."""
    first = vault.chain.post(1, root(1), 10, DATA)

    assert vault.chain.post(1, root(1), 10, DATA) == first
    assert vault.chain.posted(1) == first
    assert vault.chain.data_hash(1) == DATA
    for other in ((root(2), 10, DATA), (root(1), 11, DATA), (root(1), 10, root(8))):
        with pytest.raises(ConflictError) as refused:
            vault.chain.post(1, *other)
        assert refused.value.code == "epoch_conflict"


def test_epoch_numbers_only_rise(vault):
    """A number is used once, may leave some out, and cannot run far ahead."""
    vault.chain.post(3, root(1), 10, DATA)
    vault.chain.jump(DELAY_S)
    functions = vault.contract().functions

    for number in (0, 2, 3, 3 + 2**16 + 1):
        word = reason(lambda number=number: vault.send(functions.post(number, root(2), 10, DATA)))
        assert word == "Epochs: not the next epoch"
    with pytest.raises(ConflictError):
        vault.chain.post(2, root(2), 10, DATA)
    assert reason(lambda: vault.send(functions.post(4, bytes(32), 10, DATA))) == "Epochs: empty root"
    vault.chain.post(3 + 2**16, root(2), 10, DATA)


def test_two_active_roots_stay_claimable(vault):
    """The root before the newest active one still pays; the one before that does not."""
    trees = {}
    for epoch in (1, 2, 3):
        trees[epoch] = vault.tree(epoch, {i: a * epoch for i, a in AMOUNTS.items()})
        vault.chain.post(epoch, trees[epoch].root, trees[epoch].total, DATA)
        if epoch == 3:
            assert [vault.chain.status_of(e) for e in (1, 2, 3)] == ["active", "active", "pending"]
            assert vault.chain.claim(1, trees[1].prove(0)).amount == 1_000
        vault.chain.jump(DELAY_S)
    assert [vault.chain.status_of(e) for e in (0, 1, 2, 3, 4)] == ["unknown", "expired", "active", "active", "unknown"]
    assert reason(lambda: vault.chain.claim(1, trees[1].prove(1))) == "Epochs: no active root"
    assert vault.chain.claim(2, trees[2].prove(0)).amount == 1_000
    assert vault.chain.claim(3, trees[3].prove(0)).amount == 1_000


def test_a_cancelled_root_never_pays(vault):
    """The guardian cancels a pending root; the roots before it count again and the next one replaces it."""
    trees = {epoch: vault.tree(epoch, {i: a * epoch for i, a in AMOUNTS.items()}) for epoch in (1, 2, 3, 4)}
    for epoch in (1, 2):
        vault.post(trees[epoch])
    vault.chain.post(3, trees[3].root, trees[3].total, DATA)
    vault.guardian.cancel(3)

    assert vault.chain.root_at(3) is None
    assert vault.chain.status().promised == trees[2].total
    assert [vault.chain.status_of(e) for e in (1, 2, 3)] == ["active", "active", "unknown"]
    with pytest.raises(ConflictError) as refused:
        vault.chain.post(3, trees[3].root, trees[3].total, DATA)
    assert refused.value.code == "epoch_used"
    vault.chain.post(4, trees[4].root, trees[4].total, DATA)
    assert vault.chain.claim(1, trees[1].prove(0)).amount == 1_000
    vault.chain.jump(DELAY_S)
    assert [vault.chain.status_of(e) for e in (1, 2, 3, 4)] == ["expired", "active", "unknown", "active"]
    assert reason(lambda: vault.chain.claim(3, trees[3].prove(0))) == "Epochs: no active root"
    assert vault.chain.claim(4, trees[4].prove(0)).amount == 3_000


def test_the_first_root_can_be_cancelled(vault):
    """Before any root is active a cancellation leaves nothing to claim from."""
    tree = vault.tree(1, AMOUNTS)
    vault.chain.post(1, tree.root, tree.total, DATA)
    vault.guardian.cancel(1)
    vault.chain.jump(DELAY_S)

    assert vault.chain.status().newest_epoch == 0
    assert reason(lambda: vault.chain.claim(1, tree.prove(0))) == "Epochs: no active root"
    assert reason(lambda: vault.chain.claim(0, tree.prove(0))) == "Epochs: no active root"


def test_only_a_pending_root_is_cancelled_and_only_by_the_guardian(vault):
    """An active root stays, whoever asks; poster and strangers cancel nothing."""
    vault.chain.post(1, root(1), 10, DATA)

    assert reason(lambda: vault.chain.cancel(1)) == "Epochs: not the guardian"
    assert reason(lambda: vault.stranger.cancel(1)) == "Epochs: not the guardian"
    assert reason(lambda: vault.guardian.cancel(2)) == "Epochs: not the newest root"
    vault.chain.jump(DELAY_S)
    assert reason(lambda: vault.guardian.cancel(1)) == "Epochs: already active"


def test_only_the_poster_posts(vault):
    """Guardian and strangers post nothing."""
    for chain in (vault.guardian, vault.stranger):
        assert reason(lambda chain=chain: chain.post(1, root(1), 10, DATA)) == "Epochs: not the poster"


def test_each_function_is_paused_alone(vault):
    """The guardian stops what it names; only the owner lets it run again."""
    tree = vault.tree(1, AMOUNTS)
    vault.post(tree)
    vault.guardian.pause(["claim"])

    assert vault.chain.status().paused == ("claim",)
    assert reason(lambda: vault.chain.claim(1, tree.prove(0))) == "Epochs: paused"
    assert vault.chain.push(1, tree.prove_range(0, 1)).amount == 1_000
    vault.guardian.pause(["push", "deposit", "post"])
    assert vault.chain.status().paused == ("post", "claim", "push", "deposit")
    assert reason(lambda: vault.chain.push(1, tree.prove_range(0, 2))) == "Epochs: paused"
    assert reason(lambda: vault.chain.fund(1)) == "Epochs: paused"
    assert reason(lambda: vault.chain.post(2, root(2), tree.total, DATA)) == "Epochs: post is paused"
    assert reason(lambda: vault.guardian.unpause(["claim"])) == "Epochs: not the owner"
    assert reason(lambda: vault.stranger.pause(["claim"])) == "Epochs: not the guardian"
    vault.chain.unpause(["claim", "push"])
    assert vault.chain.status().paused == ("post", "deposit")
    assert vault.chain.claim(1, tree.prove(1)).amount == 2_000
    assert reason(lambda: vault.send(vault.contract().functions.pause(16))) == "Epochs: unknown flag"


def test_pauses_survive_posts_and_cancellations(vault):
    """Neither posting nor cancelling lifts a pause."""
    vault.guardian.pause(["claim"])
    vault.chain.post(1, root(1), 10, DATA)
    assert vault.chain.status().paused == ("claim",)
    vault.guardian.cancel(1)
    assert vault.chain.status().paused == ("claim",)


def test_ownership_moves_in_two_steps(vault):
    """An offer changes nothing until the one it names takes it; then the former owner has no say."""
    functions = vault.contract().functions
    new = vault.node.signers[3].address
    vault.send(functions.offer_ownership(new))

    assert vault.chain.status().owner == vault.node.signers[0].address
    assert reason(lambda: vault.send(functions.take_ownership(), 4)) == "Epochs: not the pending owner"
    vault.send(functions.take_ownership(), 3)
    assert vault.chain.status().owner == new
    assert reason(lambda: vault.send(functions.take_ownership(), 3)) == "Epochs: not the pending owner"
    assert reason(lambda: vault.send(functions.set_cap(1))) == "Epochs: not the owner"
    vault.send(functions.set_cap(1), 3)
    assert vault.chain.status().cap == 1


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("set_cap", (1,)),
        ("set_delay", (1,)),
        ("set_poster", ("0x" + "11" * 20,)),
        ("set_guardian", ("0x" + "11" * 20,)),
        ("offer_ownership", ("0x" + "11" * 20,)),
        ("unpause", (1,)),
    ],
)
def test_limits_and_roles_are_the_owners(vault, function, arguments):
    """Guardian and strangers change no role and no limit."""
    call = vault.contract().functions[function](*arguments)

    assert reason(lambda: vault.send(call, 1)) == "Epochs: not the owner"
    assert reason(lambda: vault.send(call, 2)) == "Epochs: not the owner"


def test_limits_are_set_one_by_one(vault):
    """Changing one limit leaves the other, the deposits and the epoch numbers as they were."""
    functions = vault.contract().functions
    vault.chain.post(9, root(1), 10, DATA)
    vault.send(functions.set_cap(77))
    vault.send(functions.set_delay(5))
    status = vault.chain.status()

    assert (status.cap, status.delay_s, status.funded, status.highest_epoch) == (77, 5, FUNDS, 9)
    assert reason(lambda: vault.send(functions.set_cap(2**64))) == "Epochs: cap above 2^64"
    assert reason(lambda: vault.send(functions.set_delay(30 * 86_400 + 1))) == "Epochs: delay above 30 days"


def test_poster_and_guardian_are_never_one(vault):
    """Neither role can be given to the holder of the other, nor to nobody."""
    functions = vault.contract().functions
    poster, guardian = (vault.node.signers[i].address for i in (0, 1))
    nobody = "0x" + "00" * 20

    assert reason(lambda: vault.send(functions.set_poster(guardian))) == "Epochs: poster is guardian"
    assert reason(lambda: vault.send(functions.set_guardian(poster))) == "Epochs: poster is guardian"
    assert reason(lambda: vault.send(functions.set_poster(nobody))) == "Epochs: no such role"
    assert reason(lambda: vault.node.chain(0).deploy(guardian=poster, cap=1, delay_s=0)) == "Epochs: poster is guardian"
    vault.send(functions.set_poster(vault.node.signers[5].address))
    assert vault.chain.status().poster == vault.node.signers[5].address
