"""One compiled call from text to spans: tokens, first holders, one owner for each word, runs.

A word covered by several k-grams belongs to the earliest registered of their first holders. So a
later document never takes a word from an earlier one, and joining two owners' passages captures
neither: only k-grams across the seam are new, and every word of them has an earlier holder.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np
from numba.np.numpy_support import carray

from headwater.attribution.spans.finding import find_grams, precedes
from headwater.attribution.spans.grams import gram_hash
from headwater.attribution.spans.memory import compiled, i32_at, i64_at, u8_at, u16_at, u32_at, u64_at
from headwater.attribution.spans.segment import (
    ROW_ANCHORS,
    ROW_DELTAS,
    ROW_DOCUMENT_BASES,
    ROW_DOCUMENTS,
    ROW_LONG_AT,
    ROW_LONG_COUNT,
    ROW_LONG_DELTA,
    ROW_SIZE,
    ROW_TOKENS,
    ROW_VOCABULARY,
    ROW_VOCABULARY_SIZE,
)
from headwater.attribution.spans.tokens import scan

(
    SETTING_GRAM_TOKENS, SETTING_WEIGHTS, SETTING_PAGES, SETTING_ENTRIES, SETTING_ENTRY_ROWS, SETTING_SEQUENCES,
    SETTING_SEQUENCES_SIZE, SETTING_WORDS, SETTING_WORD_ROWS, SETTING_UNSEEN, SETTING_COMMON, SETTING_COMMON_SIZE,
    SETTING_COMMON_SIEVE,
) = range(13)  # fmt: skip
"""Places in the row of settings that a kernel is handed: addresses and sizes of the tables all segments share."""

SETTINGS_LENGTH = 13

(
    OUT_START, OUT_END, OUT_MICROBITS, OUT_SEGMENT, OUT_DOCUMENT, OUT_SOURCE, OUT_COUNT, OUT_TOKEN, OUT_TOKENS,
) = range(9)  # fmt: skip
"""Columns of a run: bytes in the text, micro-bits, where it comes from, byte in the document, occurrences, words."""


@compiled
def trace_text(text, rows, settings):
    """Trace a text against the segments of a snapshot.

    Returns:
        ((spans, 9) int64 as the OUT_ columns say, number of tokens).
    """
    hashes, starts, ends = tokens_of(text, settings)
    best, found = first_holders(hashes, rows, settings)
    chosen = np.empty(hashes.size, dtype=np.int64)
    holders_of_words(best, found, rows, settings[SETTING_GRAM_TOKENS], chosen)
    return _runs(hashes, starts, ends, best, found, chosen, rows, settings), hashes.size


@compiled
def look_up(text, rows, settings):
    """First holders of the k-grams of a text, as `first_holders` gives them: one shard's part of a trace."""
    hashes, _starts, _ends = tokens_of(text, settings)
    return first_holders(hashes, rows, settings)


@compiled
def runs_chosen(text, chosen, found, rows, settings):
    """Runs of the words that were given to these segments.

    Args:
        chosen: for every word the k-gram that settles its owner, -1 where that is held elsewhere.
        found: occurrences of every k-gram, here and elsewhere.
    """
    hashes, starts, ends = tokens_of(text, settings)
    best, _found = first_holders(hashes, rows, settings)
    return _runs(hashes, starts, ends, best, found, chosen, rows, settings)


@compiled
def is_common(hashes, begin, settings):
    """Whether the k-gram at `begin` is common property."""
    size = settings[SETTING_COMMON_SIZE]
    if size == 0:
        return False
    common = carray(u64_at(settings[SETTING_COMMON]), size)
    hashed = gram_hash(hashes, begin, settings[SETTING_GRAM_TOKENS], carray(u64_at(settings[SETTING_WEIGHTS]), 32))
    sieve = carray(u8_at(settings[SETTING_COMMON_SIEVE]), size)
    if not sieve[(hashed >> np.uint64(3)) & np.uint64(size - 1)] >> (hashed & np.uint64(7)) & np.uint64(1):
        return False
    slot = hashed & np.uint64(size - 1)
    while common[slot] != np.uint64(0):
        if common[slot] == hashed:
            return True
        slot = (slot + np.uint64(1)) & np.uint64(size - 1)
    return False


@compiled
def first_holders(hashes, rows, settings):
    """First holder and occurrences of the k-gram at every token; (n, 3) and (n,), 0 where there is none.

    k-grams that the reference calls common have no holder.
    """
    count = hashes.size
    gram_tokens = settings[SETTING_GRAM_TOKENS]
    weights = carray(u64_at(settings[SETTING_WEIGHTS]), 32)
    best = np.empty((count, 3), dtype=np.int64)
    found = np.zeros(count, dtype=np.int64)
    ids = np.empty(count, dtype=np.int32)
    for segment in range(rows.shape[0]):
        find_grams(hashes, count, rows, segment, gram_tokens, weights, ids, best, found)
    if settings[SETTING_COMMON_SIZE]:
        for i in range(count):
            if found[i] and is_common(hashes, i, settings):
                found[i] = 0
    return best, found


