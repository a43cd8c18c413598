"""Who was first with every run of k tokens: the table behind ownership and search.

A segment's documents lie in order of registration, so the smallest position in a group of equal
k-grams is its first owner; nothing else has to be stored. Groups are neighbours in the suffix array.
A k-gram that occurs once is entered as its position, one that occurs more often as a row of
`groups` (first place in the suffix array, size, first position), so a query that finds nothing
reads two cache lines and one that finds its k-gram reads two or three more.

Knows nothing of text, owners or files: tokens are int32 ids > 0, and 0 ends a document.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from headwater.attribution.spans.memory import prefetch
from headwater.attribution.spans.tokens import finish

GRAM_TOKENS_MIN, GRAM_TOKENS_MAX = 4, 32

GROUP = np.uint32(1 << 31)
"""Flag of a table entry that is a row of `groups` and not a position."""

BUCKET_GRAMS = 6
"""k-grams in a bucket, on average: a bucket's fingerprints then mostly share one cache line."""

PADDING = GRAM_TOKENS_MAX
"""Zeros behind the last token, so that a window may be read at every position."""

_AHEAD = 24


def _weights() -> NDArray[np.uint64]:
    """Odd multipliers, one for each place in a k-gram (a fixed Weyl sequence, mixed)."""
    words = (np.arange(1, GRAM_TOKENS_MAX + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)).tolist()
    mixed = []
    for word in words:
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
        word = (word ^ word >> 27) * 0x94D049BB133111EB & 2**64 - 1
        mixed.append((word ^ word >> 31) | 1)
    return np.array(mixed, dtype=np.uint64)


WEIGHTS = _weights()


class GramTable(NamedTuple):
    """All distinct k-grams of a segment, by bucket of their hash."""

    bucket_starts: NDArray[np.uint32]  # (buckets + 1,)
    fingerprints: NDArray[np.uint8]  # (distinct,)
    entries: NDArray[np.uint32]  # (distinct,)
    groups: NDArray[np.uint32]  # (repeated, 3): place in the suffix array, size, first position


