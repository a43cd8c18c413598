"""Draws depend on nothing but their counter, and follow the laws they are named after."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headwater.economy import draws

N = 20_000


def _many(function, *arguments):
    key = draws.key_of(7, 3, draws.CALL)
    return np.array([function(key, i, *arguments) for i in range(N)])


def test_uniforms_are_even_and_independent_of_their_neighbours():
    """Mean, variance, serial correlation and the fullness of 64 cells are those of independent uniforms."""
    u = _many(draws.uniform)
    cells = np.bincount((u * 64).astype(int), minlength=64)

    assert 0 < u.min() < u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.01)
    assert u.var() == pytest.approx(1 / 12, abs=0.003)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
    assert ((cells - N / 64) ** 2 / (N / 64)).sum() < 110  # chi-square, 63 degrees, p about 0.0002


def test_streams_of_other_days_seeds_and_purposes_are_unrelated():
    """Changing one part of a key changes about half of the bits of every draw."""
    base = [int(draws.bits(draws.key_of(1, 1, 1), i)) for i in range(200)]
    for other in ((2, 1, 1), (1, 2, 1), (1, 1, 2)):
        changed = [int(draws.bits(draws.key_of(*other), i)) for i in range(200)]
        flips = np.mean([(a ^ b).bit_count() for a, b in zip(base, changed, strict=True)])
        assert 30 < flips < 34


def test_exponential_draws_are_minus_the_logarithm():
    """The arithmetic logarithm agrees with the library's to 1e-8 over its whole range."""
    words = [np.uint64(w) for w in (0, 1, 2**11, 2**40, 2**63 - 1, 2**63, 2**64 - 1, *range(1, 2**64, 2**58 - 27))]
    for word in words:
        expected = -math.log(((int(word) >> 11) + 0.5) * 2.0**-53)
        assert draws.exponential(word) == pytest.approx(expected, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("mean", [0.3, 4.0, 60.0])
def test_poisson_draws_have_the_mean_and_variance_of_their_rate(mean):
    """Below 40 by summation, above by the normal: both moments are the rate."""
    key = draws.key_of(1, 1, 1)
    counts = np.array([draws.poisson(draws.uniform(key, i), mean) for i in range(N)])

    assert counts.mean() == pytest.approx(mean, rel=0.03)
    assert counts.var() == pytest.approx(mean, rel=0.06)


def test_weighted_draws_follow_their_weights():
    """A table draws in proportion, and never what weighs nothing."""
    weights = np.array([50.0, 20.0, 0.0, 15.0, 10.0, 5.0, 0.0])
    table = np.zeros(7, draws.ALIAS)
    draws.alias_table(weights, table)
    key = draws.key_of(5, 5, 5)

    drawn = [draws.pick(np.uint64(draws.bits(key, i)), table) for i in range(N)]

    counts = np.bincount(drawn, minlength=7)
    assert counts[2] == counts[6] == 0
    assert counts / N == pytest.approx(weights / weights.sum(), abs=0.012)


def test_a_shuffle_is_an_order_of_everything():
    """Nothing is lost or doubled, and the order depends on the key."""
    first, second = draws.shuffle(draws.key_of(1, 0, 3), 500), draws.shuffle(draws.key_of(2, 0, 3), 500)

    assert sorted(first) == list(range(500))
    assert (first != second).any()