@compiled
def holders_of_words(best, found, rows, gram_tokens, chosen):
    """Choose, for every word, the k-gram that settles its owner: earliest holder, then leftmost; -1 for none."""
    count = found.size
    for word in range(count):
        winner = -1
        for i in range(max(0, word - gram_tokens + 1), word + 1):
            if found[i] and (
                winner < 0
                or (
                    not (best[i, 0] == best[winner, 0] and best[i, 1] >= best[winner, 1])
                    and precedes(rows, best[i, 0], best[i, 1], best[winner, 0], best[winner, 1])
                )
            ):
                winner = i
        chosen[word] = winner


@compiled
def byte_offset(row, position):
    """Where a token begins, counting from the first byte of the segment's first document."""
    deltas = carray(u8_at(row[ROW_DELTAS]), row[ROW_SIZE])
    anchors = carray(i64_at(row[ROW_ANCHORS]), (row[ROW_SIZE] + 63) >> 6)
    offset = anchors[position >> 6]
    for i in range((position >> 6 << 6) + 1, position + 1):
        if deltas[i] == 255:
            long_at = carray(i64_at(row[ROW_LONG_AT]), row[ROW_LONG_COUNT])
            offset += carray(i64_at(row[ROW_LONG_DELTA]), row[ROW_LONG_COUNT])[np.searchsorted(long_at, i)]
        else:
            offset += np.int64(deltas[i])
    return offset


@compiled
def tokens_of(text, settings):
    """Token hashes, starts and ends of a text."""
    pages = carray(u16_at(settings[SETTING_PAGES]), 4352)
    entries = carray(u32_at(settings[SETTING_ENTRIES]), (settings[SETTING_ENTRY_ROWS], 256))
    sequences = carray(u32_at(settings[SETTING_SEQUENCES]), settings[SETTING_SEQUENCES_SIZE])
    room = min(text.size, (text.size >> 2) + 256) + 64
    while True:
        hashes = np.empty(room, dtype=np.uint64)
        starts, ends = np.empty(room, dtype=np.uint32), np.empty(room, dtype=np.uint32)
        count, at = scan(text, 0, hashes, starts, ends, pages, entries, sequences)
        if at >= text.size:
            return hashes[:count], starts[:count], ends[:count]
        room = text.size + 64  # more words than a quarter of the bytes: rare, so read again with room for all


@compiled
def _runs(hashes, starts, ends, best, found, chosen, rows, settings):
    count = hashes.size
    words = carray(u64_at(settings[SETTING_WORDS]), 2 * settings[SETTING_WORD_ROWS])
    mask = np.uint64(settings[SETTING_WORD_ROWS] - 1)
    out = np.empty((32, 9), dtype=np.int64)
    run = -1
    source: Any = np.int64(-2)  # where the word before was found, as a token position
    for word in range(count):
        gram = chosen[word]
        if gram < 0:
            source = -2
            continue
        segment, document = best[gram, 0], best[gram, 1]
        position = best[gram, 2] + word - gram
        goes_on = source >= 0 and out[run, OUT_SEGMENT] == segment and out[run, OUT_DOCUMENT] == document
        if goes_on and position != source + 1:
            # The document held these k words earlier too; stay in the passage if it goes on with this word.
            goes_on = _holds(rows[segment], source + 1, hashes[word])
            position = source + 1 if goes_on else position
        source = position
        if not goes_on:
            run += 1
            if run == out.shape[0]:
                grown = np.empty((2 * run, 9), dtype=np.int64)
                grown[:run] = out
                out = grown
            bases = carray(i64_at(rows[segment, ROW_DOCUMENT_BASES]), rows[segment, ROW_DOCUMENTS] + 1)
            out[run, OUT_START] = starts[word]
            out[run, OUT_MICROBITS] = 0
            out[run, OUT_SEGMENT], out[run, OUT_DOCUMENT] = segment, document
            out[run, OUT_SOURCE] = byte_offset(rows[segment], position) - bases[document]
            out[run, OUT_COUNT] = found[gram]
            out[run, OUT_TOKEN], out[run, OUT_TOKENS] = word, 0
        out[run, OUT_TOKENS] += 1
        out[run, OUT_END] = ends[word]
        out[run, OUT_COUNT] = min(out[run, OUT_COUNT], found[gram])
        slot = hashes[word] & mask
        bits = settings[SETTING_UNSEEN]
        while words[2 * slot] != np.uint64(0):
            if words[2 * slot] == hashes[word]:
                bits = np.int64(words[2 * slot + np.uint64(1)])
                break
            slot = (slot + np.uint64(1)) & mask
        out[run, OUT_MICROBITS] += bits
    return out[: run + 1]


@compiled
def _holds(row, position, hashed):
    """Whether a segment has the word with that hash at a position."""
    rows = row[ROW_VOCABULARY_SIZE]
    table = carray(u64_at(row[ROW_VOCABULARY]), 2 * rows)
    token = carray(i32_at(row[ROW_TOKENS]), row[ROW_SIZE])[position]
    mask = np.uint64(rows - 1)
    slot = hashed & mask
    while table[2 * slot] != hashed and table[2 * slot] != np.uint64(0):
        slot = (slot + np.uint64(1)) & mask
    return token != 0 and np.int64(table[2 * slot + np.uint64(1)]) == token
