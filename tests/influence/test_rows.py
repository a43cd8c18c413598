from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.attribution.influence.rows import RowLayout
from headwater.core.errors import InvalidError


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4), bits=st.sampled_from([4, 8]), seed=st.integers(0, 99)
)
def test_a_value_is_off_by_half_a_step_at_most(widths, bits, seed):
    """The error is at most half of the largest value of its row and layer over the largest code."""
    layout = RowLayout(tuple(widths), bits)
    values = np.random.default_rng(seed).normal(size=(5, layout.width)).astype(np.float32)
    values[0] = 0

    back = layout.decode(layout.encode(values))

    for low, high in zip(layout.starts, layout.starts[1:], strict=False):
        step = np.abs(values[:, low:high]).max(1, keepdims=True) / (127 if bits == 8 else 7)
        assert (np.abs(back[:, low:high] - values[:, low:high]) <= step * 0.501).all()


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
