"""Everything in a layer that is not a matrix product: norms, rotary positions, the gate, log-probabilities.

Single-threaded loops that release the lock. Sums run in a fixed order and the exponential is our own
polynomial, so a row gives the same bits beside any other rows and under any vector width.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from headwater.models.tiles import LANES, float_from_bits

LOG2_E = np.float32(1.4426950408889634)
HALF, ONE, EXPONENT_MAX = np.float32(0.5), np.float32(1.0), np.float32(126.0)
# Taylor coefficients of 2**f for |f| <= 1/2: ln(2)**n / n!, last term below 2e-9
C1, C2, C3, C4, C5, C6, C7 = (
    np.float32(value)
    for value in (
        0.6931471805599453,
        0.2402265069591007,
        0.05550410866482158,
        0.009618129107628477,
        0.0013333558146428443,
        0.0001540353039338161,
        1.525273380405984e-05,
    )
)


@njit(cache=True, inline="always", error_model="numpy")
def exp2(x):  # type: ignore[no-untyped-def]
    """2**x in float32, x held within +-126; relative error below 2e-7."""
    x = min(max(x, -EXPONENT_MAX), EXPONENT_MAX)
    whole = np.floor(x + HALF)
    f = x - whole
    p = C6 + f * C7
    p = C5 + f * p
    p = C4 + f * p
    p = C3 + f * p
    p = C2 + f * p
    p = C1 + f * p
    p = ONE + f * p
    return p * float_from_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(cache=True, nogil=True, error_model="numpy")
def rms_norm(x, gain, epsilon, out):  # type: ignore[no-untyped-def]
    """out = x / sqrt(mean(x**2) + epsilon) * gain, row by row; the width is a multiple of 16."""
    rows, width = x.shape
    lanes = np.empty(LANES, dtype=np.float32)
    for row in range(rows):
        lanes[:] = 0.0
        for start in range(0, width, LANES):
            for lane in range(LANES):
                lanes[lane] += x[row, start + lane] * x[row, start + lane]
        total = np.float32(0.0)
        for lane in range(LANES):
            total += lanes[lane]
        factor = ONE / np.sqrt(total / np.float32(width) + epsilon)
        for column in range(width):
            out[row, column] = x[row, column] * factor * gain[column]


@njit(cache=True, nogil=True)
def rotate(projected, first, last, positions, cosine, sine):  # type: ignore[no-untyped-def]
    """Turn neighbouring column pairs of columns first..last by the angle of the row's position, in place.

    `cosine`, `sine`: (positions, head_width / 2); columns are whole heads side by side.
    """
    half = cosine.shape[1]
    for row in range(len(positions)):
        at = positions[row]
        for head in range(first, last, 2 * half):
            for i in range(half):
                a, b = projected[row, head + 2 * i], projected[row, head + 2 * i + 1]
                projected[row, head + 2 * i] = a * cosine[at, i] - b * sine[at, i]
                projected[row, head + 2 * i + 1] = a * sine[at, i] + b * cosine[at, i]


@njit(cache=True, nogil=True, error_model="numpy")
def gate(projected, hidden, out):  # type: ignore[no-untyped-def]
    """out = silu(gate) * up, from the stacked projection (rows, >= 2 * hidden): gate first, then up."""
    for row in range(projected.shape[0]):
        for column in range(hidden):
            g = projected[row, column]
            out[row, column] = g / (ONE + exp2(-g * LOG2_E)) * projected[row, hidden + column]


@njit(cache=True, nogil=True, error_model="numpy")
def log2_probabilities(logits, vocabulary, targets, out):  # type: ignore[no-untyped-def]
    """out[r] = log2 softmax(logits[r, :vocabulary])[targets[r]]; sums in float64 over 16 lanes."""
    lanes = np.empty(LANES, dtype=np.float64)
    whole = vocabulary - vocabulary % LANES
    for row in range(len(targets)):
        peak = logits[row, 0]
        for column in range(vocabulary):
            peak = max(peak, logits[row, column])
        lanes[:] = 0.0
        for start in range(0, whole, LANES):
            for lane in range(LANES):
                lanes[lane] += np.float64(exp2((logits[row, start + lane] - peak) * LOG2_E))
        total = 0.0
        for lane in range(LANES):
            total += lanes[lane]
        for column in range(whole, vocabulary):
            total += np.float64(exp2((logits[row, column] - peak) * LOG2_E))
        out[row] = np.float64(logits[row, targets[row]] - peak) * 1.4426950408889634 - np.log2(total)


def rotary_tables(positions: int, head_width: int, base: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of the rotary angles: (positions, head_width / 2) each."""
    turns = base ** (-np.arange(0, head_width, 2) / head_width)
    angle = np.arange(positions)[:, None] * turns
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
