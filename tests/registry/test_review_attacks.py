"""What dishonest reviewers earn for what they spend: simulated reviews, paid by the real rules.

Run with ``-s`` to see the table. A unit is what one honest look at an item costs; the line pays two units a task at the
plain rate, a look nobody takes costs a tenth, and a bond is 150 units. Return is (pay - cost - bond lost) / cost.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import pytest

from headwater.core.ids import ContributorId
from headwater.registry.review import Verdict, drawing_order
from headwater.registry.review_gold import GoldRecord, is_gold, slash
from headwater.registry.review_pay import Work, share_line
from headwater.registry.review_scores import Task, measure

QUORUM, TASKS, REVIEWERS, BASE, CARE = 3, 1_500, 12, 0.7, 0.9
PAY, LOOK, NO_LOOK, BOND, GOLD_PPM = 2.0, 1.0, 0.1, 150.0, 80_000


@dataclass(frozen=True)
class Outcome:
    """What became of one kind of reviewer."""

    multiplier: float
    slashed: float  # part of them
    returned: float  # (pay - cost - bond lost) / cost


def other(verdict: Verdict) -> Verdict:
    """The other answer."""
    return "refuse" if verdict == "accept" else "accept"


def simulate(attack: str, attackers: int, seed: int) -> dict[str, Outcome]:
    """Reviews with some attackers among the reviewers; what honest ones and attackers are paid."""
    rng = random.Random(seed)
    names = [ContributorId(f"ctr_{number:032x}") for number in range(REVIEWERS)]
    bad = set(names[:attackers])
    secret = rng.randbytes(32)
    tasks, gold, cost = [], {name: [0, 0] for name in names}, dict.fromkeys(names, 0.0)
    work = dict.fromkeys(names, 0)
    out: dict[ContributorId, int] = {}

    def report(name: ContributorId, truth: Verdict, item: str) -> Verdict:
        cost[name] += NO_LOOK if name in bad else LOOK
        if name not in bad:
            return truth if rng.random() < CARE else other(truth)
        match attack:
            case "constant":
                return "accept"
            case "random":
                return "accept" if rng.random() < 0.5 else "refuse"
            case "common rate":
                return "accept" if rng.random() < BASE else "refuse"
            case "colluding":  # the same answer by a rule they agreed on, nobody looks
                return "accept" if hashlib.sha256(item.encode()).digest()[0] < 256 * BASE else "refuse"
            case _:
                return other(truth)

    for number in range(TASKS):
        item = f"item {number}"
        truth: Verdict = "accept" if rng.random() < BASE else "refuse"
        standing = [name for name in names if name not in out]
        asked = drawing_order(secret, item, standing)[:QUORUM]
        tasks.append(Task(item, {name: report(name, truth, item) for name in asked}))
        for name in asked:
            work[name] += 1
            if is_gold(secret, item, name, GOLD_PPM):
                known: Verdict = "accept" if rng.random() < 0.5 else "refuse"
                gold[name][0] += 1
                gold[name][1] += report(name, known, f"gold {number} {name}") == known
                work[name] += 1
                found = slash(GoldRecord(name, *gold[name]))
                if found is not None:
                    out[name] = found.bps
    measured = {name: measure(name, tasks) for name in names}
    shares = dict(
        share_line(Work(name, work[name], measured[name].multiplier_ppm, name in out) for name in names).shares
    )
    line = PAY * sum(work.values())
    result = {}
    for kind, group in (("honest", set(names) - bad), ("attackers", bad)):
        spent = sum(cost[name] for name in group)
        paid = sum(line * shares.get(name, 0) / 10**9 for name in group)
        lost = sum(BOND * out.get(name, 0) / 10_000 for name in group)
        pays = [0 if name in out else measured[name].multiplier_ppm or 0 for name in group]
        result[kind] = Outcome(
            sum(pays) / len(group) / 10**6,
            sum(name in out for name in group) / len(group),
            (paid - lost - spent) / spent,
        )
    return result


CHEAP = [("constant", 1), ("random", 3), ("colluding", 4)]
MORE = [
    ("random", 1), ("common rate", 1), ("contrary", 1), ("constant", 3), ("colluding", 2), ("colluding", 3),
    ("contrary", 4),
]  # fmt: skip
ATTACKS = [*CHEAP, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE)]


@pytest.mark.parametrize(("attack", "attackers"), ATTACKS)
def test_reviewers_who_do_not_look_lose_what_they_spend(attack: str, attackers: int) -> None:
    """At default settings the return of every attack is negative while honest reviewers keep their pay."""
    found = simulate(attack, attackers, seed=5)

    print(
        f"\n{attack:12} {attackers:2} of {REVIEWERS}: attackers x{found['attackers'].multiplier:.2f},"
        f" slashed {found['attackers'].slashed:.0%}, return {found['attackers'].returned:+.2f};"
        f" honest x{found['honest'].multiplier:.2f}, slashed {found['honest'].slashed:.0%},"
        f" return {found['honest'].returned:+.2f}"
    )
    assert found["attackers"].returned < 0
    assert found["honest"].returned > 0.9
    assert found["honest"].slashed == 0


def test_an_honest_newcomer_waits_and_loses_nothing() -> None:
    """Tasks done before somebody can be measured are kept and paid later, in full."""
    first = share_line([Work(ContributorId("ctr_a"), 30, 1_000_000), Work(ContributorId("ctr_new"), 12, None)])
    later = share_line([Work(ContributorId("ctr_a"), 30, 1_000_000), Work(ContributorId("ctr_new"), 30, 1_000_000)])

    assert (first.shares, first.waiting) == ((("ctr_a", 10**9),), ("ctr_new",))
    assert dict(later.shares) == {"ctr_a": 500_000_000, "ctr_new": 500_000_000}
