"""Finds the first holder of every k-gram of a text in one segment after another.

Positions are taken in blocks, and each step of the look-up is done for the whole block before the
next, with the memory of the next step asked for on the way: about two hundred reads are then in
flight instead of one. Everything here is compiled, holds no lock and releases the GIL.

Knows nothing of surprisal or pay.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from headwater.attribution.spans.grams import bucket_of, gram_hash
from headwater.attribution.spans.memory import compiled, i32_at, i64_at, prefetch, u8_at, u32_at, u64_at
from headwater.attribution.spans.segment import (
    ROW_BUCKET_STARTS,
    ROW_BUCKETS,
    ROW_DEAD,
    ROW_DISTINCT,
    ROW_DOCUMENT_STARTS,
    ROW_DOCUMENTS,
    ROW_ENTRIES,
    ROW_FINGERPRINTS,
    ROW_GROUP_COUNT,
    ROW_GROUPS,
    ROW_ID_BYTES,
    ROW_ID_STARTS,
    ROW_ORDER,
    ROW_REGISTERED,
    ROW_SIZE,
    ROW_TOKENS,
    ROW_VOCABULARY,
    ROW_VOCABULARY_SIZE,
)

_BLOCK = 256
_GROUP_BIT = 1 << 31


@compiled
def token_ids(hashes, count, row, ids):
    """Write the segment's id of every token, 0 for those it does not hold."""
    rows = row[ROW_VOCABULARY_SIZE]
    table = carray(u64_at(row[ROW_VOCABULARY]), 2 * rows)
    mask = np.uint64(rows - 1)
    for begin in range(0, count, _BLOCK):
        end = min(begin + _BLOCK, count)
        for i in range(begin, end):
            prefetch(table, np.intp(hashes[i] & mask) << 1)
        for i in range(begin, end):
            slot = hashes[i] & mask
            while table[2 * slot] != hashes[i] and table[2 * slot] != np.uint64(0):
                slot = (slot + np.uint64(1)) & mask
            ids[i] = table[2 * slot + np.uint64(1)]  # an empty row holds id 0


@compiled
def document_of(starts, documents, position):
    """The document that holds a token position."""
    low, high = 0, documents
    while high - low > 1:
        middle = (low + high) >> 1
        if starts[middle] <= position:
            low = middle
        else:
            high = middle
    return low


@compiled
def precedes(rows, segment, document, other_segment, other_document):
    """Whether one document was registered before another: by time, then by id."""
    if segment == other_segment:
        return document < other_document
    mine = carray(i64_at(rows[segment, ROW_REGISTERED]), rows[segment, ROW_DOCUMENTS])[document]
    theirs = carray(i64_at(rows[other_segment, ROW_REGISTERED]), rows[other_segment, ROW_DOCUMENTS])[other_document]
    if mine != theirs:
        return mine < theirs
    my_starts = carray(i64_at(rows[segment, ROW_ID_STARTS]), rows[segment, ROW_DOCUMENTS] + 1)
    their_starts = carray(i64_at(rows[other_segment, ROW_ID_STARTS]), rows[other_segment, ROW_DOCUMENTS] + 1)
    my_size = my_starts[document + 1] - my_starts[document]
    their_size = their_starts[other_document + 1] - their_starts[other_document]
    my_bytes = carray(u8_at(rows[segment, ROW_ID_BYTES] + my_starts[document]), my_size)
    their_bytes = carray(u8_at(rows[other_segment, ROW_ID_BYTES] + their_starts[other_document]), their_size)
    for i in range(min(my_size, their_size)):
        if my_bytes[i] != their_bytes[i]:
            return my_bytes[i] < their_bytes[i]
    return my_size < their_size


