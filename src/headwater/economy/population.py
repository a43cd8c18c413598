"""Who there is on day 0: quality by quantile spacing, in an order shuffled by the seed."""

from __future__ import annotations

import numpy as np

from headwater.economy.compiled import Float64s, compiled
from headwater.economy.draws import ALIAS, POPULATION, alias_table, key_of, normal, shuffle, uniform
from headwater.economy.metrics import pareto_quantiles
from headwater.economy.scenario import Scenario
from headwater.economy.state import ACTIVE, NICHE_SIZE, State
from headwater.economy.tally import TALLY_SIZE

CARD = np.dtype(
    [("quality", np.float32), ("parent", np.int32), ("born", np.int16), ("spare", np.int16), ("room", np.int32)]
)
"""What a call needs to know of a source, side by side: calls visit sources at random."""


def populate(scenario: Scenario, seed: int) -> State:
    """The state before day 0. Attackers take the last rows; newcomers' rows are empty."""
    s, state = scenario, State()
    n, users, apps = s.agents.contributors, s.agents.users, s.agents.apps
    key = key_of(seed, 0, POPULATION)
    _contributors(state, s, n, key)
    _assets(state, s, n, key)
    if s.run.mode == "calls":
        _users(state, s, users, apps, key)
        state.add("wish", 0, call=np.int64, app=np.int32, worth=np.float64, fate=np.uint8)
    _apps(state, s, apps, n * s.agents.assets_each, key)
    state.add("today", TALLY_SIZE, tally=np.int64)
    state.add(
        "coordinator",
        s.agents.coordinators,
        take_bps=np.int64,
        income=np.int64,
        last_income=np.int64,
        direction=np.int64,
    )
    state["coordinator.take_bps"][:] = coordinator_line_bps(s)
    state["coordinator.direction"][:] = 1
    return state


def coordinator_line_bps(scenario: Scenario) -> int:
    """What the policy gives the coordinator: its line called coordinator, else the one called platform."""
    names = {line.name: line.bps for line in scenario.policy.lines}
    return names.get("coordinator", names.get("platform", 0))


def empty_rows(scenario: Scenario) -> int:
    """Contributor rows that nobody uses on day 0."""
    return int((scenario.agents.contributors - scenario.attack.accounts) * scenario.agents.newcomers)


def _contributors(state: State, s: Scenario, n: int, key: np.uint64) -> None:
    state.add(
        "contributor", n, today=np.int64, accrued=np.int64, maturing=np.int64, posted=np.int64, settled=np.int64,
        seen=np.int64, pay=np.float32, swing=np.float32, effort=np.float32, cost=np.float32,
        born=np.int16, lost_on=np.int16, phase=np.uint8, enrolled=np.uint8, attacker=np.uint8,
    )  # fmt: skip
    luck = _uniforms(key, 0, n)
    state["contributor.cost"][:] = np.exp(0.5 * _normals(key, n, n))
    state["contributor.effort"][:] = 1.0
    state["contributor.phase"][:] = ACTIVE
    state["contributor.enrolled"][:] = luck < s.settle.enrolled_share
    honest = n - s.attack.accounts
    state["contributor.attacker"][honest:] = 1
    state["contributor.enrolled"][honest:] = 1
    empty = empty_rows(s)
    if empty:
        # Newcomers' rows are the last honest ones; assets were shuffled, so they are like anybody's.
        state["contributor.phase"][honest - empty : honest] = 0
        state["contributor.effort"][honest - empty : honest] = 0.0


