"""Random histories of RevenueShare against exact fractions: no part of a unit is lost, moved or paid twice."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from tests.contracts.bare_evm import RailMachine, run_rail

from headwater.chain import Deployments

SUPPLY = 997
PERSON = st.integers(0, 3)


class SharesMachine(RailMachine):
    """Four holders; income comes from a fifth."""

    @initialize()
    def begin(self) -> None:
        """All shares are the first one's."""
        self.start()
        self.shares = dict.fromkeys(self.people[:4], 0) | {self.people[0]: SUPPLY}
        self.earned = dict.fromkeys(self.people[:4], Fraction(0))
        self.collected = dict.fromkeys(self.people[:4], 0)
        self.approved: dict[tuple[str, str], int] = {}
        self.income = 0
        self.start_balance = {person: self.held(person) for person in self.people}

    @rule(amount=st.integers(1, 5_000))
    def pay(self, amount: int) -> None:
        """Income arrives without a word, as a push pays it; it is whoever's holds shares now."""
        self.token.send(self.people[4], "mint", self.rail_address, amount)
        self.income += amount
        for person, held in self.shares.items():
            self.earned[person] += Fraction(amount * held, SUPPLY)

    @rule(sender=PERSON, to=PERSON, amount=st.integers(0, SUPPLY))
    def transfer(self, sender: int, to: int, amount: int) -> None:
        """Shares change hands, and nothing earned with them."""
        giver, taker = self.people[sender], self.people[to]
        if self.expect(amount <= self.shares[giver], giver, "transfer", taker, amount):
            self.shares[giver] -= amount
            self.shares[taker] += amount

    @rule(sender=PERSON, spender=PERSON, amount=st.integers(0, SUPPLY))
    def approve(self, sender: int, spender: int, amount: int) -> None:
        """Somebody lets somebody move shares."""
        self.expect(True, self.people[sender], "approve", self.people[spender], amount)
        self.approved[self.people[sender], self.people[spender]] = amount

    @rule(sender=PERSON, spender=PERSON, to=PERSON, amount=st.integers(0, SUPPLY))
    def transfer_from(self, sender: int, spender: int, to: int, amount: int) -> None:
        """Approved shares are moved, and no others."""
        giver, mover, taker = (self.people[number] for number in (sender, spender, to))
        allowed = self.approved.get((giver, mover), 0)
        if self.expect(amount <= min(allowed, self.shares[giver]), mover, "transferFrom", giver, taker, amount):
            self.approved[giver, mover] = allowed - amount
            self.shares[giver] -= amount
            self.shares[taker] += amount

    @rule(who=PERSON, by=st.integers(0, 5))
    def collect(self, who: int, by: int) -> None:
        """Whole units are paid, to the holder alone, unless the token refuses it."""
        holder = self.people[who]
        due = int(self.earned[holder]) - self.collected[holder]
        if self.expect(due > 0 and holder not in self.blocked, self.people[by], "collect", holder):
            self.collected[holder] += due

    @rule(who=PERSON)
    def collect_elsewhere(self, who: int) -> None:
        """A holder whom the token refuses has its income sent elsewhere."""
        holder, other = self.people[who], self.people[5]
        due = int(self.earned[holder]) - self.collected[holder]
        if self.expect(due > 0, holder, "collect_to", other):
            self.collected[holder] += due
            self.start_balance[holder] -= due  # it arrived at the other one
            self.start_balance[other] += due

    @rule()
    def share_out(self) -> None:
        """Counting changes nobody's due."""
        self.expect(True, self.people[5], "share_out")

    @rule(who=PERSON, on=st.booleans())
    def refuse(self, who: int, on: bool) -> None:
        """The token blocks or pays somebody."""
        self.block(self.people[who], on)

    @invariant()
    def exact(self) -> None:
        """Money in is money out and held; every holder is due its fraction, rounded down once."""
        if not hasattr(self, "shares"):
            return
        type(self).steps += 1
        out = sum(self.collected.values())
        assert self.held() == self.income - out
        assert sum(self.shares.values()) == SUPPLY == self.rail.read("totalSupply")
        person = self.people[self.steps % 4]
        assert self.rail.read("balanceOf", person) == self.shares[person]
        assert self.rail.read("collectable", person) == int(self.earned[person]) - self.collected[person]
        assert self.held(person) == self.start_balance[person] + self.collected[person]
        parts = sum(self.rail.read("accrued", one) for one in self.people[:4])
        assert parts + self.rail.read("collected") * SUPPLY == self.rail.read("received") * SUPPLY


def _make(chain, _token):
    contracts = Deployments(chain)
    made = contracts.create("RevenueShare", contracts.token, contracts.me, SUPPLY, b"\1" * 32, "Shares", "S")
    return "RevenueShare", made.address


def test_dividends_are_exact(hostile_artifact):
    """Short histories agree with exact fractions."""
    assert run_rail(SharesMachine, hostile_artifact, _make, examples=5, steps=30) >= 100


@pytest.mark.slow
def test_dividends_are_exact_over_long_histories(hostile_artifact):
    """Two thousand steps agree with exact fractions."""
    assert run_rail(SharesMachine, hostile_artifact, _make, examples=30, steps=80) >= 2_000
