"""Random histories of a vault against a model in plain Python: nothing is paid twice, and never more than promised."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from headwater.chain import Chain, EmbeddedChain, RevertedError, derived_signer
from headwater.settlement import Leaf, PayoutTree

SEED = b"\x55" * 32
PAYEES = 10
DELAY_S = 30
CAP = 5_000


def address(index: int) -> str:
    """The address of the payee with this index."""
    return f"0x{0xCAFE << 64 | index + 1:040x}"


class VaultMachine(RuleBasedStateMachine):
    """Deposits, honest and greedy roots, cancellations, time, claims and pushes in any order."""

    embedded: EmbeddedChain
    chain: Chain
    guardian: Chain
    start: str

    @initialize()
    def begin(self) -> None:
        """Go back to the fresh deployment; the model starts empty."""
        provider = self.embedded.provider()
        provider.make_request("evm_revert", [type(self).start])
        type(self).start = provider.make_request("evm_snapshot", [])["result"]
        for chain in (self.chain, self.guardian):
            chain._sender._next_nonce = 0
        self.deposited = 0
        self.owed = [0] * PAYEES  # cumulative amounts of the operator's own books
        self.paid = [0] * PAYEES
        self.roots: list[tuple[int, PayoutTree, int]] = []  # accepted and not cancelled: epoch, tree, total
        self.pending = False
        self.number = 0

    def active(self) -> list[tuple[int, PayoutTree, int]]:
        """The roots that can be claimed from."""
        settled = self.roots[:-1] if self.pending else self.roots
        return settled[-2:]

    @rule(amount=st.integers(1, 4_000))
    def deposit(self, amount: int) -> None:
        """Money comes in."""
        self.chain.fund(amount)
        self.deposited += amount

    @rule(
        earned=st.lists(st.integers(0, 700), min_size=PAYEES, max_size=PAYEES),
        greed=st.sampled_from([0, 0, 0, 300]),
        lowered=st.sampled_from([None, None, 0, 7]),
    )
    def post(self, earned: list[int], greed: int, lowered: int | None) -> None:
        """The operator closes an epoch; a bad one promises payees more than the total, or lowers an amount."""
        owed = [old + new for old, new in zip(self.owed, earned, strict=True)]
        total = sum(owed)
        shown = [amount + greed for amount in owed]
        if lowered is not None:
            shown[lowered] //= 2
        epoch = self.number + 1
        tree = PayoutTree.build([Leaf(i, address(i), a) for i, a in enumerate(shown)], self.chain.domain(epoch))
        before = self.roots[-1][2] if self.roots else 0
        allowed = not self.pending and before <= total <= self.deposited and total - before <= CAP
        try:
            self.chain.post(epoch, tree.root, total, b"\7" * 32)
        except RevertedError:
            assert not allowed
            return
        assert allowed
        self.number, self.owed, self.pending = epoch, owed, True
        self.roots.append((epoch, tree, total))

    @rule()
    def wait(self) -> None:
        """The delay passes."""
        self.chain.jump(DELAY_S)
        self.pending = False

    @rule()
    def cancel(self) -> None:
        """The guardian cancels whatever is pending."""
        if not self.roots:
            return
        try:
            self.guardian.cancel(self.roots[-1][0])
        except RevertedError:
            assert not self.pending
            return
        assert self.pending
        self.pending = False
        self.roots.pop()
        self.owed = [0] * PAYEES if not self.roots else self.owed

    @rule(index=st.integers(0, PAYEES - 1), back=st.integers(0, 3))
    def claim(self, index: int, back: int) -> None:
        """Somebody claims from any root, current or not."""
        if back >= len(self.roots):
            return
        epoch, tree, _ = self.roots[-1 - back]
        due = tree.leaf(index).amount - self.paid[index]
        active = self.active()
        allowed = epoch in [one[0] for one in active] and due > 0 and sum(self.paid) + due <= active[-1][2]
        try:
            got = self.chain.claim(epoch, tree.prove(index)).amount
        except RevertedError:
            assert not allowed
            return
        assert allowed
        assert got == due
        self.paid[index] += due

    @rule(height=st.integers(0, 4), at=st.integers(0, 15), mask=st.integers(0, 2**16 - 1), back=st.integers(0, 2))
    def push(self, height: int, at: int, mask: int, back: int) -> None:
        """Somebody pushes any range of any root."""
        start = at >> height << height
        if back >= len(self.roots) or start >= PAYEES:
            return
        epoch, tree, _ = self.roots[-1 - back]
        proof = tree.prove_range(start, 1 << height)
        wanted = [leaf.index for leaf in proof.leaves if mask >> leaf.index & 1]
        due = {i: max(0, tree.leaf(i).amount - self.paid[i]) for i in wanted}
        active = self.active()
        allowed = epoch in [one[0] for one in active] and (
            sum(self.paid) + sum(due.values()) <= active[-1][2] or not any(due.values())
        )
        try:
            got = self.chain.push(epoch, proof, wanted=wanted)
        except RevertedError:
            assert not allowed
            return
        assert allowed
        assert (got.amount, got.skipped) == (sum(due.values()), ())
        for i, amount in due.items():
            self.paid[i] += amount

    @invariant()
    def books_agree(self) -> None:
        """Contract, token and model agree; paid is within promised, promised within funded."""
        if not hasattr(self, "deposited"):
            return
        status = self.chain.status()
        assert status.funded == self.deposited
        assert status.promised == (self.roots[-1][2] if self.roots else 0)
        assert status.paid == sum(self.paid) == sum(self.chain.balance(address(i)) for i in range(PAYEES))
        assert [self.chain.paid(i) for i in range(PAYEES)] == self.paid
        assert status.paid <= max([total for _, _, total in self.active()], default=0) <= status.funded
        for epoch, _, _ in self.active():
            assert self.chain.status_of(epoch) == "active"


def run(examples: int, steps: int) -> None:
    """Run the machine on one embedded chain."""
    with EmbeddedChain(seed=SEED, clock_ns=lambda: 1_700_000_000 * 10**9) as embedded:
        chain = Chain(embedded.provider(), embedded.accounts[0])
        manifest = chain.deploy(guardian=embedded.accounts[1].address, cap=CAP, delay_s=DELAY_S)
        guardian = Chain(embedded.provider(), derived_signer(SEED, 1), manifest=manifest)
        start = embedded.provider().make_request("evm_snapshot", [])["result"]
        fields = {"embedded": embedded, "chain": chain, "guardian": guardian, "start": start}
        machine = type("Machine", (VaultMachine,), fields)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_short_histories_never_pay_too_much():
    """A handful of random histories agree with the model."""
    run(examples=3, steps=12)


@pytest.mark.slow
def test_long_histories_never_pay_too_much():
    """Many long random histories agree with the model."""
    run(examples=25, steps=30)
