"""One run: the day's phases in order, with every unit of money accounted for at the end of each day.

    start -> [price -> retrieve -> demand -> attention -> budget -> calls -> rails -> book -> settle -> beliefs]

State is read at the start of a phase and written at its end (synchronous) unless `run.sequential` is set;
the choice changes results, so every result names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headwater.core.errors import InvalidError, InvariantError
from headwater.core.money import BPS, allocate
from headwater.economy.attackers import ATTACK_SETUP, WASH_APP
from headwater.economy.behaviour import PHASES, Behaviour, Phase, refuse_unknown_columns
from headwater.economy.calls import (
    PER_CALL,
    PER_PAYER,
    POOLED,
    AppColumns,
    CallRules,
    Outcome,
    Wishes,
    calls_of_day,
    divide_prices,
    fold_by_owner,
)
from headwater.economy.compiled import Int64s
from headwater.economy.demand import ATTENTION, BUDGET, DEMAND, refuse_wild_wishes, volume_of
from headwater.economy.finance import RAILS
from headwater.economy.layers import COMPETITION, MARKUPS
from headwater.economy.population import coordinator_line_bps, populate
from headwater.economy.rails import PRODUCT_RAILS
from headwater.economy.retrieval import RETRIEVAL
from headwater.economy.scenario import Scenario
from headwater.economy.settling import SETTLEMENT
from headwater.economy.split_rules import split_rule
from headwater.economy.state import ACTIVE, State, paid_beyond_due
from headwater.economy.supply import POOL_DAY_MAX, SUPPLY_BEHAVIOUR
from headwater.economy.tally import ATTACKER, CALLS, DISCOUNT, LEFT_OVER, PAID, POT, RESIDUAL, TALLY_SIZE
from headwater.splits.measuring import ATTRIBUTION

BUILT_IN: tuple[Behaviour, ...] = (
    ATTACK_SETUP, MARKUPS, COMPETITION, RETRIEVAL, DEMAND, ATTENTION, BUDGET, *RAILS, *PRODUCT_RAILS,
    SETTLEMENT, SUPPLY_BEHAVIOUR,
)  # fmt: skip
"""Behaviours of every run; each says itself whether a scenario wants it."""

SERIES = (
    "day", "calls", "paid", "contributors", "received", "waiting", "active", "enrolled", "pool_bps",
)  # fmt: skip
"""Columns of the time series; amounts are cumulative nano units."""


@dataclass(frozen=True, slots=True)
class Opening:
    """Balances that a run starts from, largest first: (account, nano units, can be paid)."""

    rows: tuple[tuple[str, int, bool], ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that is over: the state it ended in, its time series and what calls added up to."""

    scenario: Scenario
    seed: int
    state: State
    series: tuple[tuple[int, ...], ...]  # rows of `SERIES`
    tally: Int64s  # (TALLY_SIZE,)
    lines: tuple[tuple[str, int], ...]  # (line of the policy, nano units)
    attacker_app_income: int
    due: Int64s  # (assets,) what exact measurement would have paid, or (0,)


