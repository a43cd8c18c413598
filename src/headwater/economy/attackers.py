"""Attackers, as plug-ins that prepare rows before day 0; from then on the same rules hold for them as for everybody.

wash        their payers call their app, which retrieves their contributions
sybil       a tenth of all use, spread over many accounts
duplicate   copies of the most used contributions; `detection` of them are recognised as copies
spam        many contributions that explain almost nothing; `detection` of them are refused
stuffing    few contributions that are retrieved `intensity` times as often as others and explain nothing
collusion   spam that bribed reviewers let in: nothing is refused
"""

from __future__ import annotations

import numpy as np

from headwater.economy.behaviour import Behaviour, View
from headwater.economy.draws import ATTACK, alias_table, key_of, uniform
from headwater.economy.state import NICHE_SIZE

WASH_APP = 0
"""The attacker's own app, under wash."""

SYBIL_PART = 0.1
"""Part of all use that a sybil attacker's own contributions have, however many accounts share them."""

SPAM_QUALITY = 0.03
"""Evidence of worthless contributions, beside a usual one."""


def prepare_attack(view: View) -> None:
    """Give the attacker's rows their part in the attack."""
    s, attack = view.scenario, view.scenario.attack
    pull, quality, holder = view["asset.pull"], view["asset.quality"], view["asset.holder"]
    owned = view["asset.owner"] >= s.agents.contributors - attack.accounts
    mine, honest = np.flatnonzero(owned), np.flatnonzero(~owned)
    # Builders do not list what attackers offer, and nobody has built on it; what is earned comes from the attack.
    parent, listed = view["asset.parent"], view["niche.asset"]
    parent[owned | ((parent >= 0) & owned[parent])] = -1
    listed[owned[listed]] = honest[0]
    key = key_of(view.seed, 0, ATTACK)
    caught = np.array([uniform(key, i) for i in range(mine.size)]) < attack.detection
    pull[mine] = 0.0
    usual = float(pull[honest].mean())
    if attack.kind == "wash":
        app = WASH_APP
        pull[mine] = usual * 1e-9  # alive, but drawn by nobody else
        homes, quality_of_apps = view["user.app"], view["app.quality"]
        # Nobody else uses the attacker's app, or the return would be other people's money.
        homes[homes == app] = app + 1
        quality_of_apps[app] = 0.0
        alias_table(quality_of_apps.astype(np.float64), view["app.table"])
        view["user.rate"][s.agents.users - attack.payers :] = attack.intensity
        homes[s.agents.users - attack.payers :] = app
        view["app.niche"][app] = 1.0
        view["niche.asset"][app * NICHE_SIZE : (app + 1) * NICHE_SIZE] = np.resize(mine, NICHE_SIZE)
    elif attack.kind == "sybil":
        quality[mine] = 1.0
        pull[mine] = SYBIL_PART / (1 - SYBIL_PART) * float(pull[honest].sum(dtype=np.float64)) / mine.size
    elif attack.kind == "duplicate":
        targets = np.resize(honest[np.argsort(-pull[honest], kind="stable")[: mine.size]], mine.size)
        pull[mine], quality[mine] = pull[targets], quality[targets]
        view["asset.content"][mine] = view["asset.content"][targets]
        holder[mine] = np.where(caught, holder[targets], mine)
    elif attack.kind == "spam":
        pull[mine] = np.where(caught, 0.0, usual)
        quality[mine] = SPAM_QUALITY
    elif attack.kind == "stuffing":
        pull[mine] = usual * attack.intensity
        quality[mine] = SPAM_QUALITY
    elif attack.kind == "collusion":
        pull[mine] = usual
        quality[mine] = SPAM_QUALITY


ATTACK_SETUP = Behaviour(
    name="attack",
    phase="start",
    reads=("asset.owner",),
    writes=(
        "asset.pull",
        "asset.quality",
        "asset.holder",
        "asset.content",
        "asset.parent",
        "user.rate",
        "user.app",
        "app.niche",
        "app.quality",
        "app.table",
        "niche.asset",
    ),
    act=prepare_attack,
    wanted=lambda s: s.attack.kind != "none",
    trusted=True,
)
