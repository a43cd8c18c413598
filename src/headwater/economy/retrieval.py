"""What is drawn on: how often each contribution is retrieved, renewed once a week from effort and index age."""

from __future__ import annotations

import numpy as np

from headwater.economy.behaviour import Behaviour, View
from headwater.economy.compiled import Float32s, Float64s, Int16s, Int32s, UInt8s, compiled
from headwater.economy.draws import RETRIEVE, Table, alias_table, bits, key_of, pick

RENEW_DAYS = 7


@compiled
def retrieval_weights(
    day: int, pull: Float32s, owner: Int32s, born: Int16s, effort: Float32s, phase: UInt8s, weights: Float64s
) -> None:
    """weights[a] = pull of the asset times the effort of its owner, 0 for assets that do not exist yet."""
    for a in range(weights.size):
        who = owner[a]
        weights[a] = pull[a] * effort[who] if phase[who] > 0 and born[a] <= day else 0.0


@compiled
def newborn_assets(born: Int16s, owner_born: Int16s, owner: Int32s, phase: UInt8s) -> None:
    """Give the assets of people who entered since the last renewal their day of birth."""
    for a in range(born.size):
        who = owner[a]
        if phase[who] > 0 and owner_born[who] > 0 and born[a] < owner_born[who]:
            born[a] = owner_born[who]


@compiled
def live_niches(key: np.uint64, listed: Int32s, weights: Float64s, table: Table, live: Int32s) -> None:
    """Niche lists with whatever cannot be retrieved now replaced by a draw from the whole catalogue."""
    for i in range(listed.size):
        live[i] = listed[i] if weights[listed[i]] > 0.0 else pick(bits(key, i), table)


def renew(view: View) -> None:
    """Rebuild the table from which sources are drawn."""
    newborn_assets(view["asset.born"], view["contributor.born"], view["asset.owner"], view["contributor.phase"])
    weights = np.empty(view["asset.pull"].size)
    retrieval_weights(
        view.day, view["asset.pull"], view["asset.owner"], view["asset.born"], view["contributor.effort"],
        view["contributor.phase"], weights,
    )  # fmt: skip
    alias_table(weights, view["asset.table"])
    live_niches(
        key_of(view.seed, view.day, RETRIEVE), view["niche.asset"], weights, view["asset.table"],
        view["niche.live"],
    )  # fmt: skip


RETRIEVAL = Behaviour(
    name="retrieval",
    phase="retrieve",
    reads=("asset.pull", "asset.owner", "contributor.effort", "contributor.phase", "contributor.born", "niche.asset"),
    writes=("asset.table", "asset.born", "niche.live"),
    act=renew,
    every=lambda _: RENEW_DAYS,
    wanted=lambda scenario: scenario.run.mode == "calls",
    trusted=True,
)
