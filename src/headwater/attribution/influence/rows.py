"""Rows of numbers as small integers: each row keeps one scale for each layer.

With 8 bits a value is ``code * scale``, ``|code| <= 127``, and the scale reaches the largest value of the row's layer.
4, 2 and 1 bits, two, four and eight numbers to a byte, use the levels that lose least for normal values, and a
scale that keeps products with the row right. 16 bits are half floats and 32 bits the numbers as they are. A query is
never rounded, so what rounding adds to a score falls with the root of the width: many coarse numbers beat few fine
ones. Knows nothing of gradients.

Source of the levels: Max, 1960, "Quantizing for minimum distortion", table I.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.core.errors import InvalidError

Floats = NDArray[np.float32]
BITS = (1, 2, 4, 8, 16, 32)
_KINDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("u1"),
    4: np.dtype("u1"),
    8: np.dtype("i1"),
    16: np.dtype("<f2"),
    32: np.dtype("<f4"),
}
_STEP = np.float32(0.3352)
_LEVELS = {  # of a normal value with standard deviation 1
    1: np.array([-0.7979, 0.7979], dtype=np.float32),
    2: np.array([-1.510, -0.4528, 0.4528, 1.510], dtype=np.float32),
    4: ((np.arange(16) - 7.5) * _STEP).astype(np.float32),
}
ROUNDING = {1: 0.3634, 2: 0.1175, 4: 0.0115, 8: 0.0001, 16: 0.0, 32: 0.0}
"""Mean square lost to rounding, as a part of the mean square of a normal value (8 bits: of usual rows)."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a row is stored: `widths` numbers in each layer, of `bits` bits, then one float32 scale for each layer."""

    widths: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InvalidError(f"rows of {self.bits} bits", code="bits_unknown", fix="use 1, 2, 4, 8, 16 or 32")

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(self.widths)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each layer begins; the last entry is the width."""
        return tuple(int(x) for x in np.cumsum([0, *self.widths]))

    @property
    def code_bytes(self) -> int:
        """Bytes of a row's codes."""
        return (self.width * self.bits + 7) // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of a row with its scales."""
        return self.code_bytes + 4 * len(self.widths)

    @property
    def record(self) -> np.dtype[np.void]:
        """A row as it lies in a shard."""
        kind = _KINDS[self.bits]
        count = self.code_bytes // kind.itemsize
        return np.dtype([("scales", "<f4", (len(self.widths),)), ("codes", kind, (count,))])

    def encode(self, values: Floats) -> NDArray[np.void]:
        """(n, width) numbers as n records."""
        packed = np.zeros(len(values), dtype=self.record)
        if self.bits >= 16:
            packed["scales"] = 1.0
            largest = np.abs(values).max(initial=0.0)
            if self.bits == 16 and largest > 6e4:  # half floats end at 65,504
                raise InvalidError(f"a value of {largest:g} has no half float", code="value_too_large", fix="bits=8")
            packed["codes"] = values
            return packed
        for layer, (low, high) in enumerate(pairwise(self.starts)):
            part = values[:, low:high]
            if self.bits == 8:
                scale = np.abs(part).max(1, initial=0.0) / 127
                packed["scales"][:, layer] = scale
                packed["codes"][:, low:high] = np.rint(part * _inverse(scale)[:, None])
        if self.bits < 8:
            self._encode_coarse(values, packed)
        return packed

    def _encode_coarse(self, values: Floats, packed: NDArray[np.void]) -> None:
        levels, each = _LEVELS[self.bits], 8 // self.bits
        codes = np.zeros((len(values), self.code_bytes * each), dtype=np.uint8)
        for layer, (low, high) in enumerate(pairwise(self.starts)):
            part = values[:, low:high]
            scale = np.sqrt(np.einsum("nk,nk->n", part, part) / max(high - low, 1))
            unit, place = part * _inverse(scale)[:, None], codes[:, low:high]
            if self.bits == 4:
                place[:] = np.clip(unit / _STEP + 8, 0, 15)
            else:
                for threshold in (levels[1:] + levels[:-1]) / 2:
                    place += unit > threshold
            # Chosen so that a row's product with what is stored of it is its own square.
            own = np.einsum("nk,nk->n", part, levels[place])
            packed["scales"][:, layer] = np.einsum("nk,nk->n", part, part) * _inverse(own)
        for shift in range(each):
            packed["codes"] |= codes[:, shift::each] << np.uint8(shift * self.bits)

    def decode(self, records: NDArray[np.void]) -> Floats:
        """n records as (n, width) numbers."""
        codes = records["codes"]
        values: Floats = (
            codes.astype(np.float32)
            if self.bits >= 8
            else self._levels_of_byte()[codes].reshape(len(codes), -1)[:, : self.width]
        )
        if self.bits <= 8:
            scales = records["scales"]
            for layer, (low, high) in enumerate(pairwise(self.starts)):
                values[:, low:high] *= scales[:, layer, None]
        return values

    def _levels_of_byte(self) -> Floats:
        """(256, numbers in a byte)."""
        each, mask = 8 // self.bits, (1 << self.bits) - 1
        bytes_ = np.arange(256)[:, None]
        levels: Floats = _LEVELS[self.bits][(bytes_ >> (np.arange(each) * self.bits)) & mask]
        return levels


def _inverse(scale: Floats) -> Floats:
    return np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)


def row_blocks(total: int, width: int, block_bytes: int = 16 << 20) -> Sequence[tuple[int, int]]:
    """Ranges of rows that take about `block_bytes` as float32."""
    size = max(1, block_bytes // (4 * max(width, 1)))
    return [(low, min(low + size, total)) for low in range(0, total, size)]
