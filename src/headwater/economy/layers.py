"""The layers between caller and contributor: stacked mark-ups, and coordinators who compete for apps."""

from __future__ import annotations

import numpy as np

from headwater.economy.behaviour import Behaviour, View
from headwater.economy.compiled import Float64s, Int32s, compiled
from headwater.economy.draws import COORDINATOR, key_of, uniform
from headwater.economy.population import coordinator_line_bps
from headwater.economy.scenario import Scenario
from headwater.economy.state import State


def stacked_price(cost: float, choke: float, layers: int) -> float:
    """The price after `layers` sellers have each added the mark-up that is best for themselves.

    Linear demand with nobody buying at `choke`. Each seller faces the demand its buyers leave it and halves
    what remains of it, so the quantity is (1/2)^layers of what it is at cost.
    Source: Spengler, 1950, Vertical integration and antitrust policy, for one seller on another.
    """
    return choke - (choke - cost) * 0.5**layers if choke > cost else cost


def set_markups(view: View) -> None:
    """Every layer sets its mark-up once; the policy divides the base price only."""
    s = view.scenario
    price = stacked_price(float(s.price.per_call_nano), 2.0 * s.demand.value_nano, s.price.markup_layers)
    view["app.markup"][:] = round(price) - s.price.per_call_nano
    view["app.price"][:] = round(price)


MARKUPS = Behaviour(
    name="mark-ups",
    phase="start",
    reads=(),
    writes=("app.markup", "app.price"),
    act=set_markups,
    wanted=lambda s: s.price.markup_layers > 0,
    trusted=True,
)


@compiled
def choose_coordinators(key: np.uint64, chosen: Int32s, utility: Float64s, switch_cost: float) -> None:
    """Each app takes the coordinator of largest utility, with Gumbel taste; leaving its own one costs."""
    count = utility.size
    for app in range(chosen.size):
        best, largest = 0, -np.inf
        for k in range(count):
            taste = -np.log(-np.log(uniform(key, app * count + k)))
            worth = utility[k] + taste - (switch_cost if k != chosen[app] else 0.0)
            if worth > largest:
                best, largest = k, worth
        chosen[app] = best


def compete(view: View) -> None:
    """Every coordinator keeps moving its take while that pays, and apps choose again."""
    s, rules = view.scenario, view.scenario.coordinators
    take, direction = view["coordinator.take_bps"], view["coordinator.direction"]
    income, last = view["coordinator.income"], view["coordinator.last_income"]
    counts = np.bincount(view["app.coordinator"], weights=view["app.quality"], minlength=take.size)
    share = counts / counts.sum()
    if view.day > 0:
        earned = income - view["coordinator.seen_income"]
        # Hill climbing: go on if the last step paid, else turn round.
        direction[:] = np.where(earned >= last, direction, -direction)
        last[:] = earned
        view["coordinator.seen_income"][:] = income
        others = s.policy.take_bps - coordinator_line_bps(s)
        # Measuring counts as a take, so it leaves coordinators less.
        measuring_bps = -(-s.price.attribution_nano * 10_000 // max(1, s.price.per_call_nano))
        room = max(0, s.policy.take_cap_bps - others - measuring_bps)
        take[:] = np.clip(take + direction * rules.take_step_bps, 0, room)
    utility = rules.network * np.log(share + 1e-3) - rules.take_weight * take / 10_000.0
    if take.size > 1:
        choose_coordinators(
            key_of(view.seed, view.day, COORDINATOR), view["app.coordinator"], utility,
            0.1 if rules.portability else rules.switch_cost,
        )  # fmt: skip


def _prepare(state: State, scenario: Scenario) -> None:
    state.add("coordinator", scenario.agents.coordinators, seen_income=np.int64)


COMPETITION = Behaviour(
    name="coordinators",
    phase="price",
    reads=("app.quality", "coordinator.income"),
    writes=(
        "coordinator.take_bps",
        "coordinator.direction",
        "coordinator.last_income",
        "coordinator.seen_income",
        "app.coordinator",
    ),
    act=compete,
    every=lambda s: s.coordinators.review_days,
    wanted=lambda s: s.coordinators.compete,
    prepare=_prepare,
    trusted=True,
)
