"""The watcher against ten kinds of wrong root on a real chain, and against a right one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from chain_nodes import anvil, ask

from headwater.chain import Chain, Disputes, EmbeddedChain, derived_signer
from headwater.chain.watching import Published, Watcher
from headwater.core.canonical import canonical
from headwater.core.errors import MissingError
from headwater.core.ids import AccountId
from headwater.receipts import manifest_hash
from headwater.settlement import Leaf, PayoutTree, tree
from headwater.settlement.epoch import Epoch, Payee, Window, close, read_manifest
from headwater.settlement.fraud import show

SEED = b"\x33" * 32
BOND, DELAY_S = 1_000_000, 3_600
PAYEES = tuple(Payee(i, AccountId(f"contributor:{i}"), f"0x{0xA0 + i:040x}") for i in range(6))


@dataclass
class World:
    """A deployment with one active epoch, a second one that may be forged, and what was published."""

    poster: Chain
    watcher: Chain
    guardian: Chain
    published: dict[int, Published]
    honest: Epoch  # the second epoch as it should be

    def source(self, number: int) -> Published:
        """What was published for an epoch."""
        if number not in self.published:
            raise MissingError(f"nothing for epoch {number}", code="object_missing", fix="wait")
        return self.published[number]

    def post(self, payout: PayoutTree, *, total: int | None = None, manifest: bytes | None = None) -> None:
        """Post a second epoch; the honest manifest unless another is given."""
        raw = self.honest.manifest if manifest is None else manifest
        self.published.setdefault(2, Published(raw))
        self.poster.post(2, payout.root, payout.total if total is None else total, manifest_hash(raw))


def epoch_of(chain: Chain, number: int, payouts: list[tuple[int, int]], before: Epoch | None) -> Epoch:
    """A closed epoch that pays `payouts`, (payee, token units)."""
    return close(
        Window(number, 10 * number, 10 * number + 10, bytes(32), 10**18),
        [(PAYEES[who].account, units * 1_000) for who, units in payouts],
        previous=dict(before.totals) if before else {},
        previous_digest=None,
        previous_amounts=before.token_amounts if before else (),
        payees=PAYEES,
        domain=chain.domain(number),
        token_decimals=6,
        policy_digests=[],
        registry_digest="sha256:" + "0" * 64,
    )


@pytest.fixture(scope="module", params=["embedded", pytest.param("anvil", marks=pytest.mark.anvil)])
def provider(request, tmp_path_factory) -> Iterator[object]:
    """A running chain with money for our keys."""
    if request.param == "embedded":
        with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as chain:
            yield chain.provider()
        return
    with anvil(tmp_path_factory.mktemp("anvil")) as url:
        for number in range(3):
            ask(url, "anvil_setBalance", derived_signer(SEED, number).address, hex(10**22))
        from web3 import HTTPProvider

        yield HTTPProvider(url)


@pytest.fixture(scope="module")
def started(provider) -> World:
    """Deployed, funded, staked, and the first epoch active."""
    poster = Chain(provider, derived_signer(SEED, 0), poll_s=0.01)
    guardian = derived_signer(SEED, 1)
    poster.deploy(guardian=guardian.address, cap=10**9, delay_s=DELAY_S, bond=BOND)
    poster.fund(10**8)
    Disputes(poster).stake(BOND)
    stranger = derived_signer(SEED, 2)
    poster.mint(stranger.address, 3 * BOND)
    first = epoch_of(poster, 1, [(i, 1_000 * (i + 1)) for i in range(6)], None)
    poster.post(1, first.tree.root, first.tree.total, first.data_hash)
    poster.jump(DELAY_S + 1)
    second = epoch_of(poster, 2, [(i, 500) for i in range(6)], first)
    published = {1: Published(first.manifest, first.changes)}
    return World(poster, poster.acting_as(stranger), poster.acting_as(guardian), published, second)


@pytest.fixture
def world(started, provider) -> Iterator[World]:
    """The deployment, put back after the test."""
    number = provider.make_request("evm_snapshot", [])["result"]
    yield replace(started, published=dict(started.published))
    provider.make_request("evm_revert", [number])
    for chain in (started.poster, started.watcher, started.guardian):
        chain.sender._next_nonce = 0


def forged(world: World, **changes) -> PayoutTree:
    """A tree of the honest leaves with one of them changed."""
    leaves = {leaf.index: leaf for leaf in world.honest.tree.leaves}
    for name, leaf in changes.items():
        index = int(name[1:])
        if leaf is None:
            del leaves[index]
        else:
            leaves[index] = leaf
    return PayoutTree.build(list(leaves.values()), world.poster.domain(2))


def manifest_of(world: World, payout: PayoutTree, **fields) -> bytes:
    """The honest manifest with the payees of another tree."""
    manifest = dict(read_manifest(world.honest.manifest))
    accounts = {leaf.index: f"contributor:{leaf.index}" for leaf in payout.leaves}
    manifest["payees"] = [
        {
            "index": leaf.index,
            "account": accounts[leaf.index],
            "address": leaf.address,
            "cumulative_token_units": str(leaf.amount),
        }
        for leaf in payout.leaves
    ]
    manifest |= {"total_token_units": str(payout.total), "tree_root": payout.root.hex()} | fields
    return canonical(json.loads(json.dumps(manifest)))


def at(world: World, index: int, amount: int | None = None, address: str | None = None) -> Leaf:
    """An honest leaf with another amount or address."""
    leaf = world.honest.tree.leaf(index)
    return Leaf(index, address or leaf.address, leaf.amount if amount is None else amount)


def post_sum_inflated(world):
    """More is promised than the leaves add up to."""
    world.post(world.honest.tree, total=world.honest.tree.total + 1_000_000)


def post_total_below(world):
    """Less is promised than the leaves add up to."""
    world.post(world.honest.tree, total=world.honest.tree.total - 1)


def post_lowered(world):
    """Somebody has less than in the epoch before."""
    payout = forged(world, _3=at(world, 3, 3_999), _4=at(world, 4, 9_000))
    world.post(payout, manifest=manifest_of(world, payout))


def post_swapped(world):
    """Two payees have changed addresses."""
    payout = forged(world, _1=at(world, 1, address=PAYEES[2].address), _2=at(world, 2, address=PAYEES[1].address))
    world.post(payout, manifest=manifest_of(world, payout))


def post_missing(world):
    """A payee who could claim is gone."""
    payout = forged(world, _0=None)
    world.post(payout, manifest=manifest_of(world, payout))


def post_raised(world):
    """The root pays somebody more than what is published."""
    payout = forged(world, _5=at(world, 5, 50_000))
    world.post(payout, total=payout.total)


def post_domain(world):
    """The root is bound to another epoch."""
    leaves = list(world.honest.tree.leaves)
    world.post(PayoutTree.build(leaves, world.poster.domain(3)))


def post_data_hash(world):
    """The data that are published are not those whose hash is on the chain."""
    other = manifest_of(world, world.honest.tree, closed_at="2030-01-01T00:00:00Z")
    world.published[2] = Published(world.honest.manifest)
    world.post(world.honest.tree, manifest=other)


def post_withheld(world):
    """Nothing is published."""
    world.post(world.honest.tree)
    del world.published[2]


def post_duplicate(world):
    """One address stands at two places."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tree, "_check_leaves", lambda *_: None)
        payout = PayoutTree.build([*world.honest.tree.leaves, Leaf(6, PAYEES[0].address, 77)], world.poster.domain(2))
    world.post(payout, manifest=manifest_of(world, payout))