@compiled
def find_grams(hashes, count, rows, segment, gram_tokens, weights, ids, best, found):
    """Look up the k-gram at every token of a text in one segment and keep the earlier holder.

    Args:
        hashes: (count,) token hashes.
        rows: (segments, ROW_LENGTH) addresses.
        segment: which of them to search.
        ids: (count,) receives the segment's ids.
        best: (count, 3) segment, document and position of the first holder so far.
        found: (count,) occurrences so far; 0 where `best` is empty.
    """
    row = rows[segment]
    token_ids(hashes, count, row, ids)
    if row[ROW_DISTINCT] == 0:
        return
    documents, size = row[ROW_DOCUMENTS], row[ROW_SIZE]
    tokens = carray(i32_at(row[ROW_TOKENS]), size)
    starts = carray(u32_at(row[ROW_BUCKET_STARTS]), row[ROW_BUCKETS] + 1)
    prints = carray(u8_at(row[ROW_FINGERPRINTS]), row[ROW_DISTINCT])
    entries = carray(u32_at(row[ROW_ENTRIES]), row[ROW_DISTINCT])
    groups = carray(u32_at(row[ROW_GROUPS]), 3 * row[ROW_GROUP_COUNT])
    document_starts = carray(i32_at(row[ROW_DOCUMENT_STARTS]), documents + 1)
    place = np.empty(_BLOCK, dtype=np.int64)
    hashed = np.empty(_BLOCK, dtype=np.uint64)
    low, high = np.empty(_BLOCK, dtype=np.int64), np.empty(_BLOCK, dtype=np.int64)
    document = np.int64(0)
    unknown = -1  # last token that this segment does not hold
    seen = 0
    for begin in range(0, count - gram_tokens + 1, _BLOCK):
        end = min(begin + _BLOCK, count - gram_tokens + 1)
        kept = 0
        for i in range(begin, end):
            while seen < i + gram_tokens:
                if ids[seen] == 0:
                    unknown = seen
                seen += 1
            if unknown < i:
                place[kept] = i
                hashed[kept] = gram_hash(ids, i, gram_tokens, weights)
                low[kept] = bucket_of(hashed[kept], row[ROW_BUCKETS])
                prefetch(starts, low[kept])
                kept += 1
        for c in range(kept):
            bucket = low[c]
            low[c], high[c] = starts[bucket], starts[bucket + 1]
            if low[c] < high[c]:
                prefetch(prints, low[c])
        hits = 0
        for c in range(kept):
            wanted = np.uint8(hashed[c] & np.uint64(255))
            at = low[c]
            while at < high[c] and prints[at] != wanted:
                at += 1
            if at < high[c]:
                prefetch(entries, at)
                place[hits], hashed[hits], low[hits], high[hits] = place[c], hashed[c], at, high[c]
                hits += 1
        for c in range(hits):
            entry = np.int64(entries[low[c]])
            if entry & _GROUP_BIT:
                prefetch(groups, 3 * (entry ^ _GROUP_BIT))
            else:
                prefetch(tokens, entry)
                prefetch(tokens, entry + gram_tokens - 1)  # often another cache line
        for c in range(hits):
            entry = np.int64(entries[low[c]])
            if entry & _GROUP_BIT:
                first = np.intp(groups[3 * (entry ^ _GROUP_BIT) + 2])
                prefetch(tokens, first)
                prefetch(tokens, first + gram_tokens - 1)
        for c in range(hits):
            i = place[c]
            wanted = np.uint8(hashed[c] & np.uint64(255))
            for at in range(low[c], high[c]):
                if prints[at] != wanted:
                    continue
                entry = np.int64(entries[at])
                occurrences, first, group = np.int64(1), np.int64(entry), np.int64(-1)
                if entry & _GROUP_BIT:
                    group = entry ^ _GROUP_BIT
                    occurrences, first = np.int64(groups[3 * group + 1]), np.int64(groups[3 * group + 2])
                same = True
                for j in range(gram_tokens):
                    if tokens[first + j] != ids[i + j]:
                        same = False
                        break
                if not same:
                    continue
                if row[ROW_DEAD] != 0:
                    first, occurrences = _living(row, document_starts, groups, group, first)
                    if occurrences == 0:
                        break
                if not document_starts[document] <= first < document_starts[document + 1]:
                    document = document_of(document_starts, documents, first)
                if found[i] == 0 or precedes(rows, segment, document, best[i, 0], best[i, 1]):
                    best[i, 0], best[i, 1], best[i, 2] = segment, document, first
                found[i] += occurrences
                break


@compiled
def _living(row, document_starts, groups, group, first):
    """First position and number of occurrences of a k-gram in documents that were not removed."""
    dead = carray(u8_at(row[ROW_DEAD]), row[ROW_DOCUMENTS])
    if group < 0:
        return first, np.int64(1 - dead[document_of(document_starts, row[ROW_DOCUMENTS], first)])
    order = carray(i32_at(row[ROW_ORDER]), row[ROW_SIZE])
    begin = np.int64(groups[3 * group])
    earliest, occurrences = np.int64(-1), np.int64(0)
    for rank in range(begin, begin + np.int64(groups[3 * group + 1])):
        position = np.int64(order[rank])
        if not dead[document_of(document_starts, row[ROW_DOCUMENTS], position)]:
            occurrences += 1
            if earliest < 0 or position < earliest:
                earliest = position
    return earliest, occurrences
