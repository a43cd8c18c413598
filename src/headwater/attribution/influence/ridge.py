"""The second stage of the curvature: what the training rows themselves say, solved in the space of examples.

Stored rows are already whitened by layer. Their own second moment, over at most `RIDGE_ROWS_MAX` rows, corrects
what a layer-wise approximation misses (cross-layer terms, and how training treats examples that look alike). The
solve is ``(ridge * trace * I + Z'Z / m)^-1`` by the Woodbury identity, an m x m matrix, so it never needs more
memory than the rows sampled. It also gives each example's self-influence, by which outliers are clipped.
Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headwater.attribution.influence.rows import Floats, RowLayout, row_blocks

RIDGE_ROWS_MAX = 2048
SLAB_BYTES = 8 << 20

Records = NDArray[np.void]


class RowSource:
    """Rows of one checkpoint, over all of its shards."""

    def __init__(self, layout: RowLayout, shards: Sequence[Records]) -> None:
        self.layout, self._shards = layout, tuple(shards)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def block(self, low: int, high: int) -> Floats:
        """(high - low, width) rows of consecutive examples."""
        parts = []
        for start, shard in zip(self._starts, self._shards, strict=False):
            part = shard[max(low - int(start), 0) : max(high - int(start), 0)]
            if len(part):
                parts.append(self.layout.decode(part))
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def blocks(self) -> Sequence[tuple[int, int]]:
        """Ranges of about 8 MB as float32."""
        return row_blocks(len(self), self.layout.width, SLAB_BYTES)

    def take(self, places: NDArray[np.int64]) -> Records:
        """Records of chosen examples, in ascending order of place."""
        which = np.searchsorted(self._starts, places, side="right") - 1
        if not len(places):
            return np.zeros(0, dtype=self.layout.record)
        parts = [self._shards[s][places[which == s] - self._starts[s]] for s in np.unique(which)]
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Ridge:
    """The solve, ready for queries. Z are the sampled rows."""

    places: NDArray[np.int64]  # (m,) examples whose rows it was made from
    inverse: Floats  # (m, m): (strength * I + Z Z')^-1
    strength: float
    factors: Floats  # (n,) at most 1: how far each example is scaled down as an outlier
    limit: float  # the self-influence norm that examples and queries are scaled down to; 0: they are not

    @property
    def complete(self) -> bool:
        """Whether every example is in the sample; then scores need the rows once only."""
        return 0 < len(self.places) == len(self.factors)

    def clipping(self, rows: Floats, dots: Floats) -> Floats:
        """(q, 1) at most 1: query rows are scaled down like examples, so none counts for more than a usual one."""
        squares = np.einsum("qk,qk->q", rows, rows)
        if len(self.places):
            squares -= np.einsum("qm,qm->q", product(dots, self.inverse), dots)
        return scaled_down(np.sqrt(np.maximum(squares, 0.0)), self.limit)[:, None]

    def clipped(self, rows: Floats, sample: Records, layout: RowLayout) -> Floats:
        """(q, width) query rows, scaled down where they are outliers."""
        return rows if self.limit <= 0 else rows * self.clipping(rows, self._dots(rows, sample, layout))

    def _dots(self, rows: Floats, sample: Records, layout: RowLayout) -> Floats:
        return _dots(rows, sample, layout) if len(self.places) else rows[:, :0]

    def corrected(self, rows: Floats, sample: Records, layout: RowLayout) -> Floats:
        """(q, width) rows r as ``r - r Z' inverse Z``; a product with stored rows then gives scores."""
        if not len(self.places):
            return rows
        mixed = product(_dots(rows, sample, layout), self.inverse)
        fixed = rows.copy()
        for low, high in row_blocks(len(sample), layout.width, SLAB_BYTES):
            fixed -= product(mixed[:, low:high], layout.decode(sample[low:high]))
        return fixed

    def scores(self, rows: Floats, source: RowSource, sample: Records) -> Floats:
        """(q, n) scores of query rows against all stored rows, outliers scaled down on both sides."""
        if self.complete:  # then (1 - Z' inverse Z) Z' is strength * Z' inverse
            dots = _dots(rows, sample, source.layout)
            found = product(dots, self.inverse) * np.float32(self.strength)
            if self.limit > 0:
                found *= self.clipping(rows, dots)
        else:
            left = self.corrected(self.clipped(rows, sample, source.layout), sample, source.layout)
            found = np.concatenate([product(left, source.block(*place).T) for place in source.blocks()], axis=1)
        found *= self.factors
        return found