PROVABLE = {
    post_sum_inflated: "total_differs",
    post_total_below: "total_differs",
    post_lowered: "leaf_lowered",
    post_swapped: "leaf_lowered",
    post_missing: "leaf_lowered",
}
HIDDEN = {
    post_raised: "root_differs",
    post_domain: "root_differs",
    post_data_hash: "data_hash_differs",
    post_withheld: "data_withheld",
}
ALL = {**PROVABLE, **HIDDEN, post_duplicate: "payee_twice"}


def named(case) -> str:
    """A case's name in a test's."""
    return case.__name__.removeprefix("post_")


@pytest.mark.parametrize("case", PROVABLE, ids=named)
def test_what_the_contract_can_judge_is_refuted_at_once(world, case):
    """The root ends, the watcher has the poster's bond, and the epoch before is still claimed from."""
    case(world)
    before = world.watcher.balance(world.watcher.sender.signer.address)
    report = Watcher(world.watcher, world.source).turn()

    assert report.done == "refuted"
    assert PROVABLE[case] in {problem.code for problem in report.verdict.problems}
    assert world.poster.root_at(2) is None
    assert world.poster.status_of(1) == "active"
    assert world.watcher.balance(world.watcher.sender.signer.address) == before + BOND
    assert Watcher(world.watcher, world.source).turn() is None


