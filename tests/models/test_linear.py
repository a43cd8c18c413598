"""Matrix products in both arithmetics, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from headwater.models.linear import CodeLinear, FloatLinear, Precision, make_linear
from headwater.models.weights import CodedMatrix, tiny_weights


def matrix(rows: int, columns: int, seed: int) -> CodedMatrix:
    """Random codes, scales and minima that are not tied to each other."""
    rng = np.random.default_rng(seed)
    blocks = (rows, columns // 32)
    return CodedMatrix(
        rng.integers(-127, 128, (rows, columns)).astype(np.int16),
        rng.uniform(0.001, 0.01, blocks).astype(np.float32),
        rng.normal(0, 0.1, blocks).astype(np.float32),
    )


def product(precision: Precision, coded: CodedMatrix, x: np.ndarray) -> np.ndarray:
    """The product, cut to the matrix's own outputs."""
    linear = make_linear(coded, precision)
    y = np.empty((len(x), linear.outputs), dtype=np.float32)
    linear(x, y)
    return y[:, : len(coded.codes)]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 3e-6), ("int16", 1e-4), ("int8", 2e-2)])
@pytest.mark.parametrize(("rows", "outputs", "columns"), [(8, 48, 32), (16, 50, 64), (40, 145, 576), (8, 1, 1536)])
def test_products_match_float64(precision: Precision, tolerance: float, rows: int, outputs: int, columns: int) -> None:
    """Both arithmetics agree with float64 to their own precision, also where outputs do not fill a panel."""
    coded = matrix(outputs, columns, seed=outputs)
    x = np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32)
    expected = x.astype(np.float64) @ coded.dense().astype(np.float64).T

    error = np.abs(product(precision, coded, x) - expected).max() / np.abs(expected).max()

    assert error < tolerance


def test_codes_are_summed_exactly() -> None:
    """Integers that the codes can hold lose nothing: the largest codes everywhere, against Python integers."""
    coded = CodedMatrix(
        np.full((48, 32), 127, dtype=np.int16), np.ones((48, 1), dtype=np.float32), np.zeros((48, 1), dtype=np.float32)
    )
    for precision, largest in (("int16", 32767), ("int8", 127)):
        result = product(precision, coded, np.full((8, 32), largest, dtype=np.float32))

        assert result[0, 0] == np.float32(32 * 127 * largest)


@pytest.mark.parametrize("precision", ["float32", "int16", "int8"])
def test_a_row_does_not_depend_on_its_neighbours(precision: Precision) -> None:
    """The same row gives the same bits at every place of every batch."""
    coded = matrix(100, 96, seed=3)
    x = np.random.default_rng(2).normal(size=(64, 96)).astype(np.float32)
    whole = product(precision, coded, x)
    turned = product(precision, coded, np.ascontiguousarray(x[::-1]))[::-1]
    alone = np.concatenate([product(precision, coded, np.repeat(x[row : row + 1], 8, axis=0))[:1] for row in range(64)])

    assert np.array_equal(whole, turned)
    assert np.array_equal(whole, alone)


@pytest.mark.parametrize("value", [0.0, 1e-42, -1e-35])
def test_vanishing_input_gives_finite_output(value: float) -> None:
    """Blocks of zeros and of denormal numbers count as zero instead of dividing by it."""
    result = product("int16", matrix(48, 32, seed=4), np.full((8, 32), value, dtype=np.float32))

    assert np.abs(result).max() < 1e-30


def test_input_that_is_not_finite_shows_in_the_output() -> None:
    """A NaN or an infinity never turns into a plausible number."""
    for value in (np.nan, np.inf, -np.inf):
        x = np.ones((8, 64), dtype=np.float32)
        x[0, 5] = value
        for precision in ("float32", "int16", "int8"):
            result = product(precision, matrix(48, 64, seed=5), x)
            assert not np.isfinite(result[0]).any()
            assert np.isfinite(result[1:]).all()


def test_precision_names_choose_the_arithmetic() -> None:
    """The two names are the two classes."""
    coded = tiny_weights(1).embedding

    assert isinstance(make_linear(coded, "float32"), FloatLinear)
    assert isinstance(make_linear(coded, "int16"), CodeLinear)
