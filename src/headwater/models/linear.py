"""Matrix products with fixed weights, in three arithmetics that share one layout.

`FloatLinear` keeps float32 weights: 1e-5 bits from float64 on a whole answer. `CodeLinear` keeps the
stored integer codes and reads its input as integers with a scale per 32: of 16 bits, about 1e-3 bits off on
an answer, or of 8 bits, the fastest, for reading prompts only (see `network`). In all of them a row's result
does not depend on the rows beside it.

Weights are packed in panels of 48 outputs; rows come in multiples of `ROW_STEP`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from headwater.models.tiles import BLOCK, LANES, code_tile, float_from_bits, float_tile
from headwater.models.weights import CodedMatrix

Precision = Literal["float32", "int16", "int8"]
Rows = NDArray[np.float32]

PANEL = 3 * LANES  # outputs per panel
ROW_STEP = 8
CODE_MAX = {"int16": 32767.0, "int8": 127.0}  # largest input code
BYTE_SHIFT = 128  # makes weight codes of -127..127 unsigned; taken back with the minimum
PEAK_MIN = np.float32(1e-30)  # a block below this is zero: its inverse would not be finite

_float_8x3 = float_tile(8, 3)
_pair_4x3, _quad_4x3 = code_tile(4, 3, 2), code_tile(4, 3, 4)


class Linear(Protocol):
    """``y = x Wᵀ`` for fixed W."""

    outputs: int  # rows of W, padded to whole panels

    def __call__(self, x: Rows, y: Rows) -> None:
        """Read (rows, columns) `x`, write (rows, outputs) `y`; both C-contiguous, rows a multiple of 8."""
        ...


def make_linear(matrix: CodedMatrix, precision: Precision) -> Linear:
    """Pack a matrix for the arithmetic asked for."""
    return FloatLinear(matrix.dense()) if precision == "float32" else CodeLinear(matrix, precision)


class FloatLinear:
    """Products in float32, one fused multiply-add at a time in order of the columns."""

    def __init__(self, dense: Rows) -> None:
        """`dense`: (outputs, columns) float32."""
        dense = _padded(dense)
        self.outputs, columns = dense.shape
        self._panels = np.ascontiguousarray(dense.reshape(-1, PANEL, columns).transpose(0, 2, 1))

    def __call__(self, x: Rows, y: Rows) -> None:
        """Products of all rows."""
        _check(x, y, self.outputs)
        _float_rows(x, self._panels, y)


class CodeLinear:
    """Products of integer input codes and stored weight codes, summed exactly per block of 32."""

    def __init__(self, matrix: CodedMatrix, precision: Literal["int16", "int8"]) -> None:
        codes, minimum = matrix.codes, matrix.minimum
        if precision == "int8" and int(codes.min()) < 0:
            codes, minimum = codes + np.int16(BYTE_SHIFT), minimum - np.float32(BYTE_SHIFT) * matrix.scale
        codes = _padded(codes)
        self.outputs, columns = codes.shape
        self._code = np.dtype(precision)
        self._largest = np.float32(CODE_MAX[precision])
        stored = codes if precision == "int16" else codes.astype(np.uint8)
        group = 4 // stored.itemsize
        grouped = stored.reshape(-1, PANEL, columns // group, group).transpose(0, 2, 1, 3)
        self._groups = np.ascontiguousarray(grouped).view(np.int32)[..., 0]
        self._scale, self._minimum = (
            np.ascontiguousarray(_padded(part).reshape(-1, PANEL, columns // BLOCK).transpose(0, 2, 1))
            for part in (matrix.scale, minimum)
        )

    def __call__(self, x: Rows, y: Rows) -> None:
        """Products of all rows."""
        _check(x, y, self.outputs)
        rows, columns = x.shape
        codes = np.empty((rows, columns), dtype=self._code)
        scale, weighted_sum = (np.empty((rows, columns // BLOCK), dtype=np.float32) for _ in range(2))
        _encode(x.view(np.int32), x, self._largest, codes, scale, weighted_sum)
        _code_rows(codes, scale, weighted_sum, self._groups, self._scale, self._minimum, y)


class AdaptedLinear:
    """A product, and low-rank additions to some of its outputs in float32: ``y = x Wᵀ``, ``y[at:] += s x Aᵀ Bᵀ``."""

    def __init__(self, base: Linear, additions: Sequence[tuple[int, Rows, Rows, float]]) -> None:
        """`additions`: first output, A (rank, columns), B (outputs of the part, rank), and their scale."""
        self.outputs, self._base = base.outputs, base
        made = []
        for at, a, b, scale in additions:
            inner = FloatLinear(np.ascontiguousarray(a, dtype=np.float32))
            wide = np.zeros((len(b), inner.outputs), dtype=np.float32)
            wide[:, : b.shape[1]] = b * np.float32(scale)
            made.append((at, len(b), inner, FloatLinear(wide)))
        self._additions = tuple(made)

    def __call__(self, x: Rows, y: Rows) -> None:
        """Products of all rows."""
        self._base(x, y)
        for at, size, inner, outer in self._additions:
            middle = np.empty((len(x), inner.outputs), dtype=np.float32)
            added = np.empty((len(x), outer.outputs), dtype=np.float32)
            inner(x, middle)
            outer(middle, added)
            y[:, at : at + size] += added[:, :size]


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
def _code_rows(codes, scale, weighted_sum, groups, w_scale, w_minimum, y):  # type: ignore[no-untyped-def]
    rows, columns = codes.shape
    blocks, outputs = columns // BLOCK, y.shape[1]
    size, words = codes.itemsize, columns * codes.itemsize // 4
    x_at, xs_at, xm_at = codes.ctypes.data, scale.ctypes.data, weighted_sum.ctypes.data
    w_at, ws_at, wm_at, y_at = groups.ctypes.data, w_scale.ctypes.data, w_minimum.ctypes.data, y.ctypes.data
    for panel in range(groups.shape[0]):
        for row in range(0, rows, 4):
            place = (
                x_at + size * row * columns,
                words,
                xs_at + 4 * row * blocks,
                xm_at + 4 * row * blocks,
                blocks,
                w_at + 4 * panel * words * PANEL,
                ws_at + 4 * panel * blocks * PANEL,
                wm_at + 4 * panel * blocks * PANEL,
                blocks,
                y_at + 4 * (row * outputs + panel * PANEL),
                outputs,
            )
            if size == 2:
                _pair_4x3(*place)
            else:
                _quad_4x3(*place)


@njit(cache=True, nogil=True, error_model="numpy")
def _encode(bits, x, largest_code, codes, scale, weighted_sum):  # type: ignore[no-untyped-def]
    """Round each block of 32 to codes; `bits` is `x` seen as integers, whose order is that of the magnitudes."""
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
            inverse = largest_code / peak
            total = np.int32(0)
            for column in range(start, start + BLOCK):
                code = np.int32(np.floor(x[row, column] * inverse + np.float32(0.5)))
                codes[row, column] = code
                total += code
            step = peak / largest_code
            scale[row, block] = step
            weighted_sum[row, block] = step * np.float32(total)
