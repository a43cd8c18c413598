"""Random histories of Bond beside the same bonds in ledger accounts: one behaviour, no unit lost."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from tests.contracts.bare_evm import RailMachine, run_rail

from headwater.chain import Deployments
from headwater.core.canonical import digest
from headwater.core.errors import RefusedError
from headwater.rails import BondRules, LedgerBonds, Role, SlashRequest, SlashState, digest_bytes

UNBOND_S, SLASH_S, APPEAL_S = 400, 100, 150
REASON = digest(b"decision")
STAKER, ROLES = st.integers(0, 2), st.sampled_from([Role.REVIEWER, Role.CHALLENGER])
SLASHER, ARBITER, WINNER = 3, 4, 5


class Books:
    """The least a ledger can be: balances, and each key once."""

    def __init__(self, balances: dict[str, int]) -> None:
        self.balances, self.keys = balances, set()

    def post(self, transfers, *, key, at_ns):  # noqa: ARG002  # a ledger's own signature
        """Book, or refuse what is not there."""
        if key in self.keys:
            return
        for one in transfers:
            if self.balances.get(one.debit_account, 0) < one.amount_units:
                raise RefusedError("too little", code="insufficient_funds")
        self.keys.add(key)
        for one in transfers:
            self.balances[one.debit_account] -= one.amount_units
            self.balances[one.credit_account] = self.balances.get(one.credit_account, 0) + one.amount_units


class BondMachine(RailMachine):
    """Three stakers, a slasher, an arbiter and whoever wins."""

    folder: Path
    numbers = itertools.count()

    @initialize()
    def begin(self) -> None:
        """Nothing is staked."""
        self.start()
        self.names = {person: f"contributor:ctr_{number}" for number, person in enumerate(self.people)}
        self.ledger = Books(dict.fromkeys(self.names.values(), 10**9))
        self.journal = self.folder / f"bonds-{next(self.numbers)}.jsonl"
        self.twin = self.opened()
        self.before = {person: self.held(person) for person in self.people}
        self.withdrawn = 0

    def opened(self) -> LedgerBonds:
        """The ledger's bonds, as a fresh process reads them."""
        rules = BondRules(UNBOND_S, SLASH_S, APPEAL_S)
        return LedgerBonds(self.ledger, self.journal, asset="USD", rules=rules, now_ns=lambda: self.now_s * 10**9)

    def both(self, call, sender: str, name: str, *arguments) -> bool:
        """Do it on the ledger and on the chain; both do it or both refuse."""
        try:
            call()
        except RefusedError:
            self.expect(False, sender, name, *arguments)
            return False
        self.expect(True, sender, name, *arguments)
        return True

    @rule(who=STAKER, role=ROLES, units=st.integers(1, 1_000))
    def stake(self, who: int, role: Role, units: int) -> None:
        """Somebody stakes."""
        person = self.people[who]
        self.both(lambda: self.twin.stake(self.names[person], role, units), person, "stake", person, int(role), units)

    @rule(who=STAKER, role=ROLES, units=st.integers(0, 2_000))
    def ask_back(self, who: int, role: Role, units: int) -> None:
        """Somebody wants out."""
        person = self.people[who]
        self.both(lambda: self.twin.ask_back(self.names[person], role, units), person, "ask_back", int(role), units)

    @rule(who=STAKER, role=ROLES)
    def take_back(self, who: int, role: Role) -> None:
        """Somebody takes what it asked for, unless the token refuses it: then nothing changes."""
        person = self.people[who]
        if person in self.blocked:
            self.expect(False, person, "take_back", int(role), person)
            return
        self.both(lambda: self.twin.take_back(self.names[person], role), person, "take_back", int(role), person)

    @rule(who=STAKER, role=ROLES, units=st.integers(1, 1_500))
    def slash(self, who: int, role: Role, units: int) -> None:
        """A decision asks for a stake."""
        person, winner = self.people[who], self.people[WINNER]
        request = SlashRequest(self.names[person], role, units, self.names[winner], REASON)
        self.both(
            lambda: self.twin.slash(request),
            self.people[SLASHER],
            "slash",
            person,
            int(role),
            units,
            winner,
            digest_bytes(REASON),
        )

    @rule(which=st.integers(0, 30), who=STAKER)
    def appeal(self, which: int, who: int) -> None:
        """Somebody appeals, perhaps a slash that is not its own."""
        id, person = self.some(which), self.people[who]
        if id:
            self.both(lambda: self.twin.appeal(id, self.names[person]), person, "appeal", id)

    @rule(which=st.integers(0, 30), upheld=st.booleans())
    def decide(self, which: int, upheld: bool) -> None:
        """The arbiter speaks."""
        id = self.some(which)
        if id:
            self.both(lambda: self.twin.decide(id, upheld=upheld), self.people[ARBITER], "decide", id, upheld)

    @rule(which=st.integers(0, 30))
    def finish(self, which: int) -> None:
        """Anybody ends what is over."""
        id = self.some(which)
        if id:
            self.both(lambda: self.twin.finish(id), self.people[WINNER], "finish", id)

    @rule()
    def withdraw(self) -> None:
        """The winner takes what it won, when the token lets it."""
        winner = self.people[WINNER]
        owed = self.won() - self.withdrawn
        if self.expect(owed > 0 and winner not in self.blocked, winner, "withdraw", winner):
            self.withdrawn += owed

    @rule(who=st.sampled_from([0, 1, 2, WINNER]), on=st.booleans())
    def refuse(self, who: int, on: bool) -> None:
        """The token blocks or pays somebody."""
        self.block(self.people[who], on)

    @rule(seconds=st.sampled_from([1, 50, SLASH_S, APPEAL_S, UNBOND_S]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.bare.jump(seconds)

    @rule()
    def restart(self) -> None:
        """A process that reads the journal anew knows the same."""
        self.twin = self.opened()

    def some(self, which: int) -> int:
        """Id of one of the slashes, 0 when there are none."""
        count = len(self.twin.slashes())
        return 1 + which % count if count else 0

    def won(self) -> int:
        """What slashes brought, by the ledger."""
        return sum(one.request.units for one in self.twin.slashes() if one.state is SlashState.DONE)

    @invariant()
    def same_and_whole(self) -> None:
        """Both books agree on every stake, and what is held is what is staked and owed."""
        if not hasattr(self, "withdrawn"):
            return
        type(self).steps += 1
        staked = 0
        for person in self.people[:3]:
            for role in (Role.REVIEWER, Role.CHALLENGER):
                mine = self.twin.stake_of(self.names[person], role)
                staked += mine.units
                assert 0 <= mine.frozen_units <= mine.units
                assert mine.asked_units <= mine.units
                if self.steps % 3 == 0:
                    amount, frozen, asked, due = self.rail.read("stakes", person, int(role))
                    assert (amount, frozen, asked) == (mine.units, mine.frozen_units, mine.asked_units)
                    assert due == mine.due_from_s
                    assert self.rail.read("staked", person, int(role)) == mine.counts_units
        assert self.held() == staked + self.won() - self.withdrawn == self.rail.read("total")
        assert self.ledger.balances[self.names[self.people[WINNER]]] == 10**9 + self.won()
        assert sum(self.ledger.balances.values()) == 10**9 * len(self.names)


def _make(chain, _token):
    contracts = Deployments(chain)
    people = [chain.sender.web3.to_checksum_address(one) for one in _accounts()]
    made = contracts.create(
        "Bond", contracts.token, people[0], people[1], people[3], people[4], UNBOND_S, SLASH_S, APPEAL_S
    )
    return "Bond", made.address


def _in(folder: Path) -> type[BondMachine]:
    return type("BondMachine", (BondMachine,), {"folder": folder})


def _accounts():
    from headwater.chain import derived_signer

    return [derived_signer(b"\x55" * 32, number).address for number in range(6)]


def test_chain_and_ledger_agree_on_bonds(hostile_artifact, tmp_path):
    """Short histories: both refuse and allow the same, and nothing is lost."""
    assert run_rail(_in(tmp_path), hostile_artifact, _make, examples=5, steps=30) >= 100


@pytest.mark.slow
def test_chain_and_ledger_agree_over_long_histories(hostile_artifact, tmp_path):
    """Two thousand steps."""
    assert run_rail(_in(tmp_path), hostile_artifact, _make, examples=30, steps=80) >= 2_000
