"""Matrix products with fixed weights, in two arithmetics that share one layout.

`FloatLinear` keeps float32 weights: 1e-5 bits from float64 on a whole answer. `CodeLinear` keeps the
stored integer codes, reads its input as 16-bit integers with a scale per 32, and is nearly twice as
fast: about 1e-3 bits. In both a row's result does not depend on the rows beside it.

Weights are packed in panels of 48 outputs; rows come in multiples of `ROW_STEP`.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from headwater.models.tiles import BLOCK, LANES, PAIRS, code_tile, float_from_bits, float_tile
from headwater.models.weights import CodedMatrix

Precision = Literal["float32", "int16"]
Rows = NDArray[np.float32]

PANEL = 3 * LANES  # outputs per panel
ROW_STEP = 8
CODE_MAX = 32767.0  # largest 16-bit input code
PEAK_MIN = np.float32(1e-30)  # a block below this is zero: its inverse would not be finite

_float_8x3 = float_tile(8, 3)
_code_4x3 = code_tile(4, 3)


class Linear(Protocol):
    """``y = x Wᵀ`` for fixed W."""

    outputs: int  # rows of W, padded to whole panels

    def __call__(self, x: Rows, y: Rows) -> None:
        """Read (rows, columns) `x`, write (rows, outputs) `y`; both C-contiguous, rows a multiple of 8."""
        ...


def make_linear(matrix: CodedMatrix, precision: Precision) -> Linear:
    """Pack a matrix for the arithmetic asked for."""
    return FloatLinear(matrix) if precision == "float32" else CodeLinear(matrix)


class FloatLinear:
    """Products in float32, one fused multiply-add at a time in order of the columns."""

    def __init__(self, matrix: CodedMatrix) -> None:
        dense = _padded(matrix.dense())
        self.outputs, columns = dense.shape
        self._panels = np.ascontiguousarray(dense.reshape(-1, PANEL, columns).transpose(0, 2, 1))

    def __call__(self, x: Rows, y: Rows) -> None:
        """Products of all rows."""
        _check(x, y, self.outputs)
        _float_rows(x, self._panels, y)


class CodeLinear:
    """Products of 16-bit input codes and stored weight codes, summed exactly per block of 32."""

    def __init__(self, matrix: CodedMatrix) -> None:
        codes = _padded(matrix.codes)
        self.outputs, columns = codes.shape
        pairs = codes.reshape(-1, PANEL, columns // 2, 2).transpose(0, 2, 1, 3)
        self._pairs = np.ascontiguousarray(pairs).view(np.int32)[..., 0]
        self._scale, self._minimum = (
            np.ascontiguousarray(_padded(part).reshape(-1, PANEL, columns // BLOCK).transpose(0, 2, 1))
            for part in (matrix.scale, matrix.minimum)
        )

    def __call__(self, x: Rows, y: Rows) -> None:
        """Products of all rows."""
        _check(x, y, self.outputs)
        rows, columns = x.shape
        codes = np.empty((rows, columns), dtype=np.int16)
        scale, weighted_sum = (np.empty((rows, columns // BLOCK), dtype=np.float32) for _ in range(2))
        _encode(x.view(np.int32), x, codes, scale, weighted_sum)
        _code_rows(codes, scale, weighted_sum, self._pairs, self._scale, self._minimum, y)


def _check(x: Rows, y: Rows, outputs: int) -> None:
    """The tiles read and write by address: what they are given must be as large as they take it to be."""
    assert x.flags.c_contiguous
    assert y.flags.c_contiguous
    assert len(x) % ROW_STEP == 0
    assert y.shape == (len(x), outputs)


def _padded(matrix: NDArray[Any]) -> NDArray[Any]:
    """Rows of zeros below, up to whole panels."""
    missing = -len(matrix) % PANEL
    return np.pad(matrix, ((0, missing), (0, 0))) if missing else matrix


@njit(cache=True, nogil=True)
def _float_rows(x, panels, y):  # type: ignore[no-untyped-def]
    rows, columns = x.shape
    outputs = y.shape[1]
    x_at, w_at, y_at = x.ctypes.data, panels.ctypes.data, y.ctypes.data
    for panel in range(panels.shape[0]):
        for row in range(0, rows, 8):
            _float_8x3(
                x_at + 4 * row * columns,
                columns,
                1,
                w_at + 4 * panel * columns * PANEL,
                PANEL,
                columns,
                y_at + 4 * (row * outputs + panel * PANEL),
                outputs,
                0,
            )


@njit(cache=True, nogil=True)
def _code_rows(codes, scale, weighted_sum, pairs, w_scale, w_minimum, y):  # type: ignore[no-untyped-def]
    rows, columns = codes.shape
    blocks, outputs = columns // BLOCK, y.shape[1]
    x_at, xs_at, xm_at = codes.ctypes.data, scale.ctypes.data, weighted_sum.ctypes.data
    w_at, ws_at, wm_at, y_at = pairs.ctypes.data, w_scale.ctypes.data, w_minimum.ctypes.data, y.ctypes.data
    for panel in range(pairs.shape[0]):
        for row in range(0, rows, 4):
            _code_4x3(
                x_at + 2 * row * columns,
                blocks * PAIRS,
                xs_at + 4 * row * blocks,
                xm_at + 4 * row * blocks,
                blocks,
                w_at + 4 * panel * blocks * PAIRS * PANEL,
                ws_at + 4 * panel * blocks * PANEL,
                wm_at + 4 * panel * blocks * PANEL,
                blocks,
                y_at + 4 * (row * outputs + panel * PANEL),
                outputs,
            )


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(bits, x, codes, scale, weighted_sum):  # type: ignore[no-untyped-def]
    """Round each block of 32 to 16-bit codes; `bits` is `x` seen as integers, whose order is that of the magnitudes."""
    for row in range(x.shape[0]):
        for block in range(x.shape[1] // BLOCK):
            start = block * BLOCK
            largest = np.int32(0)
            for column in range(start, start + BLOCK):
                largest = max(largest, bits[row, column] & np.int32(0x7FFFFFFF))
            peak = float_from_bits(largest)
            if peak < PEAK_MIN:
                codes[row, start : start + BLOCK] = 0
                scale[row, block] = 0.0
                weighted_sum[row, block] = 0.0
                continue
            inverse = np.float32(CODE_MAX) / peak
            total = np.int32(0)
            for column in range(start, start + BLOCK):
                code = np.int32(np.floor(x[row, column] * inverse + np.float32(0.5)))
                codes[row, column] = code
                total += code
            step = peak / np.float32(CODE_MAX)
            scale[row, block] = step
            weighted_sum[row, block] = step * np.float32(total)