@pytest.mark.parametrize("case", HIDDEN, ids=named)
def test_what_nobody_can_recompute_is_challenged_until_it_ends(world, case):
    """A bond goes up, nobody shows the leaf, and after the deadline both bonds are the watcher's."""
    case(world)
    me = world.watcher.sender.signer.address
    before, watcher = world.watcher.balance(me), Watcher(world.watcher, world.source)
    report = watcher.turn()
    assert report.done == "challenged"
    assert HIDDEN[case] in {problem.code for problem in report.verdict.problems}
    assert watcher.turn().done == "waiting"
    world.poster.jump(DELAY_S + 1)

    assert watcher.turn().done == "expired"
    assert world.poster.root_at(2) is None
    assert world.watcher.balance(me) == before + BOND


@pytest.mark.parametrize("case", ALL, ids=named)
def test_a_guardian_that_watches_ends_every_kind(world, case):
    """Ten kinds of wrong root, one turn each: none is left to become active."""
    case(world)
    report = Watcher(world.guardian, world.source).turn()

    assert report.done == ("refuted" if case in PROVABLE else "cancelled")
    assert ALL[case] in {problem.code for problem in report.verdict.problems}
    assert world.poster.root_at(2) is None
    assert len(ALL) == 10


def test_a_right_root_is_left_alone(world):
    """Nothing is sent, nothing is found, with and without the change set."""
    world.published[2] = Published(world.honest.manifest, world.honest.changes)
    world.post(world.honest.tree)
    report = Watcher(world.watcher, world.source, hold=True).turn()

    assert (report.done, report.verdict.problems, report.transaction) == ("accepted", (), None)
    world.poster.jump(DELAY_S + 1)
    assert Watcher(world.watcher, world.source).turn() is None


def test_money_for_the_wrong_payee_within_the_tree_is_told_and_held(world):
    """A payee with more than its account has: no chain can judge it, so it is reported, or held with a bond."""
    payout = forged(world, _5=at(world, 5, 60_000))
    world.post(payout, manifest=manifest_of(world, payout))
    told = Watcher(world.watcher, world.source).turn()
    assert (told.done, told.transaction) == ("reported", None)
    assert {problem.code for problem in told.verdict.problems} == {"amount_differs"}
    held = Watcher(world.watcher, world.source, hold=True).turn()
    assert held.done == "challenged"

    # The poster knows its tree and answers: the bond is lost, and a whole delay is left for the guardian.
    Disputes(world.poster).answer(2, show(payout, held.verdict.index))
    assert world.poster.status_of(2) == "pending"
    assert Watcher(world.guardian, world.source).turn().done == "cancelled"


def test_a_change_set_that_says_otherwise_is_a_problem(world):
    """The packed changes have to lead to the same amounts as the manifest."""
    world.published[2] = Published(world.honest.manifest, world.published[1].changes)
    world.post(world.honest.tree)
    verdict = Watcher(world.watcher, world.source).examine(2)

    assert {problem.code for problem in verdict.problems} == {"changes_differ"}
    assert verdict.remedy == "cancel"


def test_a_watcher_without_a_key_reports(world):
    """It looks and says what it would do."""
    post_lowered(world)
    reader = world.poster.acting_as(None)
    report = Watcher(reader, world.source).turn()

    assert (report.done, report.verdict.remedy) == ("reported", "refute")
    with pytest.raises(MissingError):
        Watcher(reader, world.source).examine(9)
