"""Disputes, money and windows together, at random, for thousands of steps: nothing lost, paid twice or stuck."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from types import SimpleNamespace

import pytest
from court import Bench, bench

from headwater.core.errors import HeadwaterError, InvariantError
from headwater.core.instants import DAY_NS
from headwater.core.money import NANO, PPB
from headwater.corrections import chain_of
from headwater.receipts import Receipt
from headwater.registry import Ownership
from headwater.registry.dispute import Case, Claim
from headwater.settle import Settlement
from headwater.settlement.disputes import stands
from headwater.settlement.epoch import read_manifest
from headwater.settlement.tree import Domain


def windows(here: Bench) -> Settlement:
    """Closing windows, without a chain to post them on."""
    chain = SimpleNamespace(
        domain=lambda epoch: Domain(1, "0x" + "01" * 20, "0x" + "02" * 20, epoch),
        manifest=SimpleNamespace(token_decimals=6),
    )
    return Settlement(here.books, chain)  # type: ignore[arg-type]


@dataclass
class Town:
    """Everybody who does something."""

    here: Bench
    rng: Random
    keys: list[str]
    people: list[str]
    deposits: int

    def step(self, number: int) -> None:
        """One thing that somebody does, allowed or not."""
        here, rng = self.here, self.rng
        cases = here.disputes.store.cases(open_only=True)
        case = rng.choice(cases) if cases else None
        titles = ("Rivers", "Clouds", "Stones")
        what = rng.random()
        if what < 0.10:
            self.deposits += 100 * NANO
            here.ask(
                rng.choice(("what does a river do in the sea?", "what is a cloud in the air?", "a stone in water"))
            )
        elif what < 0.17:
            self._open(rng.choice(titles))
        elif case is not None and what < 0.24:
            here.disputes.answer(case.id, rng.choice(self.keys), "no")
        elif case is not None and what < 0.27:
            here.disputes.evidence(case.id, "somebody", f"piece {number}")
        elif case is not None and what < 0.62 and case.sitting is not None:
            here.disputes.vote(case.id, rng.choice(case.sitting.members or ("ctr_x",)), rng.random() < 0.5, "so it is")
        elif case is not None and what < 0.68:
            here.disputes.appeal(case.id, rng.choice(("challenger", "respondent")), "once more")
        elif case is not None and what < 0.69:
            here.disputes.withdraw(case.id)
        elif what < 0.73:
            windows(here).close()
        elif what < 0.75:
            here.disputes.court.books.registry.contributor(rng.choice(self.people))  # type: ignore[arg-type]
            here.clock[0] += rng.choice((-3, 40)) * DAY_NS  # the machine's clock leaps
        else:
            here.clock[0] += rng.randrange(DAY_NS)
            here.disputes.settle_due()

    def _open(self, title: str) -> None:
        here, rng = self.here, self.rng
        who, account = rng.choice(self.people), rng.choice(self.keys)
        newest = Receipt.from_bytes(here.toy.log.at(len(here.toy.log) - 1).raw) if len(here.toy.log) else None
        contribution = here.document(title)
        claim = (
            Claim("receipt", contribution, receipt=newest.id)
            if newest is not None and rng.random() < 0.3
            else Claim("registration", contribution, (Ownership(who, PPB),))  # type: ignore[arg-type]
        )
        here.disputes.open(claim, who, account, "it is not so")  # type: ignore[arg-type]


def conserved(town: Town) -> None:
    """Money is where the deposits put it, and what is held is what receipts hold back."""
    here = town.here
    [total] = here.toy.ledger.totals()
    assert total.have_units == total.owe_units
    held: Counter[str] = Counter()
    calls = {Receipt.from_bytes(logged.raw).call_id for logged in here.toy.log.entries(0)}
    for call in calls:
        held.update(stands(chain_of(here.toy.log, call, len(here.toy.log)), here.books.epochs.spans()))
    for case in here.disputes.store.cases():
        account = f"disputed:{case.id}"
        assert here.units(account) == held[account], case
        staked = here.units(f"{account}.challenger") + here.units(f"{account}.respondent")
        assert staked == _stakes(case), case


def _stakes(case: Case) -> int:
    if case.phase == "closed":
        return 0
    return case.bond_units * (1 + (case.respondent_account is not None) + (case.appellant is not None))


@pytest.mark.slow
def test_thousands_of_steps_lose_nothing_and_every_dispute_ends(tmp_path):
    """Whoever does whatever, in whatever order, with a clock that leaps: money is conserved at every step checked."""
    rng = Random(11)
    with bench(tmp_path, maturity_s=2 * 86_400) as here:
        here.judges(40)
        keys = [here.credit(f"key {i}").account for i in range(6)]
        people = [here.person(f"Person {i}") for i in range(6)]
        people += [c.owners[0].contributor_id for c in here.toy.registry.contributions(kind="document")]
        town = Town(here, rng, [*keys], [*people], 0)
        done = refused = 0
        for number in range(5_000):
            try:
                town.step(number)
                done += 1
            except InvariantError:
                raise
            except HeadwaterError:
                refused += 1
            if number % 250 == 0:
                conserved(town)
        conserved(town)
        longest = max((case.rules.longest_ns for case in here.disputes.store.cases()), default=0)
        here.passes(longest // DAY_NS + 2)
        conserved(town)

        cases = here.disputes.store.cases()
        assert done > 1_500
        assert len(cases) > 10
        assert {case.phase for case in cases} == {"closed"}
        assert all(here.units(b.account) == 0 for b in here.toy.ledger.balances() if b.account.startswith("disputed:"))
        assert here.sound()
        here.clock[0] += 10 * DAY_NS
        _closes_to_the_last_unit(here)


def _closes_to_the_last_unit(here: Bench) -> None:
    """Once all has matured, what every account was ever due by windows is what the ledger has for it."""
    settlement = windows(here)
    here.ask()
    here.clock[0] += 3 * DAY_NS
    record = settlement.close()
    totals = {row["account"]: int(row["cumulative_units"]) for row in read_manifest(record.manifest)["totals"]}
    for account, units in totals.items():
        escrow = account.replace("contributor:", "escrow:", 1)
        held = here.units(account) + (here.units(escrow) if escrow != account else 0)
        assert units == held, (account, units, held)
