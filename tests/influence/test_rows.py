from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.influence.rows import RowLayout
from headwater.core.errors import InvalidError


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_a_value_of_eight_bits_is_off_by_half_a_step_at_most(widths, seed):
    """The error is at most half of the largest value of its row and layer over 127."""
    layout = RowLayout(tuple(widths), 8)
    values = np.random.default_rng(seed).normal(size=(5, layout.width)).astype(np.float32)
    values[0] = 0

    back = layout.decode(layout.encode(values))

    for low, high in pairwise(layout.starts):
        step = np.abs(values[:, low:high]).max(1, keepdims=True) / 127
        assert (np.abs(back[:, low:high] - values[:, low:high]) <= step * 0.501).all()


@pytest.mark.parametrize(("bits", "lost"), [(2, 0.1175), (4, 0.0115)])
@pytest.mark.parametrize("width", [4003, 4000])
def test_coarse_codes_lose_what_theory_says(bits, lost, width):
    """Of normal values they lose as much as the best quantiser does, and products are unbiased."""
    layout = RowLayout((width, 501), bits)
    values = np.random.default_rng(1).normal(size=(20, layout.width)).astype(np.float32)
    values[:, width:] *= 50

    back = layout.decode(layout.encode(values))

    assert layout.record.itemsize == layout.row_bytes
    for part in (slice(0, width), slice(width, None)):
        own = (back[:, part] * values[:, part]).sum(1) / (values[:, part] ** 2).sum(1)
        np.testing.assert_allclose(own, 1.0, rtol=1e-4)
        shrunk = back[:, part] * (1 - lost)  # the least-squares scale, for comparing with the table
        error = ((shrunk - values[:, part]) ** 2).mean() / (values[:, part] ** 2).mean()
        assert error == pytest.approx(lost, rel=0.1)


def test_floats_come_back_as_they_were():
    """32 bits lose nothing, and a record takes as many bytes as it says."""
    layout = RowLayout((3, 2), 32)
    values = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)

    packed = layout.encode(values)

    assert packed.nbytes == 4 * layout.row_bytes
    np.testing.assert_array_equal(layout.decode(packed), values)


def test_other_bits_are_refused():
    """Only widths that are written are read."""
    with pytest.raises(InvalidError) as caught:
        RowLayout((3,), 5)

    assert caught.value.code == "bits_unknown"
