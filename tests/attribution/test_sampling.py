"""Sampled games against whole tables: right where theory says so, near where it does not, sure only when it may be."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.sampling import rough_game, sample
from headwater.core.errors import InvalidError


def table_of(seed: int, players: int, tokens: int = 6) -> np.ndarray:
    """log2 p of a mixture: each token is copied from the present sources that hold it, else guessed."""
    rng = np.random.default_rng(seed)
    holds = rng.random((players, tokens)) * (rng.random((players, tokens)) < 0.4)
    guess = rng.uniform(0.001, 0.05, tokens)
    masks = np.arange(1 << players)[:, None] >> np.arange(players) & 1
    chance = 1 - (1 - guess) * np.prod(1 - 0.9 * holds[None] * masks[:, :, None], axis=1)
    noise = rng.normal(0, 0.02, chance.shape)
    return np.minimum(np.log2(chance) + noise, 0.0)


def by_orders(table: np.ndarray) -> np.ndarray:
    """Shapley values from the definition: every order of joining."""
    players = len(table).bit_length() - 1
    total, count = np.zeros((players, table.shape[1])), 0
    for order in permutations(range(players)):
        mask = 0
        for i in order:
            total[i] += table[mask | 1 << i] - table[mask]
            mask |= 1 << i
        count += 1
    return total / count


def misallocated(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the pay that goes to the wrong player, when positive sums are paid."""
    paid, due = (bits.sum(axis=1).clip(min=0) for bits in (found, true))
    return float(np.abs(paid / paid.sum() - due / due.sum()).sum() / 2)


class Game:
    """A table that counts what is asked of it."""

    def __init__(self, table: np.ndarray) -> None:
        self.table, self.asked = table, []

    def __call__(self, masks):
        self.asked += masks
        return self.table[list(masks)]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), players=st.integers(2, 7), passes=st.integers(2, 60))
def test_values_conserve_at_every_token_and_the_budget_is_kept(seed: int, players: int, passes: int) -> None:
    """Whatever the budget, players sum to what everybody adds, and no more coalitions are scored than allowed."""
    game = Game(table_of(seed, players))

    found = sample(game, players, passes, seed=0)

    assert len(set(game.asked)) == len(game.asked) <= passes
    assert np.abs(found.values_pt.sum(axis=0) - (game.table[-1] - game.table[0])).max() < 1e-9
    assert (found.spread >= 0).all()


@pytest.mark.parametrize("players", [3, 5, 6])
def test_with_every_coalition_scored_the_values_are_exact(players: int) -> None:
    """A budget for the whole table leaves no sampling error."""
    game = Game(table_of(3, players))

    found = sample(game, players, 2**players, seed=0)

    assert np.abs(found.values_pt - by_orders(game.table)).max() < 1e-3


def test_games_of_one_and_two_players_at_a_time_are_exact_from_the_ends() -> None:
    """Where only single players and pairs matter, each alone and each missing is all there is to know."""
    rng = np.random.default_rng(5)
    players = 6
    masks = np.arange(1 << players)[:, None] >> np.arange(players) & 1
    single, pair = rng.normal(size=(players, 4)), np.triu(rng.normal(size=(players, players)), 1)
    table = masks @ single + np.einsum("mi,ij,mj->m", masks, pair, masks)[:, None] - 60.0

    found = sample(Game(table), players, 2 * players + 2, seed=0)

    assert np.abs(found.values_pt - by_orders(table)).max() < 0.02


def test_half_the_table_misallocates_little() -> None:
    """32 of 64 passes over thirty made games: at most 1.2 % of the pay on average and 8 % at worst."""
    wrong = [
        misallocated(sample(Game(table), 6, 32, seed=0).values_pt, by_orders(table))
        for table in (table_of(seed, 6) for seed in range(30))
    ]

    assert np.mean(wrong) < 0.012
    assert max(wrong) < 0.08


def test_intervals_hold_what_they_say() -> None:
    """Over many games nearly every true value lies in its 95 % interval, and not because they are wide."""
    inside, wide = [], []
    for seed in range(30):
        table = table_of(seed, 6)
        found = sample(Game(table), 6, 24, seed=0)
        true = by_orders(table).sum(axis=1)
        inside += list(np.abs(found.values_pt.sum(axis=1) - true) <= found.spread)
        wide.append(np.median(found.spread) / true.clip(min=0).sum())

    assert np.mean(inside) > 0.9
    assert np.median(wide) < 0.1


def test_a_budget_too_small_to_see_every_player_says_that_it_knows_nothing() -> None:
    """Players who were never seen alone have intervals that include zero."""
    found = sample(Game(table_of(1, 7)), 7, 6, seed=0)

    unseen = found.values_pt.sum(axis=1)[2:]
    assert (unseen - found.spread[2:] < 0).all()


def test_the_same_seed_gives_the_same_account_and_large_games_are_played() -> None:
    """Fourteen players, where pairs are drawn: deterministic by seed, conserved."""
    table = table_of(2, 14, tokens=2)
    first, again = (sample(Game(table), 14, 64, seed=4).values_pt for _ in range(2))

    assert np.array_equal(first, again)
    assert np.abs(first.sum(axis=0) - (table[-1] - table[0])).max() < 1e-9


def test_it_stops_when_it_is_sure_enough_and_scores_a_prefix_of_the_same_pairs() -> None:
    """A tolerance ends the sampling early, in the same order, and not before the shares are that sure."""
    table = table_of(8, 9)
    whole, early = Game(table), Game(table)
    sample(whole, 9, 256, seed=0)
    found = sample(early, 9, 256, seed=0, tolerance_bits=1.0)

    assert len(early.asked) < len(whole.asked)
    assert whole.asked[: len(early.asked)] == early.asked
    assert found.spread.max() <= 1.0


def test_fewer_than_two_passes_are_refused() -> None:
    """With one prompt nothing can be compared."""
    with pytest.raises(InvalidError) as caught:
        sample(Game(table_of(0, 3)), 3, 1, seed=0)
    assert caught.value.code == "budget_too_small"


def test_the_rough_model_knows_that_a_copy_adds_little() -> None:
    """Two sources that each give a token surely are together hardly more than one."""
    nobody, one = np.array([-10.0]), np.array([-0.1])
    table = rough_game(nobody, np.array([-0.01]), np.stack([one, one]), np.stack([one, one]))

    assert table.shape == (4, 1)
    assert table[3, 0] - table[1, 0] < 0.2 < table[1, 0] - table[0, 0]