def gram_table(tokens: NDArray[np.int32], order: NDArray[np.int32], gram_tokens: int) -> GramTable:
    """Build the table.

    Args:
        tokens: (n + PADDING,) ids, 0 at the end of each document and in the padding.
        order: (n,) suffix array of tokens[:n].
        gram_tokens: k.
    """
    heads = np.zeros((order.size >> 3) + 1, dtype=np.uint8)
    distinct, repeated = _mark_groups(tokens, order, gram_tokens, heads)
    buckets = max(1, distinct // BUCKET_GRAMS)
    starts = np.zeros(buckets + 1, dtype=np.uint32)
    fingerprints = np.empty(distinct, dtype=np.uint8)
    entries = np.empty(distinct, dtype=np.uint32)
    groups = np.empty((repeated, 3), dtype=np.uint32)
    _count_buckets(tokens, order, gram_tokens, heads, starts, WEIGHTS)
    _fill(tokens, order, gram_tokens, heads, starts, fingerprints, entries, groups, WEIGHTS)
    return GramTable(starts, fingerprints, entries, groups)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def gram_hash(tokens, at, gram_tokens, weights):  # type: ignore[no-untyped-def]
    """Multilinear hash of the k tokens from `at`."""
    total = np.uint64(0)
    for j in range(gram_tokens):
        total += np.uint64(tokens[at + j]) * weights[j]
    return finish(total)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def bucket_of(hashed, buckets):  # type: ignore[no-untyped-def]
    """Which bucket a hash belongs to: its upper half scaled to the number of buckets."""
    return np.intp((hashed >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _mark_groups(tokens, order, gram_tokens, heads):  # type: ignore[no-untyped-def]
    """Set a bit where a group of equal k-grams begins in the suffix array (and where one has ended)."""
    distinct, repeated = 0, 0
    before, size = -1, 0
    for rank in range(order.size):
        if rank + _AHEAD < order.size:
            prefetch(tokens, np.intp(order[rank + _AHEAD]))
        position = order[rank]
        whole = True
        same = before >= 0
        for j in range(gram_tokens):
            token = tokens[position + j]
            if token == 0:
                whole = False
                break
            if same and token != tokens[before + j]:
                same = False
        if not whole:
            same = False
        if not same:
            heads[rank >> 3] |= np.uint8(1 << (rank & 7))
            if size > 1:
                repeated += 1
            size = 0
            before = -1
        if whole:
            if size == 0:
                distinct += 1
            size += 1
            before = position
    if size > 1:
        repeated += 1
    return distinct, repeated


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _is_whole(tokens, position, gram_tokens):  # type: ignore[no-untyped-def]
    for j in range(gram_tokens):
        if tokens[position + j] == 0:
            return False
    return True


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count_buckets(tokens, order, gram_tokens, heads, starts, weights):  # type: ignore[no-untyped-def]
    buckets = starts.size - 1
    size = order.size
    held = np.empty(64, dtype=np.int64)
    filled = 0
    for rank in range(size):
        if rank + _AHEAD < size and heads[(rank + _AHEAD) >> 3] >> ((rank + _AHEAD) & 7) & 1:
            prefetch(tokens, np.intp(order[rank + _AHEAD]))
        if heads[rank >> 3] >> (rank & 7) & 1 and _is_whole(tokens, order[rank], gram_tokens):
            bucket = bucket_of(gram_hash(tokens, order[rank], gram_tokens, weights), buckets)
            prefetch(starts, bucket)
            held[filled] = bucket
            filled += 1
            if filled == 64:
                for i in range(64):
                    starts[held[i]] += np.uint32(1)
                filled = 0
    for i in range(filled):
        starts[held[i]] += np.uint32(1)
    total = np.uint32(0)
    for bucket in range(buckets):
        total += starts[bucket]
        starts[bucket] = total  # the end for now: filling takes it down to the beginning
    starts[buckets] = total


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _fill(tokens, order, gram_tokens, heads, starts, fingerprints, entries, groups, weights):  # type: ignore[no-untyped-def]
    buckets = starts.size - 1
    size = order.size
    held_bucket = np.empty(64, dtype=np.int64)
    held_print = np.empty(64, dtype=np.uint8)
    held_entry = np.empty(64, dtype=np.uint32)
    filled, row = 0, 0
    rank = 0
    while rank < size or filled:
        if filled == 64 or rank >= size:
            for i in range(filled):
                starts[held_bucket[i]] -= np.uint32(1)
                held_bucket[i] = starts[held_bucket[i]]
                prefetch(entries, held_bucket[i])
                prefetch(fingerprints, held_bucket[i])
            for i in range(filled):
                fingerprints[held_bucket[i]] = held_print[i]
                entries[held_bucket[i]] = held_entry[i]
            filled = 0
            continue
        if rank + _AHEAD < size and heads[(rank + _AHEAD) >> 3] >> ((rank + _AHEAD) & 7) & 1:
            prefetch(tokens, np.intp(order[rank + _AHEAD]))
        position = order[rank]
        end = rank + 1
        if _is_whole(tokens, position, gram_tokens):
            first = position
            while end < size and not heads[end >> 3] >> (end & 7) & 1:
                first = min(first, order[end])
                end += 1
            hashed = gram_hash(tokens, position, gram_tokens, weights)
            bucket = bucket_of(hashed, buckets)
            prefetch(starts, bucket)
            held_bucket[filled] = bucket
            held_print[filled] = np.uint8(hashed & np.uint64(255))
            if end == rank + 1:
                held_entry[filled] = np.uint32(position)
            else:
                groups[row, 0], groups[row, 1], groups[row, 2] = rank, end - rank, first
                held_entry[filled] = np.uint32(row) | GROUP
                row += 1
            filled += 1
        rank = end
