"""Random histories of Advance against a model: no unit is lost, and a share is worth less only by a stated loss."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from tests.contracts.bare_evm import RailMachine, run_rail

from headwater.chain import Deployments

TERM_S, RELEASE_S = 7_200, 3_600
LINE, LENT, PART, BASE, SLOPE = 3_000, 6_000, 7_000, 50, 200
LENDER, BORROWER = st.integers(0, 1), st.integers(2, 3)
VIRTUAL = 10**6


@dataclass
class Lane:
    """One borrower."""

    address: str
    borrower: str
    income: int = 0
    risk: int = 0
    until: int = 0
    principal: int = 0
    fee: int = 0
    lost: int = 0
    due: int = 0
    here: int = 0  # tokens that wait in the lane


class AdvanceMachine(RailMachine):
    """Two lenders, two borrowers; the first account attests."""

    @initialize()
    def begin(self) -> None:
        """An empty pool with two lanes."""
        self.start()
        self.lanes = [Lane(self.rail.send(self.people[0], "open_lane", self.people[n]), self.people[n]) for n in (2, 3)]
        self.cash = self.lent = self.supply = self.locked = self.locked_at = 0
        self.shares = dict.fromkeys(self.people[:2], 0)
        self.donated = self.put_in = self.taken_out = self.income = self.reached = 0
        self.price = Fraction(1, VIRTUAL)

    # What the words of the contract say, in fractions and whole units

    def unreleased(self) -> int:
        """Gains that do not count yet, rounded up."""
        left = max(0, RELEASE_S - (self.now_s - self.locked_at))
        return -(-self.locked * left // RELEASE_S)

    def assets(self) -> int:
        """Cash and principal less unreleased gains."""
        return self.cash + self.lent - self.unreleased()

    def free(self) -> int:
        """What can leave."""
        return self.cash - self.unreleased()

    def drawable(self, lane: Lane) -> int:
        """What a borrower may have."""
        if self.now_s > lane.until or lane.lost or (lane.due and self.now_s >= lane.due):
            return 0
        return max(
            0,
            min(
                lane.income * PART // 10_000 - lane.principal - lane.fee,
                self.assets() * LINE // 10_000 - lane.principal,
                self.assets() * LENT // 10_000 - self.lent,
                self.free(),
            ),
        )

    def fee(self, lane: Lane, amount: int) -> int:
        """The price, rounded up."""
        use = min(10_000, (self.lent + amount) * 10_000 // self.assets()) if self.assets() else 10_000
        return -(-amount * min(2_000, BASE + SLOPE * use // 10_000 + lane.risk) // 10_000)

    # Lenders

    @rule(who=LENDER, amount=st.integers(1, 10**6))
    def deposit(self, who: int, amount: int) -> None:
        """Money comes in; shares are rounded down."""
        person = self.people[who]
        shares = amount * (self.supply + VIRTUAL) // (self.assets() + 1)
        if self.expect(shares > 0, person, "deposit", amount, person):
            self.cash += amount
            self.supply += shares
            self.shares[person] += shares
            self.put_in += amount

    @rule(who=LENDER, part=st.integers(1, 100))
    def redeem(self, who: int, part: int) -> None:
        """Money that is not lent goes out; units are rounded down."""
        person = self.people[who]
        shares = self.shares[person] * part // 100
        amount = shares * (self.assets() + 1) // (self.supply + VIRTUAL)
        allowed = 0 < amount <= self.free() and person not in self.blocked
        if self.expect(allowed, person, "redeem", shares, person, person):
            self.cash -= amount
            self.supply -= shares
            self.shares[person] -= shares
            self.taken_out += amount

    @rule(amount=st.integers(1, 10**6))
    def donate(self, amount: int) -> None:
        """Tokens sent without a word are nobody's and move no price."""
        self.token.send(self.people[4], "mint", self.rail_address, amount)
        self.donated += amount

    # Borrowers

    @rule(
        who=BORROWER,
        income=st.integers(0, 10**6),
        risk=st.integers(0, 500),
        until=st.sampled_from([0, 1_000, 20_000]),
        by=st.sampled_from([0, 0, 0, 2]),
    )
    def attest(self, who: int, income: int, risk: int, until: int, by: int) -> None:
        """The assessor's word, or somebody else's."""
        lane = self.lanes[who - 2]
        end = self.now_s + until
        if self.expect(by == 0, self.people[by], "attest", lane.address, income, risk, end):
            lane.income, lane.risk, lane.until = income, risk, end

    @rule(who=BORROWER, amount=st.integers(1, 400_000), agreed=st.sampled_from([1.0, 1.0, 0.5]))
    def draw(self, who: int, amount: int, agreed: float) -> None:
        """An advance within the line at the price that was agreed."""
        lane = self.lanes[who - 2]
        amount = min(amount, self.drawable(lane) or amount)
        fee = self.fee(lane, amount)
        limit = int(fee * agreed)
        allowed = 0 < amount <= self.drawable(lane) and fee <= limit and lane.borrower not in self.blocked
        if self.expect(allowed, lane.borrower, "draw", lane.address, amount, limit) is not None:
            lane.principal += amount
            lane.fee += fee
            lane.due = lane.due or self.now_s + TERM_S
            self.cash -= amount
            self.lent += amount
            self.reached += amount

    @rule(who=BORROWER, amount=st.integers(1, 300_000))
    def earn(self, who: int, amount: int) -> None:
        """Claims reach a lane."""
        self.token.send(self.people[4], "mint", self.lanes[who - 2].address, amount)
        self.lanes[who - 2].here += amount
        self.income += amount

    @rule(who=BORROWER)
    def collect(self, who: int) -> None:
        """Principal, then losses, then fees, then the borrower."""
        lane = self.lanes[who - 2]
        repaid = min(lane.here, lane.principal + lane.lost + lane.fee)
        assert self.rail.send(self.people[5], "collect", lane.address) == repaid
        self.divide(lane)

    def divide(self, lane: Lane) -> None:
        """What a collection does."""
        here = lane.here
        lane.income -= min(lane.income, here)
        for name in ("principal", "lost", "fee"):
            part = min(here, getattr(lane, name))
            setattr(lane, name, getattr(lane, name) - part)
            here -= part
            self.cash += part
            lane.here -= part
            if name == "principal":
                self.lent -= part
            elif part:
                self.locked, self.locked_at = self.unreleased() + part, self.now_s
        if lane.principal + lane.lost + lane.fee == 0:
            lane.due = 0
        if lane.borrower not in self.blocked:
            self.reached += lane.here
            lane.here = 0

    @rule(who=BORROWER)
    def state_loss(self, who: int) -> None:
        """Anybody, once it is overdue; the only thing that makes a share cheaper."""
        lane = self.lanes[who - 2]
        allowed = lane.due != 0 and self.now_s >= lane.due
        if self.expect(allowed, self.people[5], "state_loss", lane.address) is not None:
            self.divide(lane)
            self.lent -= lane.principal
            lane.lost += lane.principal
            lane.principal = 0
            self.price = Fraction(0)  # a stated loss: it may be lower from here on

    @rule(who=st.integers(0, 3), on=st.booleans())
    def refuse(self, who: int, on: bool) -> None:
        """The token blocks or pays somebody."""
        self.block(self.people[who], on)

    @rule(seconds=st.sampled_from([1, 600, RELEASE_S, TERM_S]))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.bare.jump(seconds)

    @invariant()
    def whole(self) -> None:
        """Every token is somewhere, the books agree, and the price of a share has not fallen."""
        if not hasattr(self, "reached"):
            return
        type(self).steps += 1
        assert self.held() == self.cash + self.donated
        assert self.put_in + self.income == self.taken_out + self.reached + self.cash + sum(x.here for x in self.lanes)
        assert self.rail.read("totalAssets") == self.assets()
        assert self.rail.read("totalSupply") == self.supply == sum(self.shares.values())
        assert self.rail.read("lent") == self.lent == sum(lane.principal for lane in self.lanes)
        lane = self.lanes[self.steps % 2]
        assert self.rail.read("drawable", lane.address) == self.drawable(lane)
        assert self.rail.read("lines", lane.address)[1:] == (
            lane.income, lane.risk, lane.until, lane.principal, lane.fee, lane.lost, lane.due
        )  # fmt: skip
        price = Fraction(self.assets() + 1, self.supply + VIRTUAL)
        assert price >= self.price
        self.price = price


def _make(chain, _token):
    contracts = Deployments(chain)
    lane = contracts.create("Lane").address
    me, limits = contracts.me, (LINE, LENT, PART, BASE, SLOPE)
    guardian = "0x" + "77" * 20
    made = contracts.create("Advance", contracts.token, me, guardian, me, lane, limits, TERM_S, RELEASE_S)
    return "Advance", made.address


def test_a_pool_loses_nothing_unsaid(hostile_artifact):
    """Short histories agree with the model."""
    assert run_rail(AdvanceMachine, hostile_artifact, _make, examples=5, steps=30) >= 100


@pytest.mark.slow
def test_a_pool_loses_nothing_unsaid_over_long_histories(hostile_artifact):
    """Two thousand steps."""
    assert run_rail(AdvanceMachine, hostile_artifact, _make, examples=30, steps=80) >= 2_000
