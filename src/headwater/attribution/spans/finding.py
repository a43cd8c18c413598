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

from headwater.attribution.spans.grams import (
    LINE_POSITIONS,
    LINE_WORDS,
    first_slot,
    gram_hash,
    line_of,
    next_slot,
    occurrences_at,
    place_of,
)
from headwater.attribution.spans.memory import compiled, i32_at, i64_at, prefetch, u8_at, u32_at, u64_at
from headwater.attribution.spans.segment import (
    ROW_DEAD,
    ROW_DOCUMENT_STARTS,
    ROW_DOCUMENTS,
    ROW_FREQUENT,
    ROW_FREQUENT_COUNT,
    ROW_ID_BYTES,
    ROW_ID_STARTS,
    ROW_LINE_COUNT,
    ROW_LINES,
    ROW_ORDER,
    ROW_REGISTERED,
    ROW_SIZE,
    ROW_SYMBOL_STARTS,
    ROW_SYMBOLS,
    ROW_TOKENS,
    ROW_VOCABULARY,
    ROW_VOCABULARY_SIZE,
)

_BLOCK = 256


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
    lines = row[ROW_LINE_COUNT]
    if lines == 0:
        return
    documents, size = row[ROW_DOCUMENTS], row[ROW_SIZE]
    tokens = carray(i32_at(row[ROW_TOKENS]), size)
    words = carray(u32_at(row[ROW_LINES]), LINE_WORDS * lines)
    pairs = carray(u64_at(row[ROW_LINES]), 8 * lines)
    whole = carray(u8_at(row[ROW_LINES]), 64 * lines)
    frequent = carray(u32_at(row[ROW_FREQUENT]), 2 * row[ROW_FREQUENT_COUNT])
    document_starts = carray(i32_at(row[ROW_DOCUMENT_STARTS]), documents + 1)
    place, hashed = np.empty(_BLOCK, dtype=np.int64), np.empty(_BLOCK, dtype=np.uint64)
    line, slot = np.empty(_BLOCK, dtype=np.int64), np.empty(_BLOCK, dtype=np.int64)
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
                line[kept] = line_of(hashed[kept], lines)
                prefetch(words, line[kept] * LINE_WORDS)
                kept += 1
        hits = 0
        for c in range(kept):
            at, here = first_slot(pairs, line[c], hashed[c] & np.uint64(255))
            if at >= 0:
                position = np.intp(words[LINE_WORDS * at + LINE_POSITIONS + here])
                prefetch(tokens, position)
                prefetch(tokens, position + gram_tokens - 1)  # often another cache line
                place[hits], hashed[hits], line[hits], slot[hits] = place[c], hashed[c], at, here
                hits += 1
        for c in range(hits):
            i, at, here = place[c], line[c], slot[c]
            print_ = np.uint8(hashed[c] & np.uint64(255))
            while at >= 0:
                first = np.int64(words[LINE_WORDS * at + LINE_POSITIONS + here])
                if _same(tokens, first, ids, i, gram_tokens):
                    break
                at, here = next_slot(whole, at, here + 1, print_)
            if at < 0:
                continue
            occurrences = occurrences_at(words, frequent, at, here)
            if row[ROW_DEAD] != 0:
                first, occurrences = _living(row, document_starts, first, occurrences, gram_tokens)
                if occurrences == 0:
                    continue
            if not document_starts[document] <= first < document_starts[document + 1]:
                document = document_of(document_starts, documents, first)
            if found[i] == 0 or precedes(rows, segment, document, best[i, 0], best[i, 1]):
                best[i, 0], best[i, 1], best[i, 2] = segment, document, first
            found[i] += occurrences


@compiled
def _same(tokens, position, ids, at, gram_tokens):
    """Whether a segment's k tokens from a position are those of a text."""
    bits = np.int32(0)
    for j in range(gram_tokens):
        bits |= tokens[position + j] ^ ids[at + j]
    return bits == 0


@compiled
def _living(row, document_starts, first, occurrences, gram_tokens):
    """First position and number of occurrences of a k-gram in documents that were not removed."""
    dead = carray(u8_at(row[ROW_DEAD]), row[ROW_DOCUMENTS])
    if occurrences == 1:
        return first, np.int64(1 - dead[document_of(document_starts, row[ROW_DOCUMENTS], first)])
    order = carray(i32_at(row[ROW_ORDER]), row[ROW_SIZE])
    begin = gram_place(row, first, gram_tokens)
    earliest, living = np.int64(-1), np.int64(0)
    for rank in range(begin, begin + occurrences):
        position = np.int64(order[rank])
        if not dead[document_of(document_starts, row[ROW_DOCUMENTS], position)]:
            living += 1
            if earliest < 0 or position < earliest:
                earliest = position
    return earliest, living


@compiled
def gram_place(row, position, gram_tokens):
    """First place in the suffix array of the k-gram that stands at a position."""
    tokens = carray(i32_at(row[ROW_TOKENS]), row[ROW_SIZE])
    order = carray(i32_at(row[ROW_ORDER]), row[ROW_SIZE])
    symbols = carray(i32_at(row[ROW_SYMBOL_STARTS]), row[ROW_SYMBOLS] + 1)
    low, high = np.int64(symbols[tokens[position]]), np.int64(symbols[tokens[position] + 1])
    return place_of(tokens, order, low, high, position, gram_tokens)
