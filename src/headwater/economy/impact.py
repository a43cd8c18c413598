"""What a change of policy would do: the same people, seeds and assumptions under the old and the new one.

The report holds what is needed to run it again (both policies, every assumption, the seeds), so whoever votes can
compare its digest with the proposal's. Figures are text: the same run gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headwater.core.canonical import canonical, digest
from headwater.core.errors import InvalidError
from headwater.economy.figures import ABOUT, figures
from headwater.economy.questions import interval
from headwater.economy.scenario import Scenario
from headwater.economy.simulation import simulate
from headwater.splits import Policy

SCHEMA = "headwater.impact/1"
SHOWN = (
    "contributors_earned_share",
    "contributors_received_share",
    "take_share",
    "residual_share",
    "gini_earned",
    "top1_share",
    "median_month",
    "survival",
    "active_share",
    "surplus_per_wish",
    "attack_return",
    "events_lost_units",
)
"""Figures of a report; `economy.figures.ABOUT` says what each is."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure under both policies: means over seeds, and the difference with its 95 % half-width."""

    figure: str
    before: float
    after: float
    difference: float
    half_width: float


@dataclass(frozen=True, slots=True)
class Impact:
    """A report that a proposal names by digest."""

    scenario: Scenario  # under the old policy
    new: Policy
    seeds: int
    changes: tuple[Change, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        rows = [
            {
                "figure": one.figure,
                "about": ABOUT[one.figure],
                "before": f"{one.before:.9g}",
                "after": f"{one.after:.9g}",
                "difference": f"{one.difference:.9g}",
                "half_width": f"{one.half_width:.9g}",
            }
            for one in self.changes
        ]
        return canonical(
            {
                "schema": SCHEMA,
                "scenario": self.scenario.to_json(),
                "old_policy": self.scenario.policy.digest,
                "new_policy": self.new.digest,
                "new_policy_text": self.new.to_json(),
                "seeds": self.seeds,
                "changes": rows,
            }
        )

    @property
    def digest(self) -> str:
        """``sha256:…`` of the bytes."""
        return digest(self.to_bytes())


def impact(scenario: Scenario, new: Policy, *, seeds: int, on_run: Callable[[], None] | None = None) -> Impact:
    """Run a scenario under its own policy and under `new`, with common random numbers.

    Raises:
        InvalidError: nothing would change, or no seeds.
    """
    if new.digest == scenario.policy.digest:
        raise InvalidError("both policies are the same", code="impact_empty", fix="propose another policy")
    if not 1 <= seeds <= 1_000:
        raise InvalidError(f"{seeds} seeds", code="impact_invalid", fix="use 1 to 1,000")
    pairs: list[tuple[dict[str, float], dict[str, float]]] = []
    changed = scenario.with_values({"policy": new})
    for seed in range(1, seeds + 1):
        got = []
        for one in (scenario, changed):
            got.append(figures(simulate(one, seed)))
            if on_run is not None:
                on_run()
        pairs.append((got[0], got[1]))
    rows = []
    for name in SHOWN:
        before, after = [pair[0][name] for pair in pairs], [pair[1][name] for pair in pairs]
        difference, half = interval([b - a for a, b in zip(before, after, strict=True)])
        rows.append(Change(name, interval(before)[0], interval(after)[0], difference, half))
    return Impact(scenario, new, seeds, tuple(rows))
