"""Bonds in ledger accounts, over the real ledger: deadlines and money survive restarts and crashes."""

from __future__ import annotations

from pathlib import Path

import pytest

from headwater import ledger as booking
from headwater.core.canonical import digest
from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.rails import BondBook, BondRules, LedgerBonds, Role, SlashRequest, SlashState, bond_account
from headwater.store.database import Database
from headwater.store.ledger_store import Ledger

ADA, BOB = "contributor:ctr_ada", "contributor:ctr_bob"
RULES = BondRules(unbond_s=1_000, slash_s=100, appeal_s=200)


class Clock:
    """Seconds that a test moves."""

    now_s = 1_000

    def __call__(self) -> int:
        return self.now_s * 10**9


@pytest.fixture
def clock() -> Clock:
    """At its beginning."""
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path):
    """Ada has 1,000 units."""
    with Database(tmp_path / "headwater.db", create=True) as db:
        one = Ledger(db)
        one.post([booking.deposit("payer:key_1", 1_000, asset="USD", cause="test")], key="a", at_ns=1)
        one.post([booking.correction("payer:key_1", ADA, 1_000, asset="USD", cause="test")], key="b", at_ns=1)
        yield one


def opened(ledger: Ledger, folder: Path, clock: Clock) -> LedgerBonds:
    """The bonds, as a fresh process reads them."""
    return LedgerBonds(ledger, folder / "bonds.jsonl", asset="USD", rules=RULES, now_ns=clock)


def held(ledger: Ledger, account: str) -> int:
    """Units."""
    return ledger.balance(account, "USD").balance_units


def request(units: int = 300) -> SlashRequest:
    """A slash of Ada's in favour of Bob."""
    return SlashRequest(ADA, Role.REVIEWER, units, BOB, digest(b"decision"))


def test_a_stake_leaves_the_account_and_no_root_can_hold_it(ledger, tmp_path, clock):
    """What is staked is an escrow of its own until it is taken back, after the delay."""
    bonds = opened(ledger, tmp_path, clock)
    book: BondBook = bonds
    bonds.stake(ADA, Role.REVIEWER, 600)
    assert (held(ledger, ADA), held(ledger, bond_account(ADA, Role.REVIEWER))) == (400, 600)
    assert book.staked(ADA, Role.REVIEWER) == 600
    with pytest.raises(InvalidError):
        booking.claimable(bond_account(ADA, Role.REVIEWER))
    bonds.ask_back(ADA, Role.REVIEWER, 600)
    with pytest.raises(RefusedError):
        bonds.take_back(ADA, Role.REVIEWER)
    clock.now_s += 1_000
    assert bonds.take_back(ADA, Role.REVIEWER) == 600
    assert held(ledger, ADA) == 1_000


def test_deadlines_survive_a_restart_and_a_clock_that_goes_back(ledger, tmp_path, clock):
    """A slash that could be ended can be ended by the next process, whatever its clock says."""
    first = opened(ledger, tmp_path, clock)
    first.stake(ADA, Role.REVIEWER, 600)
    slash = first.slash(request())
    clock.now_s += 100
    with pytest.raises(RefusedError):
        first.appeal(slash.id, ADA)
    first.ask_back(ADA, Role.REVIEWER, 1)  # the journal has seen this time
    clock.now_s -= 5_000
    again = opened(ledger, tmp_path, clock)
    assert again.slash_of(slash.id) == slash
    assert again.finish(slash.id).state is SlashState.DONE
    assert (held(ledger, BOB), again.stake_of(ADA, Role.REVIEWER).units) == (300, 300)
    assert opened(ledger, tmp_path, clock).slash_of(slash.id).state is SlashState.DONE
    assert held(ledger, BOB) == 300


def test_a_line_that_was_written_and_not_booked_is_booked_once(ledger, tmp_path, clock):
    """A crash between journal and ledger is made good by the next opening."""
    journal = tmp_path / "bonds.jsonl"
    line = b'{"account":"contributor:ctr_ada","at_s":5,"do":"stake","role":1,"units":"250"}\n'
    journal.write_bytes(line + line[:30])  # and a line that was cut
    for _ in range(2):
        bonds = opened(ledger, tmp_path, clock)
        assert (bonds.staked(ADA, Role.REVIEWER), held(ledger, ADA)) == (250, 750)
    assert journal.read_bytes() == line


def test_a_stake_that_the_ledger_refuses_is_nobodys(ledger, tmp_path, clock):
    """Too little money: nothing is staked, now and after a restart, and what comes next is booked rightly."""
    bonds = opened(ledger, tmp_path, clock)
    with pytest.raises(RefusedError):
        bonds.stake(ADA, Role.REVIEWER, 1_001)
    bonds.stake(ADA, Role.REVIEWER, 100)
    for one in (bonds, opened(ledger, tmp_path, clock)):
        assert (one.staked(ADA, Role.REVIEWER), held(ledger, ADA)) == (100, 900)


def test_what_a_bond_refuses(ledger, tmp_path, clock):
    """Other people's appeals, more than is staked, unknown slashes and accounts that cannot stake."""
    bonds = opened(ledger, tmp_path, clock)
    bonds.stake(ADA, Role.REVIEWER, 300)
    with pytest.raises(RefusedError):
        bonds.slash(request(301))
    slash = bonds.slash(request())
    with pytest.raises(RefusedError):
        bonds.appeal(slash.id, BOB)
    with pytest.raises(RefusedError):
        bonds.decide(slash.id, upheld=True)
    with pytest.raises(MissingError):
        bonds.slash_of(2)
    with pytest.raises(InvalidError):
        bonds.stake("commons", Role.REVIEWER, 1)
    for bad in ({"units": 0}, {"to": ADA}, {"reason": "because"}):
        with pytest.raises(InvalidError):
            SlashRequest(**{"account": ADA, "role": Role.REVIEWER, "units": 1, "to": BOB, "reason": digest(b"x")} | bad)
    with pytest.raises(InvalidError):
        BondRules(unbond_s=59)


def test_a_damaged_journal_is_said(ledger, tmp_path, clock):
    """A line that is no line of a journal stops the opening."""
    (tmp_path / "bonds.jsonl").write_bytes(b'{"do":"conjure","at_s":1}\n')
    with pytest.raises(InvalidError, match="line 1"):
        opened(ledger, tmp_path, clock)