def no_ridge(factors: Floats, limit: float) -> Ridge:
    """No second stage: scores are products of rows, which are stored scaled down already."""
    return Ridge(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), 1.0, factors, limit)


def product(left: Floats, right: Floats) -> Floats:
    """Matrix product on as many threads as torch has, so that one setting rules."""
    found: Floats = torch.mm(torch.from_numpy(left), torch.from_numpy(right)).numpy()
    return found


def _dots(rows: Floats, sample: Records, layout: RowLayout) -> Floats:
    """(q, m) products with the sampled rows."""
    ranges = row_blocks(len(sample), layout.width, SLAB_BYTES)
    return np.concatenate([product(rows, layout.decode(sample[low:high]).T) for low, high in ranges], axis=1)


def fit_ridge(source: RowSource, *, ridge: float, clip: float, seed: int) -> Ridge:
    """Solve for the rows of one checkpoint.

    Args:
        source: all stored rows.
        ridge: times the trace of the rows' second moment.
        clip: rows whose self-influence norm exceeds this multiple of the median are scaled down to it; 0: never.
        seed: of the sample, where there are more rows than `RIDGE_ROWS_MAX`.
    """
    total, layout = len(source), source.layout
    rng = np.random.default_rng(seed)
    places = np.sort(rng.permutation(total)[:RIDGE_ROWS_MAX]).astype(np.int64)
    sample = source.take(places)
    size = len(places)
    gram = np.zeros((size, size), dtype=np.float32)
    ranges = row_blocks(size, layout.width, SLAB_BYTES)
    for low, high in ranges:
        left = layout.decode(sample[low:high])
        for low_2, high_2 in ranges:
            if low_2 < low:
                continue
            part = product(left, (left if low_2 == low else layout.decode(sample[low_2:high_2])).T)
            gram[low:high, low_2:high_2] = part
            gram[low_2:high_2, low:high] = part.T
    strength = max(ridge * float(np.trace(gram)), 1e-12)
    squares_plain = np.diagonal(gram).copy()
    gram[np.diag_indices(size)] += np.float32(strength)
    inverse: Floats = torch.cholesky_inverse(torch.linalg.cholesky(torch.from_numpy(gram))).numpy()
    if size == total:
        # Not strength * (1 - strength * inverse): that loses every digit of rows much smaller than the strength.
        gram[np.diag_indices(size)] = squares_plain
        squares = strength * np.einsum("nm,nm->n", inverse, gram, dtype=np.float64)
    else:
        squares = np.empty(total)
        for low, high in source.blocks():
            rows = source.block(low, high)
            dots = _dots(rows, sample, layout)
            squares[low:high] = np.einsum("nk,nk->n", rows, rows) - np.einsum("nm,nm->n", product(dots, inverse), dots)
    norms = np.sqrt(np.maximum(squares, 0.0)).astype(np.float32)
    live = norms[norms > 0]
    limit = clip * float(np.median(live)) if live.size else 0.0
    return Ridge(places, inverse, strength, scaled_down(norms, limit), limit)


def scaled_down(norms: Floats, limit: float) -> Floats:
    """How far rows of these norms are scaled down to the limit; 0: not at all."""
    if limit <= 0:
        return np.ones_like(norms)
    factors = np.divide(np.float32(limit), norms, out=np.ones_like(norms), where=norms > 0)
    return np.minimum(factors, np.float32(1.0))
