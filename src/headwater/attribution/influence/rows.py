"""Rows of numbers as small integers: each row keeps one scale for each layer.

A value is ``code * scale`` with the scale of its row and layer, ``|code| <= 127`` (8 bits) or ``<= 7`` (4 bits, two
to a byte); 16 bits are half floats and 32 bits the numbers as they are, both with a scale of one. Knows nothing
of gradients.
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
BITS = (4, 8, 16, 32)
_KINDS: dict[int, np.dtype[Any]] = {
    4: np.dtype(np.uint8),
    8: np.dtype(np.int8),
    16: np.dtype("<f2"),
    32: np.dtype("<f4"),
}


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a row is stored: `widths` numbers in each layer, of `bits` bits, then one float32 scale for each layer."""

    widths: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InvalidError(f"rows of {self.bits} bits", code="bits_unknown", fix="use 4, 8, 16 or 32")

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
        top = 127 if self.bits == 8 else 7
        codes = np.empty(values.shape, dtype=np.int8)
        starts = self.starts
        for layer, (low, high) in enumerate(pairwise(starts)):
            part = values[:, low:high]
            scale = (np.maximum(part.max(1, initial=0.0), -part.min(1, initial=0.0)) / top).astype(np.float32)
            packed["scales"][:, layer] = scale
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
            codes[:, low:high] = np.rint(part * inverse[:, None])
        if self.bits == 8:
            packed["codes"] = codes
        else:
            raw = (codes + 8).astype(np.uint8)
            if self.width % 2:
                raw = np.concatenate([raw, np.zeros((len(raw), 1), np.uint8)], axis=1)
            packed["codes"] = raw[:, 0::2] | (raw[:, 1::2] << 4)
        return packed

    def decode(self, records: NDArray[np.void]) -> Floats:
        """n records as (n, width) numbers."""
        codes = records["codes"]
        if self.bits == 4:
            both = np.empty((len(codes), 2 * codes.shape[1]), dtype=np.float32)
            both[:, 0::2], both[:, 1::2] = codes & 15, codes >> 4
            values: Floats = both[:, : self.width] - np.float32(8)
        else:
            values = codes.astype(np.float32)
        if self.bits <= 8:
            scales, starts = records["scales"], self.starts
            for layer, (low, high) in enumerate(pairwise(starts)):
                values[:, low:high] *= scales[:, layer, None]
        return values


def row_blocks(total: int, width: int, block_bytes: int = 16 << 20) -> Sequence[tuple[int, int]]:
    """Ranges of rows that take about `block_bytes` as float32."""
    size = max(1, block_bytes // (4 * max(width, 1)))
    return [(low, min(low + size, total)) for low in range(0, total, size)]
