"""What attacks return per unit spent, with and without guards, and what the same guards cost honest newcomers.

Income of attackers comes from the simulator, under the product's own rules; the guards are worked out on top of it in
closed form: what an account earns waits `probation_days`, a stake answers for it, and audits find attackers (and,
less often, honest people, most of whom win their appeal). Collusion is measured on the product's own draw.

Assumptions: an attacker's income is even over the days; accounts are found independently, with one chance each day;
a found account loses what waits and its stake. Where a row still pays, it says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from headwater.core.ids import AccountId, ContributionId, ContributorId
from headwater.core.money import NANO
from headwater.economy.catalogue import ATTACKS
from headwater.economy.figures import figures
from headwater.economy.scenario import Scenario, default_scenario
from headwater.economy.simulation import simulate
from headwater.registry.dispute import Case, Claim, Panel, Rules, draw

DAYS: Final = 120
BASE: Final = {"contributors": 2_000, "users": 4_000, "apps": 100, "run.days": DAYS, "split.rule": "dedup-shapley"}
ACCOUNTS: Final = {"attack.accounts": 100, "account_cost_nano": 10_000_000}


@dataclass(frozen=True, slots=True)
class Guard:
    """What stands against attackers."""

    probation_days: int = 14  # what is earned waits so long
    stake_units: int = NANO  # nano units that each account stakes, back after its probation
    found_day: float = 0.02  # chance a day that an attacker's account is found
    false_day: float = 0.0002  # the same for an honest one
    appeal_won: float = 0.8  # part of those found wrongly who are restored

    def kept(self, chance_day: float) -> float:
        """Part of the income of `DAYS` that is released to somebody who is found with this chance a day."""
        stays = 1.0 - chance_day
        return sum(stays ** (day + self.probation_days) for day in range(1, DAYS + 1)) / DAYS

    def slashed(self, chance_day: float) -> float:
        """Chance that a stake is lost: somebody is found before the end."""
        return float(1.0 - (1.0 - chance_day) ** (DAYS + self.probation_days))


NO_GUARD: Final = Guard(0, 0, 0.0, 0.0)
DEFAULT_GUARD: Final = Guard()
GRID: Final = tuple(
    Guard(days, stake, found, false)
    for days in (7, 14, 30)
    for stake in (NANO, 2 * NANO)
    for found in (0.01, 0.02, 0.05)
    for false in (0.0001, 0.0002, 0.0004)
)


@dataclass(frozen=True, slots=True)
class Row:
    """One attack, per unit spent: 0 is break-even, -1 loses all."""

    attack: str
    income_units: int  # what it earns before guards, nano units
    spent_units: int  # on accounts and calls
    unguarded: float
    guarded: float


def attack_rows(guard: Guard = DEFAULT_GUARD, seed: int = 1) -> tuple[Row, ...]:
    """Every published attack that the simulator knows, and what it returns. About a CPU-second."""
    base = default_scenario().with_values(BASE)
    found = {label: _run(base, changes, seed) for label, changes in ATTACKS}
    one = next(got["attack_income"] for label, got in found.items() if "one account" in label)
    rows = []
    for label, got in found.items():
        if label == "nobody attacks" or "one account" in label:
            continue
        income, accounts = got["attack_income"], int(got["attack_accounts"])
        cost = got["attack_income"] / got["attack_return"] if got["attack_return"] else accounts * 0.01
        name = label
        if "200 accounts" in label:
            # The use is real and would earn as much in one account: what splitting adds is what the attack gains.
            income, name = max(0.0, income - one), f"split: {label}"
        rows.append(_row(name, income, cost, accounts, guard))
    return tuple(rows)


def _row(name: str, income: float, cost: float, accounts: int, guard: Guard) -> Row:
    stake = guard.stake_units / NANO * accounts * guard.slashed(guard.found_day)
    kept = income * guard.kept(guard.found_day)
    return Row(name, round(income * NANO), round(cost * NANO), income / cost - 1.0, kept / (cost + stake) - 1.0)


def newcomer_loss(guard: Guard, income: float) -> float:
    """Part of its income that an honest newcomer loses to a guard, on average: what waits is late, not lost.

    Args:
        income: of an honest account over `DAYS`, in the currency.
    """
    chance = guard.false_day * (1.0 - guard.appeal_won)
    stake = guard.stake_units / NANO * guard.slashed(chance)
    return 1.0 - guard.kept(chance) + stake / income


@dataclass(frozen=True, slots=True)
class Point:
    """One point of the grid."""

    guard: Guard
    worst_attack: str
    worst_return: float
    newcomer_loss: float


def grid(seed: int = 1) -> tuple[Point, ...]:
    """Every guard of the grid: what the best attack returns, and what newcomers lose."""
    base = default_scenario().with_values(BASE)
    alone = figures(simulate(base, seed))
    income = alone["honest_earned"] / BASE["contributors"]  # type: ignore[operator]
    unguarded = attack_rows(NO_GUARD, seed)
    points = []
    for guard in GRID:
        rows = [
            _row(r.attack, r.income_units / NANO, r.spent_units / NANO, _accounts(r.attack), guard) for r in unguarded
        ]
        worst = max(rows, key=lambda row: row.guarded)
        points.append(Point(guard, worst.attack, worst.guarded, newcomer_loss(guard, income)))
    return tuple(points)


def _accounts(attack: str) -> int:
    return int(dict(ATTACKS).get(attack.removeprefix("split: "), {}).get("attack.accounts", 100))


def _run(base: Scenario, changes: dict[str, object], seed: int) -> dict[str, float]:
    return figures(simulate(base.with_values({**ACCOUNTS, **changes}), seed))


@dataclass(frozen=True, slots=True)
class Collusion:
    """`colluders` of `pool` reviewers act together, without being known as a cluster."""

    pool: int
    colluders: int
    wins: float  # part of first panels that they hold
    wins_twice: float  # part in which they hold the appeal's panel too
    returned: float  # per unit spent, when each asks for `bribe_units` and the case is about `disputed_units`


def collusion(
    colluders: int, *, pool: int = 40, disputed_units: int = 50 * NANO, bribe_units: int = NANO, draws: int = 400
) -> Collusion:
    """How often colluding reviewers decide a dispute, by the product's own draw over many public values.

    The attacker opens a dispute about somebody else's money: it stakes a bond, pays each colluder whatever happens, and
    wins what is disputed only if its people are the majority of both panels, since the owner appeals.
    """
    rules = Rules()
    people = tuple(ContributorId(f"ctr_{number:032x}") for number in range(pool))
    bad = frozenset(people[:colluders])
    case = Case(
        "dsp_" + "0" * 32, rules, Claim("registration", ContributionId("ctb_x")), ContributorId("ctr_a"),
        AccountId("payer:a"), rules.bond(disputed_units), 0,
    )  # fmt: skip
    once = twice = 0
    for number in range(draws):
        first = draw(case, people, {}, f"value {number}")
        if 2 * len(bad & set(first)) <= len(first):
            continue
        once += 1
        second = draw(_appealed(case, first), people, {}, f"value {number} again")
        twice += 2 * len(bad & set(second)) > len(second)
    chance = twice / draws
    spent = bribe_units * colluders + rules.bond(disputed_units) * (1 - chance)
    return Collusion(pool, colluders, once / draws, chance, disputed_units * chance / spent - 1.0)


def _appealed(case: Case, first: tuple[ContributorId, ...]) -> Case:
    return replace(case, phase="decided", first=(Panel(first, 0, ""),))


def collusions() -> Iterator[Collusion]:
    """A tenth, a fifth, three tenths and half of the reviewers."""
    for colluders in (4, 8, 12, 20):
        yield collusion(colluders)