class Simulation:
    """A run in progress; `step` is one day."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        *,
        behaviours: Sequence[Behaviour] = BUILT_IN,
        opening: Opening | None = None,
    ) -> None:
        self.scenario, self.seed = scenario, seed
        self.state = populate(scenario, seed)
        if opening is not None:
            _open_with(self.state, opening)
        for behaviour in behaviours:
            if behaviour.wanted(scenario) and behaviour.prepare is not None:
                behaviour.prepare(self.state, scenario)
        refuse_unknown_columns(behaviours, self.state, scenario)
        self._phases = {name: Phase(name, behaviours, scenario) for name in PHASES}
        self._names = [line.name for line in scenario.policy.lines]
        self._rule = split_rule(scenario.split.rule)
        self.tally = np.zeros(TALLY_SIZE, np.int64)
        n, apps = scenario.agents.contributors, scenario.agents.apps
        tracks = scenario.evidence.noise > 0 or scenario.evidence.misattributed > 0
        self.due = np.zeros(n * scenario.agents.assets_each if tracks else 0, np.int64)
        self._uses = np.zeros(n * scenario.agents.assets_each if self._rule.pooled else 0, np.int32)
        self._app_calls = np.zeros(apps, np.int64)
        self._lines = np.zeros((apps, len(self._names) + 1), np.int64)
        self._fee_lines = np.zeros((apps, len(self._names) + 1), np.int64)
        self._measuring = scenario.price.attribution_nano
        self._line_totals = dict.fromkeys([*([ATTRIBUTION] if self._measuring else []), *self._names], 0)
        self._subscribers = (
            np.bincount(self.state["user.app"], minlength=apps)
            if scenario.price.rule == "subscription"
            else np.zeros(apps, np.int64)
        )
        self._residual = "base_model" if scenario.policy.residual == "base_model" else "commons"
        self.series: list[tuple[int, ...]] = []
        self._phases["start"].run(self.state, seed)
        self.state.check()

    def step(self) -> None:
        """One day.

        Raises:
            InvariantError: money was lost or made, or a behaviour wrote what it did not declare.
        """
        state = self.state
        self._phases["price"].run(state, self.seed)
        self._phases["retrieve"].run(state, self.seed)
        state["today.tally"][:] = 0
        self._collect()
        for phase in ("demand", "attention", "budget"):
            self._phases[phase].run(state, self.seed)
            if not {"wish.call", "wish.app"}.isdisjoint(self._phases[phase].writes):
                users, apps = self.scenario.agents.users, self.scenario.agents.apps
                refuse_wild_wishes(state["wish.call"], state["wish.app"], users, apps)
        if self.scenario.run.mode == "calls":
            self._calls()
        else:
            self._expected_pool()
        self._phases["rails"].run(state, self.seed)
        self._book()
        self._phases["settle"].run(state, self.seed)
        self._phases["beliefs"].run(state, self.seed)
        state.check()
        if state.day % self.scenario.settle.epoch_days == 0 and paid_beyond_due(state):
            raise InvariantError(
                f"day {state.day}: {paid_beyond_due(state)} rows were paid more than was due", code="economy_not_exact"
            )
        if state.day % self.scenario.run.record_every == 0 or state.day == self.scenario.run.days - 1:
            self._record()
        state.day += 1

    def finished(self) -> Finished:
        """What the run has come to."""
        apps = self.state["app.income"]
        wash = self.scenario.attack.kind == "wash"
        return Finished(
            self.scenario, self.seed, self.state, tuple(self.series), self.tally,
            tuple(self._line_totals.items()), int(apps[WASH_APP]) if wash else 0, self.due,
        )  # fmt: skip

    def call_rules(self) -> CallRules:
        """What holds for every call of this day."""
        s = self.scenario
        per_payer = s.split.rule == "user-centric"
        return CallRules(
            rule=self._rule.kernel,
            money=POOLED if self._rule.pooled else PER_PAYER if per_payer else PER_CALL,
            sources=s.evidence.sources,
            bits=s.evidence.bits,
            # A rule that counts uses has no measured bits to set beside those of the base model.
            residual_bits=0.0 if s.split.rule in _COUNTING else s.evidence.base_bits * s.policy.model_weight_ppm / 1e6,
            floor_bits=0.0 if s.split.rule in _COUNTING else s.policy.evidence_floor_millibits / 1000.0,
            generic=s.evidence.generic_share,
            overlap=s.evidence.overlap,
            copies=s.attack.kind == "duplicate",
            hidden_copies=s.attack.kind == "duplicate" and s.attack.detection < 1.0,
            noise=s.evidence.noise,
            noise_correlation=s.evidence.noise_correlation,
            misattributed=s.evidence.misattributed,
            misattributed_always=s.evidence.misattributed_always,
            discount_bps=s.policy.discount_bps(s.evidence.grade),
            parent_ppb=round(s.evidence.parent_share * 1e9),
            forced_from=s.agents.users - s.attack.payers,
            born_before=max(0, self.state.day - s.evidence.index_lag_days) if s.evidence.index_lag_days else 32_767,
        )

    def _collect(self) -> None:
        """Today's prices, divided once by app, and flat fees; before anybody wishes for anything."""
        s, state = self.scenario, self.state
        if s.run.mode != "calls":
            return
        posted = s.price.per_call_nano - self._measuring if s.price.rule == "posted" else 0
        prices = np.full(s.agents.apps, posted, np.int64)
        line_bps = self._line_bps()
        divide_prices(prices, line_bps, self._lines)
        state["app.pool"][:] = self._lines[:, -1]
        if s.price.rule == "subscription":
            self._collect_fees(line_bps, state["user.pot"])

    def _calls(self) -> None:
        """Every wish that nothing struck out becomes a paid call."""
        s, state = self.scenario, self.state
        pot = state.columns.get("user.pot", np.zeros(0, np.int64))
        tally = state["today.tally"]
        self._app_calls[:] = 0
        pot_before = int(pot.sum())
        calls_of_day(
            self.seed, state.day, s.run.threads, self.call_rules(),
            Wishes(state["wish.call"], state["wish.app"], state["wish.worth"], state["wish.fate"]), pot,
            AppColumns(state["app.price"], state["app.pool"], state["app.niche"], state["niche.live"]),
            state["asset.card"], state["asset.table"], state["asset.holder"], state["asset.content"],
            Outcome(state["asset.earned"], self.due, self._uses, self._app_calls, tally),
        )  # fmt: skip
        fold_by_owner(state["asset.owner"], state["asset.earned"], state["contributor.today"])
        self.tally += tally
        state["app.calls"][:] += self._app_calls
        state.book("in:users", int(tally[PAID]))
        state.book(self._residual, int(tally[RESIDUAL]))
        state.book("commons", int(tally[DISCOUNT]) + int(tally[LEFT_OVER]))
        state.book("pot", int(tally[POT]))
        state.book("sellers", int(self._app_calls @ state["app.markup"]))
        self._give_lines(self._app_calls, self._lines)
        self._give_measuring(int(tally[CALLS]))
        if pot_before < int(pot.sum()):
            raise InvariantError("a payer's pot grew by calling", code="economy_not_exact")

    def _line_bps(self) -> Int64s:
        """(apps, lines + 1) the policy's lines for each app, the pool last; competing coordinators set their own."""
        policy, state = self.scenario.policy, self.state
        row = np.array([*(line.bps for line in policy.lines), BPS - policy.take_bps], np.int64)
        table = np.tile(row, (self.scenario.agents.apps, 1))
        if self.scenario.coordinators.compete:
            at = self._names.index("coordinator" if "coordinator" in self._names else "platform")
            take = state["coordinator.take_bps"][state["app.coordinator"]]
            table[:, -1] += coordinator_line_bps(self.scenario) - take
            table[:, at] = take
        return table

    def _give_lines(self, counts: Int64s, lines: Int64s) -> None:
        """Each line's amounts, as often as they were paid, to whom the line names."""
        state = self.state
        for k, name in enumerate(self._names):
            amounts = counts * lines[:, k]
            self._line_totals[name] += int(amounts.sum())
            if name in ("app", "builder"):
                state["app.income"][:] += amounts
            elif name in ("coordinator", "platform"):
                # Exact: bincount adds floats, so integers are added by index instead.
                np.add.at(state["coordinator.income"], state["app.coordinator"], amounts)
            else:
                state.book(f"line:{name}", int(amounts.sum()))

    def _give_measuring(self, calls: int) -> None:
        """What measuring so many calls cost, off their prices before the policy divided them."""
        if self._measuring:
            self._line_totals[ATTRIBUTION] += calls * self._measuring
            self.state.book(f"line:{ATTRIBUTION}", calls * self._measuring)

    def _collect_fees(self, line_bps: Int64s, pot: Int64s) -> None:
        """Everybody's flat fee of the day: lines at once, the pool's part to the payer's own pot or the common one."""
        s, state = self.scenario, self.state
        fees = np.full(s.agents.apps, s.price.subscription_day_nano, np.int64)
        divide_prices(fees, line_bps, self._fee_lines)
        state.book("in:users", s.price.subscription_day_nano * s.agents.users)
        self.tally[PAID] += s.price.subscription_day_nano * s.agents.users
        if s.attack.payers:
            self.tally[ATTACKER] += s.price.subscription_day_nano * s.attack.payers
        self._give_lines(self._subscribers, self._fee_lines)
        part = self._fee_lines[state["user.app"], -1]
        if self._rule.pooled:
            state.book("pot", int(part.sum()))
        else:
            pot += part

    def _expected_pool(self) -> None:
        """Pool mode: the day's calls as their mean, charged and divided at once."""
        s, state = self.scenario, self.state
        volume = volume_of(s, state.day, state["contributor.phase"], state["contributor.effort"])
        calls = round(s.agents.users * s.demand.calls_per_day * volume)
        price = np.array([s.price.per_call_nano], np.int64)
        lines = np.zeros((1, len(self._names) + 1), np.int64)
        divide_prices(price - self._measuring, self._line_bps()[:1], lines)
        self._give_measuring(calls)
        self.tally[CALLS] += calls
        self.tally[PAID] += calls * int(price[0])
        state.book("in:users", calls * int(price[0]))
        for k, name in enumerate(self._names):
            self._line_totals[name] += calls * int(lines[0, k])
            state.book(f"line:{name}", calls * int(lines[0, k]))
        pool = calls * int(lines[0, -1])
        # Of grounded answers the sources hold bits / (bits + weighted base bits); of generic ones nothing.
        bits = s.evidence.bits * s.evidence.sources
        base = s.evidence.base_bits * s.policy.model_weight_ppm / 1e6
        part = round((1.0 - s.evidence.generic_share) * bits / max(bits + base, 1e-9) * BPS)
        to_people, residual = allocate(pool, [part, BPS - part])
        state.book(self._residual, residual)
        self.tally[RESIDUAL] += residual
        state.book("pot", to_people)
        if state.books["pot"] > POOL_DAY_MAX:
            raise InvalidError(
                f"a day's pool is {state.books['pot']} nano, above 2^52",
                code="overflow_risk",
                fix='lower the price or the users, or use run.mode = "calls"',
            )

    def _book(self) -> None:
        """Today's earnings become cumulative; pools are divided when their period ends; subsidies are added."""
        s, state = self.scenario, self.state
        today, accrued = state["contributor.today"], state["contributor.accrued"]
        if self._rule.pooled and (state.day + 1) % s.split.pool_days == 0:
            self._divide_pot(today)
        if s.subsidy.share > 0 and state.day < s.subsidy.days:
            extra = today * round(s.subsidy.share * 1000) // 1000
            today += extra
            state.book("in:subsidy", int(extra.sum()))
        if s.run.mode == "calls":
            accrued += today
            today[:] = 0

    def _divide_pot(self, today: Int64s) -> None:
        """The common pot by use, with the product's own `allocate` over everybody who was used."""
        state, uses = self.state, np.zeros(self.scenario.agents.contributors, np.int64)
        np.add.at(uses, state["asset.owner"], self._uses)
        rows = np.flatnonzero(uses)
        pot = state.books.get("pot", 0)
        if rows.size and pot:
            used = uses[rows].astype(object)
            exponent = self._rule.exponent
            weights = [round(int(u) ** exponent * 1_000_000) if exponent < 1 else int(u) ** int(exponent) for u in used]
            today[rows] += np.array(allocate(pot, weights), np.int64)
            state.book("pot", -pot)
        self._uses[:] = 0

    def _record(self) -> None:
        state = self.state
        accrued = int(state["contributor.accrued"].sum())
        calls, paid = int(self.tally[CALLS]), int(self.tally[PAID])
        pool = self._lines[0, -1] * BPS // max(1, int(self._lines[0].sum()))
        self.series.append(
            (
                state.day, calls, paid, accrued, state.payouts["received"],
                accrued - int(state["contributor.settled"].sum()),
                int(np.count_nonzero(state["contributor.phase"] == ACTIVE)),
                int(state["contributor.enrolled"].sum()), int(pool),
            )
        )  # fmt: skip