def _assets(state: State, s: Scenario, n: int, key: np.uint64) -> None:
    each = s.agents.assets_each
    count = n * each
    state.add(
        "asset", count, owner=np.int32, holder=np.int32, content=np.int32, pull=np.float32, table=ALIAS, earned=np.int64
    )
    state.columns["asset.card"] = cards = np.zeros(count, CARD)
    for name in CARD.names or ():
        if name not in ("spare", "room"):
            # Views: the columns and the cards are the same memory.
            state.columns[f"asset.{name}"] = cards[name]
    # Assets are in order of pull, so that what is drawn often lies together; their owners are shuffled.
    order = shuffle(key, count)
    state["asset.owner"][:] = order // each
    state["asset.holder"][:] = np.arange(count)
    state["asset.content"][:] = np.arange(count)
    pull = pull_quantiles(count, s.evidence.law, s.evidence.tail, s.evidence.spread)[::-1]
    state["asset.pull"][:] = pull / pull.mean()
    if s.run.mode == "pool":
        # Nobody retrieves anything: rows of assets are rows of contributors, so these are shuffled instead.
        state["asset.owner"][:] = np.arange(count)
        state["asset.pull"][order] = pull / pull.mean()
    # How much a source explains once it is retrieved varies far less than how often it is.
    state["asset.quality"][:] = np.exp(0.5 * _normals(key, 3 * n, count) - 0.125)
    state["asset.parent"][:] = -1
    state["asset.born"][:] = -1
    if s.evidence.derived_share > 0.0 and count > 1:
        derived = _uniforms(key, 5 * n + 3 * count, count) < s.evidence.derived_share
        # Parents are drawn by pull: what is used much is also built upon much.
        parents = np.searchsorted(
            np.cumsum(state["asset.pull"], dtype=np.float64) / state["asset.pull"].sum(dtype=np.float64),
            _uniforms(key, 6 * n + 4 * count, count),
        ).clip(max=count - 1)
        roots = derived & ~derived[parents]
        state["asset.parent"][roots] = parents[roots]


def pull_quantiles(n: int, law: str, tail: float, spread: float) -> Float64s:
    """How much `n` contributions are drawn on, smallest first, at the quantiles (i + 0.5) / n."""
    if law == "pareto":
        return pareto_quantiles(n, tail)
    return np.asarray(np.exp(spread * _normal_quantiles(n)))


@compiled
def _normal_quantiles(n: int) -> Float64s:
    out = np.empty(n)
    for i in range(n):
        out[i] = normal((i + 0.5) / n)
    return out


def _users(state: State, s: Scenario, users: int, apps: int, key: np.uint64) -> None:
    state.add("user", users, rate=np.float32, app=np.int32, spent=np.int64)
    if s.price.rule == "subscription":
        state.add("user", users, pot=np.int64)
    spread = s.demand.activity_spread
    base = 2**40
    state["user.rate"][:] = s.demand.calls_per_day * np.exp(spread * _normals(key, base, users) - spread**2 / 2)
    weights = pareto_quantiles(apps, 1.3)
    state["user.app"][:] = np.searchsorted(np.cumsum(weights) / weights.sum(), _uniforms(key, 2 * base, users)).clip(
        max=apps - 1
    )


def _apps(state: State, s: Scenario, apps: int, assets: int, key: np.uint64) -> None:
    state.add(
        "app", apps, quality=np.float32, coordinator=np.int32, niche=np.float32, table=ALIAS,
        price=np.int64, markup=np.int64, calls=np.int64, income=np.int64, pool=np.int64,
    )  # fmt: skip
    state.add("niche", apps * NICHE_SIZE, asset=np.int32, live=np.int32)
    state["app.quality"][:] = pareto_quantiles(apps, 1.3)
    state["app.coordinator"][:] = np.arange(apps) % s.agents.coordinators
    state["app.niche"][:] = s.evidence.niche
    state["app.price"][:] = s.price.per_call_nano if s.price.rule == "posted" else 0
    alias_table(state["app.quality"].astype(np.float64), state["app.table"])
    state["niche.asset"][:] = (_uniforms(key, 3 * 2**40, apps * NICHE_SIZE) * assets).astype(np.int32)


@compiled
def _fill_uniforms(key: np.uint64, first: int, out: Float64s) -> None:
    for i in range(out.size):
        out[i] = uniform(key, first + i)


@compiled
def _fill_normals(key: np.uint64, first: int, out: Float64s) -> None:
    for i in range(out.size):
        out[i] = normal(uniform(key, first + i))


def _uniforms(key: np.uint64, first: int, n: int) -> Float64s:
    out = np.empty(n)
    _fill_uniforms(key, first, out)
    return out


def _normals(key: np.uint64, first: int, n: int) -> Float64s:
    out = np.empty(n)
    _fill_normals(key, first, out)
    return out
