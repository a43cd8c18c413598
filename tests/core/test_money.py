import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.core.money import NANO, PPB, allocate, format_units, normalise, parse_units

amounts = st.integers(0, 10**30)
weights = st.lists(st.integers(0, 10**18), min_size=1, max_size=40).filter(any)


@given(amount=amounts, weights=weights)
def test_allocation_conserves_and_stays_within_one_unit(amount, weights):
    """Nobody is more than one unit away from their exact share, and nothing is lost."""
    parts, total = allocate(amount, weights), sum(weights)

    assert amount == sum(parts)
    assert all(abs(part * total - amount * weight) < total for part, weight in zip(parts, weights, strict=True))
    assert all(part == 0 for part, weight in zip(parts, weights, strict=True) if weight == 0)


@given(amount=amounts, weights=weights, factor=st.integers(1, 10**9))
def test_allocation_does_not_depend_on_the_scale_of_the_weights(amount, weights, factor):
    """Weights are proportions."""
    assert allocate(amount, weights) == allocate(amount, [weight * factor for weight in weights])


@given(amount=st.integers(0, 10**6), weights=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any))
def test_allocation_is_the_one_closest_to_exact(amount, weights):
    """No transfer of one unit between two people brings both together nearer to their exact shares."""
    parts, total = allocate(amount, weights), sum(weights)
    excess = [part * total - amount * weight for part, weight in zip(parts, weights, strict=True)]

    assert all(a - b <= total for a in excess for b in excess)


@pytest.mark.parametrize(("amount", "shares"), [(-1, [1]), (1, [1, -1]), (1, [0, 0]), (1, [])])
def test_allocation_refuses_what_cannot_be_shared(amount, shares):
    """A negative amount, a negative weight or nobody to pay is an error, never a guess."""
    with pytest.raises(ValueError, match=r"must|least"):
        allocate(amount, shares)


@given(scores=st.lists(st.floats(-1e6, 1e6), max_size=10), residual=st.floats(-1e6, 1e6))
def test_normalised_weights_and_residual_are_a_whole(scores, residual):
    """Weights are never negative, sum with the residual to 10^9, and a negative score weighs nothing."""
    parts, rest = normalise(scores, residual)

    assert sum(parts) + rest == PPB
    assert all(part >= 0 for part in parts)
    assert all(part == 0 for part, score in zip(parts, scores, strict=True) if score <= 0)


@given(scores=st.lists(st.floats(0.01, 1e4), min_size=1, max_size=8))
def test_normalised_weights_follow_the_scores(scores):
    """A weight is its score's proportion to within the fixed-point grid."""
    parts, _ = normalise(scores, 0.0)
    total = math.fsum(scores)

    assert all(abs(part / PPB - score / total) < 1e-4 for part, score in zip(parts, scores, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_normalise_refuses_what_is_not_finite(bad):
    """A score that is not a number never becomes money."""
    with pytest.raises(ValueError, match="finite"):
        normalise([1.0, bad], 0.0)


@given(nano=st.integers(-(10**20), 10**20))
def test_amounts_survive_text(nano):
    """Writing and reading an amount gives the same amount."""
    assert parse_units(format_units(nano)) == nano


def test_amounts_are_never_rounded_silently():
    """Short forms are used only when nothing is cut off."""
    assert format_units(2 * NANO, places=2) == "2.00"
    assert format_units(2 * NANO + 1, places=2) == "2.000000001"


@pytest.mark.parametrize("text", ["", "a", "nan", "inf", "1e-10", "1,5", "9" * 40])
def test_amounts_that_are_not_exact_are_refused(text):
    """An amount that cannot be held exactly is an error with a fix."""
    with pytest.raises(InvalidError) as caught:
        parse_units(text)

    assert caught.value.fix
