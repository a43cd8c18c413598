"""Random histories of the real contracts against a model in plain Python.

Honest and wrong roots, challenges, proofs of fraud, claims, pushes, pauses and time in any order. The model
knows what every call must do before it is made; whatever the contract does otherwise is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tests.contracts.bare_anvil import AnvilBare, AnvilNode
from tests.contracts.bare_evm import Bare, Contract, Refused
from tests.contracts.conftest import find_anvil
from web3 import HTTPProvider

from headwater.chain import Chain, EmbeddedChain, Manifest, derived_signer
from headwater.chain.client import words
from headwater.settlement import Leaf, PayoutTree, format_address
from headwater.settlement.fraud import Lowered, find_fraud, show

SEED = b"\x55" * 32
PAYEES = 6
THIEF = 6
"""Index of the account that wrong roots favour."""
DELAY_S = 30
CAP = 5_000
BOND = 400


def address(index: int) -> str:
    """The address of the payee with this index."""
    return format_address((0xCAFE << 64 | index + 1).to_bytes(20, "big"))


@dataclass
class Root:
    """A root that was accepted and not cancelled."""

    epoch: int
    tree: PayoutTree
    total: int
    wrong: bool  # by the operator's own books
    stolen_max: int = 0  # what its leaves give the thief beyond the root before


@dataclass
class Model:
    """What must be true, kept without looking at the chain."""

    deposited: int = 0
    stake: int = 0
    bonds_owed: dict[str, int] = field(default_factory=dict)
    owed: list[int] = field(default_factory=lambda: [0] * (PAYEES + 1))  # the operator's honest books
    paid: list[int] = field(default_factory=lambda: [0] * (PAYEES + 1))
    roots: list[Root] = field(default_factory=list)
    highest: int = 0
    active_at_s: int = 0  # of the newest root
    challenged: tuple[str, int, int] | None = None  # challenger, index, deadline
    paused: int = 0

    def active(self, now_s: int) -> list[Root]:
        """The roots that can be claimed from."""
        return (self.roots[:-1] if self.pending(now_s) else self.roots)[-2:]

    def pending(self, now_s: int) -> bool:
        """Whether the newest root still waits."""
        return bool(self.roots) and (self.challenged is not None or now_s < self.active_at_s)

    def promised(self, now_s: int) -> int:
        """Total of the newest active root: what may have been paid in all."""
        active = self.active(now_s)
        return active[-1].total if active else 0

    @property
    def bonds(self) -> int:
        """Every bond in the contract."""
        return self.stake + sum(self.bonds_owed.values()) + (BOND if self.challenged else 0)


class VaultMachine(RuleBasedStateMachine):
    """The history of one deployment."""

    fresh: Callable[[], Bare]
    manifest: Manifest
    people: tuple[str, ...]
    steps = 0

    @initialize()
    def begin(self) -> None:
        """A fresh deployment; the model starts empty."""
        self.bare = self.fresh()
        self.vault = Contract(self.bare, "Payout", self.manifest.payout)
        self.token = Contract(self.bare, "TestToken", self.manifest.token)
        self.owner, self.guardian, self.stranger = self.people
        self.domain = self.manifest.domain
        self.model = Model()

    @property
    def now_s(self) -> int:
        return self.bare.now_s

    def expect(self, allowed: bool, sender: str, name: str, *arguments: object) -> object:
        """Send; the contract must do it exactly when the model allows it. Gives the answer, None when refused."""
        refused = None
        try:
            answer = self.vault.send(sender, name, *arguments)
        except Refused as error:
            refused = error
        assert allowed == (refused is None), f"{name}: {refused or 'went through'}"
        if refused is not None:
            return None
        return True if answer == () else answer

    # Money

    @rule(amount=st.integers(1, 4_000))
    def deposit(self, amount: int) -> None:
        """Money comes in, unless that is paused."""
        if self.expect(not self.model.paused & 8, self.owner, "deposit", amount):
            self.model.deposited += amount

    @rule(amount=st.sampled_from([1, BOND, 2 * BOND]))
    def stake(self, amount: int) -> None:
        """Anybody adds to the poster's stake."""
        self.expect(True, self.stranger, "stake", amount)
        self.model.stake += amount

    @rule(amount=st.sampled_from([1, BOND]))
    def unstake(self, amount: int) -> None:
        """The poster takes from its stake, unless a root is pending."""
        allowed = amount <= self.model.stake and not self.model.pending(self.now_s)
        if self.expect(allowed, self.owner, "unstake", amount):
            self.model.stake -= amount
            self._owe(self.owner, amount)

    @rule(who=st.integers(0, 2))
    def withdraw(self, who: int) -> None:
        """Somebody takes its bonds home."""
        person = self.people[who]
        owed = self.model.bonds_owed.get(person, 0)
        if self.expect(owed > 0, person, "withdraw"):
            self.model.bonds_owed[person] = 0

    # Roots

    @rule(
        earned=st.lists(st.integers(0, 700), min_size=PAYEES, max_size=PAYEES),
        kind=st.sampled_from(["right", "right", "right", "theft", "swap", "lowered", "total", "rebound"]),
        victim=st.integers(0, PAYEES - 1),
        stolen=st.integers(1, CAP),
        who=st.sampled_from([0, 0, 0, 0, 1, 2]),
    )
    def post(self, earned: list[int], kind: str, victim: int, stolen: int, who: int) -> None:
        """An epoch is closed, rightly or wrongly; only the poster's root within funds and cap is taken."""
        model, newest = self.model, self.model.roots[-1] if self.model.roots else None
        owed = [old + new for old, new in zip(model.owed, [*earned, 0], strict=True)]
        # Later roots stand on what is on the chain, also on what a wrong one gave away there.
        shown = {leaf.index: leaf.amount for leaf in newest.tree.leaves} if newest else {}
        amounts = [max(owed[i], shown.get(i, 0)) for i in range(PAYEES + 1)]
        accounts = [address(i) for i in range(PAYEES + 1)]
        if kind == "theft":
            amounts[THIEF] += stolen
        elif kind == "swap":
            amounts[THIEF] += amounts[victim]
            amounts[victim] = 0
        elif kind == "lowered":
            amounts[victim] //= 2
        elif kind == "rebound":
            accounts[victim] = "0x" + "66" * 18 + accounts[victim][-4:]
        total = sum(amounts) + (stolen if kind == "total" else 0)
        epoch = model.highest + 1
        tree = PayoutTree.build([Leaf(i, a, n) for i, (a, n) in enumerate(zip(accounts, amounts, strict=True))],
                                self.domain(epoch))  # fmt: skip
        before = newest.total if newest else 0
        allowed = (
            who == 0
            and not model.paused & 1
            and not model.pending(self.now_s)
            and model.stake >= BOND
            and before <= total <= model.deposited
            and total - before <= CAP
        )
        if self.expect(allowed, self.people[who], "post", epoch, tree.root, total, b"\7" * 32):
            taken = max(0, amounts[THIEF] - shown.get(THIEF, 0))
            model.highest, model.active_at_s = epoch, self.now_s + DELAY_S
            model.roots.append(Root(epoch, tree, total, kind != "right", taken))
            if kind == "right":
                model.owed = owed

    @rule(who=st.integers(0, 2))
    def cancel(self, who: int) -> None:
        """Somebody cancels whatever is newest; only the guardian can, and only while it is pending."""
        if self.model.roots:
            allowed = who == 1 and self.model.pending(self.now_s)
            if self.expect(allowed, self.people[who], "cancel", self.model.roots[-1].epoch):
                self._drop()

    @rule(seconds=st.sampled_from([1, DELAY_S // 2, DELAY_S, DELAY_S + 1]))
    def wait(self, seconds: int) -> None:
        """Time passes. No provably wrong root gets through it: a watcher looks at every root it can see."""
        if self.model.pending(self.now_s) and self.model.challenged is None:
            self._watch()
        self.bare.jump(seconds)

    def _watch(self) -> None:
        """Refute the pending root when there is something to refute."""
        newest = self.model.roots[-1]
        before = self.model.roots[-2].tree if len(self.model.roots) > 1 else None
        fraud = find_fraud(before, newest.tree, newest.total)
        if fraud is None:
            return
        if isinstance(fraud, Lowered):
            old, new = fraud.old, fraud.new
            arguments: tuple[object, ...] = (
                old.index, old.address, old.amount, words(old.path), new.address, new.amount, words(new.path)
            )  # fmt: skip
            self.expect(True, self.stranger, "refute", newest.epoch, *arguments)
        else:
            self.expect(True, self.stranger, "refute_sums", newest.epoch, fraud.depth, int.from_bytes(fraud.top, "big"))
        self._drop()
        self.model.stake -= BOND
        self._owe(self.stranger, BOND)

    # Disputes

    @rule(index=st.integers(0, 9))
    def challenge(self, index: int) -> None:
        """Somebody asks for a leaf."""
        if self.model.roots:
            allowed = self.model.pending(self.now_s) and self.model.challenged is None
            if self.expect(allowed, self.stranger, "challenge", self.model.roots[-1].epoch, index):
                self.model.challenged = (self.stranger, index, self.now_s + DELAY_S)

    @rule(lie=st.booleans())
    def answer(self, lie: bool) -> None:
        """The poster shows it, or something else."""
        if self.model.roots:
            newest, challenged = self.model.roots[-1], self.model.challenged
            shown = show(newest.tree, challenged[1] if challenged else 0)
            amount = shown.amount + 1 if lie else shown.amount
            account = shown.address or "0x" + "00" * 20
            if self.expect(
                challenged is not None and not lie,
                self.owner,
                "answer",
                newest.epoch,
                account,
                amount,
                words(shown.path),
            ):
                self.model.challenged = None
                self.model.stake += BOND
                self.model.active_at_s = self.now_s + DELAY_S

    @rule()
    def expire(self) -> None:
        """Nobody answered in time."""
        if self.model.roots:
            challenged = self.model.challenged
            allowed = challenged is not None and self.now_s > challenged[2]
            if self.expect(allowed, self.guardian, "expire", self.model.roots[-1].epoch):
                self._drop()
                self.model.stake -= BOND
                self._owe(self.stranger, BOND)

    # Payments

    @rule(index=st.integers(0, PAYEES), back=st.integers(0, 3))
    def claim(self, index: int, back: int) -> None:
        """Somebody claims from any root, current or not; a second time it is refused."""
        if back >= len(self.model.roots):
            return
        root = self.model.roots[-1 - back]
        leaf = root.tree.leaf(index)
        due = leaf.amount - self.model.paid[index]
        allowed = (
            root in self.model.active(self.now_s)
            and not self.model.paused & 2
            and due > 0
            and sum(self.model.paid) + due <= self.model.promised(self.now_s)
        )
        proof = words(root.tree.prove(index).path)
        got = self.expect(allowed, self.stranger, "claim", root.epoch, index, leaf.address, leaf.amount, proof)
        if got is not None:
            assert got == due
            self.model.paid[index] += due
            self.expect(False, self.owner, "claim", root.epoch, index, leaf.address, leaf.amount, proof)

    @rule(height=st.integers(0, 3), at=st.integers(0, 7), mask=st.integers(0, 255), back=st.integers(0, 2))
    def push(self, height: int, at: int, mask: int, back: int) -> None:
        """Somebody pushes any range of any root."""
        start = at >> height << height
        if back >= len(self.model.roots) or start > PAYEES:
            return
        root = self.model.roots[-1 - back]
        proof = root.tree.prove_range(start, 1 << height)
        due = {
            leaf.index: max(0, leaf.amount - self.model.paid[leaf.index])
            for leaf in proof.leaves
            if mask >> (leaf.index - start) & 1
        }
        room = self.model.promised(self.now_s) - sum(self.model.paid)
        allowed = (
            root in self.model.active(self.now_s) and not self.model.paused & 4 and sum(due.values()) <= max(0, room)
        )
        got = self.expect(
            allowed,
            self.stranger,
            "push",
            root.epoch,
            proof.payload(),
            mask & ((1 << proof.count) - 1),
            words(proof.path),
        )
        if got is not None:
            assert got == sum(due.values())
            for index, amount in due.items():
                self.model.paid[index] += amount

    @rule(flags=st.integers(1, 15), who=st.integers(0, 2), lift=st.booleans())
    def pause(self, flags: int, who: int, lift: bool) -> None:
        """Owner and guardian stop things, the owner alone lets them run again."""
        if lift:
            if self.expect(who == 0, self.people[who], "unpause", flags):
                self.model.paused &= ~flags
        elif self.expect(who in (0, 1), self.people[who], "pause", flags):
            self.model.paused |= flags

    # What always holds

    @invariant()
    def books_agree(self) -> None:
        """Contract, token and model agree; what is paid is within what is promised, and that within deposits."""
        if not hasattr(self, "model"):
            return
        type(self).steps += 1
        model, now_s = self.model, self.now_s
        assert self.vault.read("funded") == model.deposited
        assert self.vault.read("promised") == (model.roots[-1].total if model.roots else 0)
        held = self.token.read("balanceOf", self.manifest.payout)
        assert held == model.deposited - sum(model.paid) + model.bonds
        assert sum(model.paid) <= model.promised(now_s) <= model.deposited
        index = self.steps % (PAYEES + 1)
        assert self.vault.read("paid", index) == model.paid[index]
        assert self.token.read("balanceOf", address(index)) == model.paid[index]
        shown = [root.tree.leaf(index).amount for root in model.roots]
        assert model.paid[index] <= max(shown, default=0)

    @invariant()
    def wrong_roots_are_bounded(self) -> None:
        """With one honest watcher the thief has no more than the cap of each wrong root that stood."""
        if hasattr(self, "model"):
            stood = [root for root in self.model.roots if root.wrong]
            assert self.model.paid[THIEF] <= sum(min(root.stolen_max, CAP) for root in stood) <= CAP * len(stood)

    def _owe(self, person: str, amount: int) -> None:
        self.model.bonds_owed[person] = self.model.bonds_owed.get(person, 0) + amount

    def _drop(self) -> None:
        self.model.roots.pop()
        self.model.active_at_s = 0
        if self.model.challenged is not None:
            self._owe(self.model.challenged[0], BOND)
            self.model.challenged = None


def run(examples: int, steps: int, binary: Path | None = None) -> int:
    """Run the machine on the embedded chain's machine, or on a node when one is given; gives the steps taken."""
    with ExitStack() as stack:
        accounts = tuple(derived_signer(SEED, i) for i in range(3))
        if binary is None:
            embedded = stack.enter_context(EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9))
            provider, fresh = embedded.provider(), lambda _: Bare(embedded)
        else:
            node = AnvilNode(binary)
            stack.callback(node.close)
            for account in accounts:
                node.ask("anvil_setBalance", account.address, hex(10**24))
            provider, fresh = HTTPProvider(node.url), lambda _: AnvilBare(node, snapshot)
        chain = Chain(provider, accounts[0], poll_s=0.01)
        people = tuple(account.address for account in accounts)
        manifest = chain.deploy(guardian=people[1], cap=CAP, delay_s=DELAY_S, bond=BOND)
        for number, person in enumerate(people):
            chain.mint(person, 2**60)
            chain.acting_as(accounts[number]).approve(2**60, "testing")
        snapshot = [] if binary is None else [node.ask("evm_snapshot")]
        fields = {"fresh": fresh, "manifest": manifest, "people": people, "steps": 0}
        machine = type("Machine", (VaultMachine,), fields)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        return machine.steps


def test_short_histories_never_pay_too_much():
    """A handful of random histories agree with the model."""
    assert run(examples=8, steps=30) >= 100


@pytest.mark.anvil
def test_ten_thousand_steps_on_a_node_never_pay_too_much():
    """Ten thousand steps of many long histories, each a transaction on a real node, agree with the model."""
    binary = find_anvil()
    if binary is None:
        pytest.skip("no anvil: npm install @foundry-rs/anvil into a folder and name it in HEADWATER_ANVIL")
    assert run(int(os.environ.get("HEADWATER_MACHINE_EXAMPLES", "130")), 90, binary) >= 10_000
