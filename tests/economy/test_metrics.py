"""Measures of inequality agree with their definitions and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.economy import metrics

_amounts = st.lists(st.integers(0, 10**6), min_size=1, max_size=40).filter(any)


@given(_amounts)
def test_gini_is_half_the_mean_difference(amounts):
    """The sorted formula equals the mean absolute difference of all pairs over twice the mean."""
    values = np.array(amounts, float)
    expected = np.abs(values[:, None] - values[None, :]).mean() / (2 * values.mean())

    assert metrics.gini(values) == pytest.approx(expected, abs=1e-9)


@given(st.lists(_amounts, min_size=1, max_size=5))
def test_theil_falls_apart_exactly(groups):
    """Between and within groups add up to the whole."""
    total, between, within = metrics.theil([np.array(g) for g in groups])

    assert total == pytest.approx(between + within, abs=1e-9)
    assert between >= -1e-9


def test_concentration_of_plain_cases():
    """Equal holders, one holder and nobody give the values one expects."""
    assert metrics.hhi(np.ones(4)) == 0.25
    assert metrics.nakamoto(np.ones(4)) == 3
    assert metrics.nakamoto(np.array([51, 49])) == 1
    assert metrics.nakamoto(np.zeros(3)) == metrics.gini(np.zeros(3)) == metrics.top_share(np.zeros(3), 0.1) == 0
    assert metrics.gini(np.array([0, 0, 0, 8])) == 0.75
    assert metrics.top_share(np.array([1, 2, 3, 4]), 0.5) == pytest.approx(0.7)


def test_a_pareto_sample_approaches_its_closed_forms():
    """Quantile spacing brings Gini and top share near theory, nearer for more people."""
    errors = [abs(metrics.gini(metrics.pareto_quantiles(n, 2.0)) - metrics.pareto_gini(2.0)) for n in (100, 10_000)]

    assert errors[1] < errors[0] < 0.1
    assert metrics.top_share(metrics.pareto_quantiles(10**5, 2.0), 0.01) == pytest.approx(
        metrics.pareto_top_share(2.0, 0.01), abs=0.005
    )


def test_a_lorenz_curve_starts_at_nothing_and_ends_at_everything():
    """It rises from 0 to 1 and stays below the diagonal."""
    population, held = metrics.lorenz(np.array([1, 2, 3, 10]))

    assert (population[0], held[0], population[-1], held[-1]) == (0, 0, 1, 1)
    assert (held <= population + 1e-12).all()
