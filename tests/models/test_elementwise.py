"""Norm, rotation, gate and log-probabilities against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from headwater.models.elementwise import exp2, gate, log2_probabilities, rms_norm, rotary_tables, rotate


@njit
def exp2_all(x, out):  # type: ignore[no-untyped-def]
    """The exponential over an array."""
    for i in range(len(x)):
        out[i] = exp2(x[i])


def test_exponential_is_accurate_over_its_range() -> None:
    """Relative error stays below 2e-7 from 2**-126 to 2**126, and beyond it the value is held."""
    x = np.linspace(-126, 126, 200_001).astype(np.float32)
    out = np.empty_like(x)
    exp2_all(x, out)
    exact = np.exp2(x.astype(np.float64))
    ends = np.empty(2, dtype=np.float32)
    exp2_all(np.array([-np.inf, 500.0], dtype=np.float32), ends)

    assert np.abs(out / exact - 1).max() < 2e-7
    assert ends.tolist() == [2.0**-126, 2.0**126]


def test_rms_norm() -> None:
    """Rows are scaled to unit mean square and multiplied by the gain."""
    rng = np.random.default_rng(0)
    x, gain = rng.normal(size=(5, 64)).astype(np.float32) * 50, rng.normal(size=64).astype(np.float32)
    out = np.empty_like(x)
    rms_norm(x, gain, np.float32(1e-5), out)
    wide = x.astype(np.float64)

    assert np.allclose(out, wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + 1e-5) * gain, rtol=1e-6, atol=1e-7)


def test_rotation_turns_pairs_and_leaves_other_columns() -> None:
    """Each pair turns by its own angle; the length of a pair and the columns outside are kept."""
    x = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    before = x.astype(np.float64)
    cosine, sine = rotary_tables(100, 8, 10_000.0)
    rotate(x, 8, 24, np.array([0, 1, 50, 99]), cosine, sine)
    angle = np.array([0, 1, 50, 99])[:, None] * 10_000.0 ** (-np.arange(4) / 4)
    pairs = before[:, 8:24].reshape(4, 2, 4, 2)
    expected = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]

    assert np.allclose(x[:, 8:24].reshape(4, 2, 4, 2), np.stack([expected.real, expected.imag], axis=-1), atol=1e-5)
    assert np.array_equal(x[:, :8], before[:, :8])
    assert np.array_equal(x[:, 24:], before[:, 24:])


def test_gate() -> None:
    """Silu of the first half times the second half."""
    x = (np.random.default_rng(0).normal(size=(3, 70)) * 20).astype(np.float32)
    out = np.empty((3, 32), dtype=np.float32)
    gate(x, 32, out)
    g, up = x[:, :32].astype(np.float64), x[:, 32:64].astype(np.float64)

    assert np.allclose(out, g / (1 + np.exp(-g)) * up, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [1, 16, 37, 300])
def test_log_probabilities_sum_to_one_and_ignore_padding(vocabulary: int) -> None:
    """Two to the results of all targets sums to one; columns past the vocabulary play no part."""
    logits = np.full((vocabulary, 304), 1e9, dtype=np.float32)
    logits[:, :vocabulary] = np.random.default_rng(0).normal(size=vocabulary) * 30
    out = np.empty(vocabulary)
    log2_probabilities(logits, vocabulary, np.arange(vocabulary), out)

    assert abs(np.exp2(out).sum() - 1) < 1e-6
