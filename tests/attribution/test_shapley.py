from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.shapley import coalitions, owen_values


def by_orders(worth, unions):
    """Average marginal contribution over every order in which owners, and parts inside owners, can join."""
    players = sum(map(len, unions))
    total, orders = np.zeros((players, worth(frozenset()).shape[0])), 0
    for order_of_unions in permutations(range(len(unions))):
        inner = [list(permutations(unions[u])) for u in order_of_unions]
        for choice in np.ndindex(*[len(orders_) for orders_ in inner]):
            present = frozenset()
            for orders_, pick in zip(inner, choice, strict=True):
                for player in orders_[pick]:
                    total[player] += worth(present | {player}) - worth(present)
                    present = present | {player}
            orders += 1
    return total / orders


def random_game(seed, tokens=3):
    def worth(coalition):
        return np.random.default_rng([seed, *sorted(coalition), 99]).normal(size=tokens)

    return worth


PARTITIONS = [
    [[0], [1], [2], [3]],
    [[0, 1], [2], [3, 4]],
    [[0, 3], [1, 2]],
    [[0, 1, 2, 3]],
    [[0]],
]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), unions=st.sampled_from(PARTITIONS))
def test_owen_values_equal_the_average_over_every_order_of_joining(seed, unions):
    """The formula agrees with the definition, order by order."""
    game = random_game(seed)
    worth = {c: game(c) for c in coalitions(unions)}

    np.testing.assert_allclose(owen_values(worth, unions), by_orders(game, unions), atol=1e-12)


@given(seed=st.integers(0, 2**32), unions=st.sampled_from(PARTITIONS))
def test_values_sum_to_what_everybody_adds_at_each_token(seed, unions):
    """Bits are conserved per token."""
    game = random_game(seed)
    worth = {c: game(c) for c in coalitions(unions)}
    everybody = frozenset(p for union in unions for p in union)

    np.testing.assert_allclose(
        owen_values(worth, unions).sum(axis=0), worth[everybody] - worth[frozenset()], atol=1e-12
    )


@pytest.mark.parametrize("players", range(7))
def test_players_of_different_owners_need_all_subsets_and_no_more(players):
    """Exact Shapley scores each subset once."""
    assert len(coalitions([[p] for p in range(players)])) == 2**players


def test_an_owner_of_many_parts_needs_fewer_coalitions_than_all_subsets():
    """Half-present owners are only met one at a time."""
    assert len(coalitions([[0, 1, 2], [3, 4, 5]])) == 28 < 2**6
