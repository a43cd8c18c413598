"""Who was first with every run of k tokens: the table behind ownership and search.

A segment's documents lie in order of registration, so the smallest position in a group of equal
k-grams is its first owner; nothing else has to be stored. Groups are neighbours in the suffix array.
A k-gram that occurs once is entered as its position, one that occurs more often as a row of
`groups` (first place in the suffix array, size, first position), so a query that finds nothing
reads two cache lines and one that finds its k-gram reads two or three more.

Knows nothing of text, owners or files: tokens are int32 ids > 0, and 0 ends a document.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.memory import compiled, prefetch
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


class Repeats(NamedTuple):
    """Which k-grams of a segment are not the first of their kind in it; bit p is for the one at token p."""

    again: NDArray[np.uint8]  # it occurred before
    copied: NDArray[np.uint8]  # it occurred in an earlier document


def gram_table(
    tokens: NDArray[np.int32], order: NDArray[np.int32], document_starts: NDArray[np.int32], gram_tokens: int
) -> tuple[GramTable, Repeats]:
    """Build the table, and note what repeats.

    Args:
        tokens: (n + PADDING,) ids, 0 at the end of each document and in the padding.
        order: (n,) suffix array of tokens[:n].
        document_starts: (documents + 1,) first token of each.
        gram_tokens: k.
    """
    single = np.zeros((order.size >> 3) + 1, dtype=np.uint8)  # bit p: the k-gram at p occurs nowhere else
    groups = np.empty((1024, 3), dtype=np.uint32)
    rank = repeated = singles = 0
    while rank < order.size:
        if repeated == groups.shape[0]:
            groups.resize((repeated + repeated // 4 + 1024, 3), refcheck=False)
        rank, repeated, singles = _find_groups(tokens, order, gram_tokens, rank, groups, repeated, single, singles)
    groups.resize((repeated, 3), refcheck=False)
    repeats = Repeats(np.zeros_like(single), np.zeros_like(single))
    _mark_repeats(order, document_starts, groups, repeats.again, repeats.copied)
    distinct = singles + repeated
    starts = np.zeros(max(1, distinct // BUCKET_GRAMS) + 1, dtype=np.uint32)
    _count_buckets(tokens, gram_tokens, single, groups, starts, WEIGHTS)
    fingerprints = np.empty(distinct, dtype=np.uint8)
    entries = np.empty(distinct, dtype=np.uint32)
    _fill(tokens, gram_tokens, single, groups, starts, fingerprints, entries, WEIGHTS)
    return GramTable(starts, fingerprints, entries, groups), repeats


@compiled
def gram_hash(tokens, at, gram_tokens, weights):
    """Multilinear hash of the k tokens from `at`."""
    total = np.uint64(0)
    for j in range(gram_tokens):
        total += np.uint64(tokens[at + j]) * weights[j]
    return finish(total)


@compiled
def bucket_of(hashed, buckets):
    """Which bucket a hash belongs to: its upper half scaled to the number of buckets."""
    return np.intp((hashed >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32))


@compiled
def _is_whole(tokens, position, gram_tokens):
    """Whether no document ends within a window. No early exit: a branch that cannot be foreseen costs more."""
    ends = 0
    for j in range(gram_tokens):
        ends += tokens[position + j] == 0
    return ends == 0


@compiled
def _differ(tokens, one, other, gram_tokens):
    """Whether two windows differ; without early exit for the same reason."""
    bits = np.int32(0)
    for j in range(gram_tokens):
        bits |= tokens[one + j] ^ tokens[other + j]
    return bits != 0


@compiled
def _find_groups(tokens, order, gram_tokens, rank, groups, repeated, single, singles):
    """Go through the suffix array from `rank` until `groups` is full; returns (next rank, groups, singles)."""
    size = order.size
    while rank < size and repeated < groups.shape[0]:
        first = order[rank]
        end = rank + 1
        if not _is_whole(tokens, first, gram_tokens):
            if rank + _AHEAD < size:
                prefetch(tokens, np.intp(order[rank + _AHEAD]))
            rank += 1
            continue
        position = first
        while True:
            if end + _AHEAD < size:
                prefetch(tokens, np.intp(order[end + _AHEAD]))
                prefetch(tokens, np.intp(order[end + _AHEAD] + gram_tokens - 1))  # often another cache line
                prefetch(single, np.intp(order[end + _AHEAD] >> 3))
            if end == size:
                break
            other = order[end]
            if _differ(tokens, other, position, gram_tokens):
                break
            first = min(first, other)
            end += 1
        if end == rank + 1:
            single[first >> 3] |= np.uint8(1 << (first & 7))
            singles += 1
        else:
            groups[repeated, 0], groups[repeated, 1], groups[repeated, 2] = rank, end - rank, first
            repeated += 1
        rank = end
    return rank, repeated, singles


@compiled
def _mark_repeats(order, document_starts, groups, again, copied):
    for row in range(groups.shape[0]):
        begin, end = np.int64(groups[row, 0]), np.int64(groups[row, 0]) + np.int64(groups[row, 1])
        first = np.int64(groups[row, 2])
        low, high = 0, document_starts.size - 1
        while high - low > 1:
            middle = (low + high) >> 1
            if document_starts[middle] <= first:
                low = middle
            else:
                high = middle
        next_document = document_starts[low + 1]
        for rank in range(begin, end):
            position = order[rank]
            if position != first:
                again[position >> 3] |= np.uint8(1 << (position & 7))
                if position >= next_document:
                    copied[position >> 3] |= np.uint8(1 << (position & 7))


@compiled
def _count_buckets(tokens, gram_tokens, single, groups, starts, weights):
    """Leave the end of each bucket in `starts`: filling takes it down to the beginning."""
    buckets = starts.size - 1
    held = np.empty(64, dtype=np.int64)
    filled = 0
    for byte in range(single.size):
        bits = single[byte]
        for bit in range(8):
            if bits >> bit & 1:
                held[filled] = bucket_of(gram_hash(tokens, byte * 8 + bit, gram_tokens, weights), buckets)
                prefetch(starts, held[filled])
                filled += 1
                if filled == 64:
                    for i in range(64):
                        starts[held[i]] += np.uint32(1)
                    filled = 0
    for i in range(filled):
        starts[held[i]] += np.uint32(1)
    for row in range(groups.shape[0]):
        if row + _AHEAD < groups.shape[0]:
            prefetch(tokens, np.intp(groups[row + _AHEAD, 2]))
            prefetch(tokens, np.intp(groups[row + _AHEAD, 2]) + gram_tokens - 1)
        starts[bucket_of(gram_hash(tokens, groups[row, 2], gram_tokens, weights), buckets)] += np.uint32(1)
    total = np.uint32(0)
    for bucket in range(buckets):
        total += starts[bucket]
        starts[bucket] = total
    starts[buckets] = total


@compiled
def _fill(tokens, gram_tokens, single, groups, starts, fingerprints, entries, weights):
    bucket, print_, entry = np.empty(64, np.int64), np.empty(64, np.uint8), np.empty(64, np.uint32)
    filled = 0
    for byte in range(single.size):
        bits = single[byte]
        for bit in range(8):
            if bits >> bit & 1:
                position = byte * 8 + bit
                hashed = gram_hash(tokens, position, gram_tokens, weights)
                filled = _hold(hashed, np.uint32(position), bucket, print_, entry, filled, starts)
                if filled == 64:
                    filled = _release(bucket, print_, entry, filled, starts, fingerprints, entries)
    for row in range(groups.shape[0]):
        if row + _AHEAD < groups.shape[0]:
            prefetch(tokens, np.intp(groups[row + _AHEAD, 2]))
            prefetch(tokens, np.intp(groups[row + _AHEAD, 2]) + gram_tokens - 1)
        hashed = gram_hash(tokens, groups[row, 2], gram_tokens, weights)
        filled = _hold(hashed, np.uint32(row) | GROUP, bucket, print_, entry, filled, starts)
        if filled == 64:
            filled = _release(bucket, print_, entry, filled, starts, fingerprints, entries)
    _release(bucket, print_, entry, filled, starts, fingerprints, entries)


@compiled
def _hold(hashed, value, bucket, print_, entry, filled, starts):
    """Keep an entry until there are enough to write with their memory asked for."""
    bucket[filled] = bucket_of(hashed, starts.size - 1)
    prefetch(starts, bucket[filled])
    print_[filled] = np.uint8(hashed & np.uint64(255))
    entry[filled] = value
    return filled + 1


@compiled
def _release(bucket, print_, entry, filled, starts, fingerprints, entries):
    for i in range(filled):
        starts[bucket[i]] -= np.uint32(1)
        bucket[i] = starts[bucket[i]]
        prefetch(entries, bucket[i])
        prefetch(fingerprints, bucket[i])
    for i in range(filled):
        fingerprints[bucket[i]] = print_[i]
        entries[bucket[i]] = entry[i]
    return 0