def simulate(
    scenario: Scenario,
    seed: int | None = None,
    *,
    behaviours: Sequence[Behaviour] = BUILT_IN,
    opening: Opening | None = None,
    on_day: Callable[[int], None] | None = None,
) -> Finished:
    """Run a scenario for one seed, from the first day to the last.

    Raises:
        InvalidError: a behaviour that conflicts with another, or an overflow that only shows in the run.
        InvariantError: money was lost or made, or a behaviour wrote what it did not declare.
    """
    simulation = Simulation(
        scenario, scenario.run.seed if seed is None else seed, behaviours=behaviours, opening=opening
    )
    for _ in range(scenario.run.days):
        simulation.step()
        if on_day is not None:
            on_day(simulation.state.day)
    return simulation.finished()


def opening_of(balances: Mapping[str, int]) -> Opening:
    """The opening of a run from ledger balances: contributors' and escrow accounts with money, largest first."""
    rows = [
        (account, units, account.startswith("contributor:"))
        for account, units in balances.items()
        if units > 0 and account.startswith(("contributor:", "escrow:"))
    ]
    return Opening(tuple(sorted(rows, key=lambda row: (-row[1], row[0]))))


def _open_with(state: State, opening: Opening) -> None:
    """Give the largest balances to the rows that are drawn on most."""
    rows = np.argsort(-state["asset.pull"], kind="stable")[: len(opening.rows)]
    if len(rows) < len(opening.rows):
        raise InvalidError(
            f"the ledger has {len(opening.rows)} paid accounts, the scenario {len(rows)} contributors",
            code="scenario_invalid",
            fix="raise agents.contributors",
        )
    owners = state["asset.owner"][rows]
    for owner, (_, units, payable) in zip(owners, opening.rows, strict=True):
        state["contributor.accrued"][owner] += units
        state["contributor.seen"][owner] += units
        state["contributor.phase"][owner] = ACTIVE
        state["contributor.effort"][owner] = 1.0
        state["contributor.enrolled"][owner] = payable
        state.book("in:opening", units)


_COUNTING = ("equal", "pooled", "sqrt", "quadratic", "user-centric")
