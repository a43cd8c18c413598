"""Random histories of Stream against a straight line in fractions: what has vested never falls, nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from tests.contracts.bare_evm import RailMachine, run_rail

from headwater.chain import Deployments

PERSON = st.integers(0, 3)


@dataclass
class Line:
    """One stream, as its words say it should be."""

    payer: str
    payee: str
    revocable: bool
    amount: int
    points: list[tuple[int, int]]  # (seconds, units vested by then) where the line bends; the last is its end
    taken: int = 0
    seen: int = 0

    def vested(self, now_s: int) -> int:
        """Units, rounded down."""
        points = self.points
        if now_s <= points[0][0]:
            return points[0][1]
        for (a, low), (b, high) in pairwise(points):
            if now_s < b:
                return low + (high - low) * (now_s - a) // (b - a)
        return points[-1][1]


class StreamMachine(RailMachine):
    """Four people who pay each other."""

    @initialize()
    def begin(self) -> None:
        """No stream."""
        self.start()
        self.lines: list[Line] = []
        self.returned = dict.fromkeys(self.people, 0)
        self.paid_in = self.paid_out = 0

    @rule(
        payer=PERSON,
        payee=PERSON,
        amount=st.integers(0, 100_000),
        wait=st.integers(-5, 50),
        length=st.integers(0, 500),
        revocable=st.booleans(),
    )
    def open(self, payer: int, payee: int, amount: int, wait: int, length: int, revocable: bool) -> None:
        """Somebody opens a stream; one in the past or without length is refused."""
        start, who, whom = self.now_s + wait, self.people[payer], self.people[payee]
        allowed = amount > 0 and wait >= 0 and length > 0
        if self.expect(allowed, who, "open", whom, amount, start, start + length, revocable):
            self.lines.append(Line(who, whom, revocable, amount, [(start, 0), (start + length, amount)]))
            self.paid_in += amount

    @rule(which=st.integers(0, 9), by=PERSON, amount=st.integers(1, 50_000), shift=st.sampled_from([0, 0, -20, 60]))
    def add(self, which: int, by: int, amount: int, shift: int) -> None:
        """Somebody adds to one; who may move the end, and where to, was agreed."""
        if not self.lines:
            return
        line, who = self.lines[which % len(self.lines)], self.people[by]
        end, since = line.points[-1][0], line.points[-2][0] if len(line.points) > 1 else line.points[-1][0]
        aim = end + shift
        allowed = aim > max(self.now_s, since) and (
            shift == 0 or (who == line.payer and (line.revocable or shift < 0 or self.now_s >= end))
        )
        if self.expect(allowed, who, "add", which % len(self.lines) + 1, amount, aim):
            line.amount += amount
            self.paid_in += amount
            vested = line.vested(self.now_s)
            bend = (self.now_s, vested) if self.now_s > since else (since, line.vested(since))
            line.points = [bend, (aim, line.amount)]

    @rule(which=st.integers(0, 9), by=PERSON)
    def revoke(self, which: int, by: int) -> None:
        """Only the payer, only where agreed, only what has not vested."""
        if not self.lines:
            return
        line, who = self.lines[which % len(self.lines)], self.people[by]
        vested = line.vested(self.now_s)
        allowed = who == line.payer and line.revocable and vested < line.amount
        if self.expect(allowed, who, "revoke", which % len(self.lines) + 1):
            self.returned[who] += line.amount - vested
            line.amount, line.revocable = vested, False
            line.points = [(min(line.points[-1][0], max(self.now_s, line.points[0][0])), vested)]

    @rule(which=st.integers(0, 9))
    def take(self, which: int) -> None:
        """Anybody has the payee paid, unless the token refuses it."""
        if not self.lines:
            return
        line = self.lines[which % len(self.lines)]
        due = line.vested(self.now_s) - line.taken
        if self.expect(due > 0 and line.payee not in self.blocked, self.people[5], "take", which % len(self.lines) + 1):
            line.taken += due
            self.paid_out += due

    @rule(who=PERSON)
    def withdraw(self, who: int) -> None:
        """What revoking gave back goes home."""
        person = self.people[who]
        owed = self.returned[person]
        if self.expect(owed > 0 and person not in self.blocked, person, "withdraw", person):
            self.returned[person] = 0
            self.paid_out += owed

    @rule(who=PERSON, on=st.booleans())
    def refuse(self, who: int, on: bool) -> None:
        """The token blocks or pays somebody."""
        self.block(self.people[who], on)

    @rule(seconds=st.integers(1, 200))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.bare.jump(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Money in is money out and held; every line is where it should be and never falls."""
        if not hasattr(self, "lines"):
            return
        type(self).steps += 1
        assert self.held() == self.paid_in - self.paid_out == self.rail.read("total")
        for id, line in enumerate(self.lines, 1):
            vested = line.vested(self.now_s)
            assert line.seen <= vested <= line.amount
            line.seen = vested
            if id == 1 + self.steps % len(self.lines):
                assert self.rail.read("vested", id) == vested


def _make(chain, _token):
    contracts = Deployments(chain)
    return "Stream", contracts.create("Stream", contracts.token).address


def test_streams_are_straight_lines(hostile_artifact):
    """Short histories agree with the lines."""
    assert run_rail(StreamMachine, hostile_artifact, _make, examples=5, steps=30) >= 100


@pytest.mark.slow
def test_streams_are_straight_lines_over_long_histories(hostile_artifact):
    """Two thousand steps."""
    assert run_rail(StreamMachine, hostile_artifact, _make, examples=30, steps=80) >= 2_000
