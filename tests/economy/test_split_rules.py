"""Split rules are what they are called, and copies earn what theory says they earn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.shapley import coalitions, owen_values
from headwater.economy import split_rules as rules


def _worth(evidence, content, overlap):
    """v(S), written as the definition says."""

    def v(present):
        best = {}
        for i in present:
            best[content[i]] = max(best.get(content[i], 0.0), evidence[i])
        return (1 - overlap) * sum(best.values()) + overlap * max(best.values(), default=0.0)

    return v


def _score(rule, evidence, holder, content, overlap, copies=True, hidden=True):
    n = len(evidence)
    scores, order = np.zeros(n), np.zeros(n, np.int64)
    left = rules.score_call(
        rule, n, np.array(holder, np.int64), np.array(content, np.int64), np.array(evidence, float), overlap, copies,
        hidden, scores, order,
    )  # fmt: skip
    return scores, left


_games = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.one_of(st.just(3.0), st.floats(0, 100)), min_size=n, max_size=n),
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
        st.sampled_from([0.0, 0.25, 1.0]),
    )
)


@settings(max_examples=80, deadline=None)
@given(_games)
def test_shapley_is_the_products_own_value_of_the_game(game):
    """With every source a player, the closed form equals exact Shapley values from a table of coalitions."""
    evidence, content, overlap = game
    v = _worth(evidence, content, overlap)
    unions = [[i] for i in range(len(evidence))]
    table = {c: np.array([v(c)]) for c in coalitions(unions)}

    scores, _ = _score(rules.SHAPLEY, evidence, range(len(evidence)), content, overlap)

    assert scores == pytest.approx(owen_values(table, unions)[:, 0], abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(_games)
def test_merged_copies_earn_together_what_their_union_is_worth(game):
    """De-duplicated Shapley gives each cluster what Owen's value gives that union of players."""
    evidence, cluster, overlap = game
    # Copies say the same, so they have one evidence.
    evidence = [evidence[cluster.index(c)] for c in cluster]
    unions = [[i for i, c in enumerate(cluster) if c == name] for name in dict.fromkeys(cluster)]
    v = _worth(evidence, cluster, overlap)
    values = owen_values({c: np.array([v(c)]) for c in coalitions(unions)}, unions)[:, 0]

    scores, _ = _score(rules.DEDUP_SHAPLEY, evidence, cluster, cluster, overlap, hidden=False)

    for union in unions:
        assert scores[union].sum() == pytest.approx(values[union].sum(), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(_games)
def test_banzhaf_is_the_mean_marginal_value_and_leaves_the_rest(game):
    """Each source gets its mean marginal worth over all subsets of the others; the rest of v is left over."""
    evidence, content, overlap = game
    n, v = len(evidence), _worth(evidence, content, overlap)
    expected = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        subsets = [s for k in range(n) for s in combinations(others, k)]
        expected.append(sum(v((*s, i)) - v(s) for s in subsets) / len(subsets))

    scores, left = _score(rules.BANZHAF, evidence, range(n), content, overlap)

    assert scores == pytest.approx(expected, abs=1e-9)
    assert left == pytest.approx(max(0.0, v(range(n)) - sum(expected)), abs=1e-9)


@pytest.mark.parametrize("copies", [1, 2, 3, 6, 8])
def test_copies_earn_nothing_more_only_where_they_are_merged(copies):
    """k copies of one source beside one rival: merged they earn as one, under Banzhaf k 2^-(k-1) of it."""
    evidence, same = [4.0] * copies + [4.0], [0] * copies + [1]
    alone = range(copies + 1)

    merged, _ = _score(rules.DEDUP_SHAPLEY, evidence, same, same, 0.0, hidden=False)
    banzhaf, _ = _score(rules.BANZHAF, evidence, alone, same, 0.0)
    counted, _ = _score(rules.PROPORTIONAL, evidence, alone, same, 0.0)

    assert merged[:copies].sum() == pytest.approx(4.0)
    assert banzhaf[:copies].sum() == pytest.approx(4.0 * copies * 2.0 ** (1 - copies))
    assert counted[:copies].sum() == pytest.approx(4.0 * copies)


def test_winner_takes_all_and_equal_counts_heads():
    """The two plainest rules do what they say."""
    winner, _ = _score(rules.WINNER, [1.0, 5.0, 2.0], [0, 1, 2], [0, 1, 2], 0.0)
    equal, _ = _score(rules.EQUAL, [1.0, 5.0, 2.0], [0, 1, 2], [0, 1, 2], 0.0)

    assert winner.tolist() == [0.0, 5.0, 0.0]
    assert equal.tolist() == [1.0, 1.0, 1.0]
