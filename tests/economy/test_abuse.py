"""Attacks lose money under the default guards, and the guards cost honest newcomers little: over a whole grid."""

from __future__ import annotations

import pytest

from headwater.economy.abuse import DEFAULT_GUARD, GRID, NO_GUARD, attack_rows, collusion, grid, newcomer_loss


@pytest.mark.slow
def test_every_attack_returns_less_than_it_costs_and_newcomers_lose_little_across_the_grid():
    """Best attack below 0 at every point; newcomers lose under 5 % unless wrong findings are doubled."""
    rows = attack_rows()
    assert {row.attack.split(":")[0] for row in rows} == {"wash", "split", "copies", "spam", "bait", "bribed reviewers"}
    assert all(row.guarded < 0 for row in rows)
    assert any(row.unguarded > 0 for row in rows)  # the guards are what makes the difference
    points = grid()
    assert len(points) == len(GRID)
    assert all(point.worst_return < 0 for point in points)
    assert all(point.newcomer_loss < 0.05 for point in points if point.guard.false_day <= 0.0002)


def test_without_guards_nobody_loses_anything_to_them():
    """The closed forms at their ends: no audit takes nothing, a certain one takes all."""
    assert NO_GUARD.kept(0.0) == 1.0
    assert NO_GUARD.slashed(0.0) == 0.0
    assert DEFAULT_GUARD.kept(1.0) == 0.0
    assert DEFAULT_GUARD.slashed(1.0) == 1.0
    assert newcomer_loss(NO_GUARD, 1.0) == 0.0
    assert newcomer_loss(DEFAULT_GUARD, 0.5) > newcomer_loss(DEFAULT_GUARD, 5.0) > 0


def test_colluding_reviewers_need_both_panels_and_lose_with_a_tenth_of_the_pool():
    """More colluders win more often; nobody wins with none, everybody with all."""
    none, some, many, everyone = (collusion(k, draws=150) for k in (0, 8, 20, 40))
    assert none.wins == none.wins_twice == 0.0
    assert some.wins_twice <= many.wins_twice <= everyone.wins_twice == 1.0
    assert some.returned < 0
