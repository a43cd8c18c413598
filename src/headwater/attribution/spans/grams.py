"""Who was first with every run of k tokens: the table behind ownership and search.

A segment's documents lie in order of registration, so whoever comes first in the text is the first owner:
the table is filled in text order, and a k-gram that is there already is a repetition.

The table is a row of cache lines. A k-gram lies in the line its hash names, or in the next that has
room: a byte of fingerprint, its first position, and how often it occurs. So a query that finds nothing
reads one line, and one that finds its k-gram reads the words it repeats besides.

Knows nothing of text, owners or files: tokens are int32 ids > 0, and 0 ends a document.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.memory import compiled, prefetch, zeros_below
from headwater.attribution.spans.tokens import finish

GRAM_TOKENS_MIN, GRAM_TOKENS_MAX = 4, 32

LINE_WORDS = 16
"""32-bit words of a line, 64 bytes: 11 fingerprints and a byte of state, 2 words of counts, 11 positions."""

LINE_GRAMS = 11
LINE_STATE = 11
"""Byte of a line: low four bits are k-grams held, the highest is set when one had to go to the next line."""

LINE_OVER = np.uint8(128)
LINE_POSITIONS = 5
"""Word of a line where positions begin."""

FREQUENT = 31
"""A k-gram that occurs so often or more has its count in a list of its own; five bits hold what is less."""

FIRST, AGAIN, COPIED = 1, 2, 3
"""State of a k-gram that is the first of its kind, or occurred before in its document, or in an earlier one."""

PADDING = GRAM_TOKENS_MAX
"""Zeros behind the last token, so that a window may be read at every position."""

_AHEAD = 24
_LOAD_PERCENT = 80  # of the places of a line, on average
_LOAD_MAX_PERCENT = 92
_SAMPLE = 64  # one k-gram in so many is looked at to tell how many are distinct
_SAMPLED_MIN = 64
_CHUNK = 256  # k-grams looked up in lock step


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
    """All distinct k-grams of a segment."""

    lines: NDArray[np.uint32]  # (16 * lines,)
    frequent: NDArray[np.uint32]  # (2 * rows,) first position and count of those that occur often, by position


def gram_table(
    tokens: NDArray[np.int32],
    order: NDArray[np.int32],
    symbol_starts: NDArray[np.int32],
    gram_tokens: int,
) -> tuple[GramTable, NDArray[np.uint8]]:
    """Build the table, and note what repeats.

    Args:
        tokens: (n + PADDING,) ids, 0 at the end of each document and in the padding.
        order: (n,) suffix array of tokens[:n].
        symbol_starts: (symbols + 1,) first place of each symbol in it.
        gram_tokens: k.

    Returns:
        The table, and the state of the k-gram at each token (see `state_of`), 0 where a document ends within it.
    """
    size = order.size
    states = np.zeros((size >> 2) + 1, dtype=np.uint8)
    expected = _distinct(tokens, size, gram_tokens, WEIGHTS)
    while True:
        lines = -(-expected * 100 // (LINE_GRAMS * _LOAD_PERCENT)) + 1 if expected else 0
        words = np.zeros(LINE_WORDS * lines, dtype=np.uint32)
        views = words, words.view(np.uint64), words.view(np.uint8)
        if not lines or _fill(tokens, size, gram_tokens, states, *views, WEIGHTS):
            break
        expected *= 2  # somebody chose words so as to be missed by the sample
        states[:] = 0
    frequent = _frequent(words, words.view(np.uint8))
    counts = _sizes(tokens, order, symbol_starts, gram_tokens, frequent)
    rows = np.stack([frequent, counts], axis=1)[np.argsort(frequent, kind="stable")]
    return GramTable(words, np.ascontiguousarray(rows).reshape(-1)), states


def groups_of(
    tokens: NDArray[np.int32], order: NDArray[np.int32], gram_tokens: int, size_min: int
) -> NDArray[np.int64]:
    """Groups of at least `size_min` equal k-grams: (groups, 3) place in the suffix array, size, first position."""
    return _groups_of(tokens, order, gram_tokens, size_min)


@compiled
def gram_hash(tokens, at, gram_tokens, weights):
    """Multilinear hash of the k tokens from `at`."""
    if gram_tokens == 8:  # the usual k, without a loop
        return finish(
            np.uint64(tokens[at]) * weights[0]
            + np.uint64(tokens[at + 1]) * weights[1]
            + np.uint64(tokens[at + 2]) * weights[2]
            + np.uint64(tokens[at + 3]) * weights[3]
            + np.uint64(tokens[at + 4]) * weights[4]
            + np.uint64(tokens[at + 5]) * weights[5]
            + np.uint64(tokens[at + 6]) * weights[6]
            + np.uint64(tokens[at + 7]) * weights[7]
        )
    total = np.uint64(0)
    for j in range(gram_tokens):
        total += np.uint64(tokens[at + j]) * weights[j]
    return finish(total)


@compiled
def line_of(hashed, lines):
    """Which line a hash belongs to: its upper half scaled to the number of lines."""
    return np.intp((hashed >> np.uint64(32)) * np.uint64(lines) >> np.uint64(32))


@compiled
def first_slot(pairs, line, fingerprint):
    """Line and slot of the first k-gram with a fingerprint; line -1 when there is none.

    All bytes of a line are compared at once; `pairs` is the table in words of 64 bits.
    """
    ones, tops = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
    wanted = np.uint64(fingerprint) * ones
    while True:
        tail = pairs[8 * line + 1]
        differ = pairs[8 * line] ^ wanted
        equal = (differ - ones) & ~differ & tops
        base = 0
        if equal == np.uint64(0):
            differ = tail ^ wanted
            equal = (differ - ones) & ~differ & np.uint64(0x808080)
            base = 8
        state = np.int64(tail >> np.uint64(24)) & 255
        if equal != np.uint64(0):
            slot = base + (zeros_below(equal) >> 3)
            if slot < state & 15:
                return line, slot
        if state < 128:
            return np.int64(-1), np.int64(0)
        line += 1
        if 8 * line == pairs.size:
            line = np.int64(0)


@compiled
def occurrences_at(words, frequent, line, slot):
    """How often the k-gram of a slot occurs."""
    if slot < 6:
        held = np.int64(words[LINE_WORDS * line + 3]) >> (5 * slot) & 31
    else:
        held = np.int64(words[LINE_WORDS * line + 4]) >> (5 * (slot - 6)) & 31
    if held < FREQUENT:
        return held
    position = words[LINE_WORDS * line + LINE_POSITIONS + slot]
    low, high = 0, frequent.size >> 1
    while high - low > 1:
        middle = (low + high) >> 1
        if frequent[2 * middle] <= position:
            low = middle
        else:
            high = middle
    return np.int64(frequent[2 * low + 1])


@compiled
def state_of(states, position):
    """What `gram_table` found out about the k-gram at a token: two bits."""
    return states[position >> 2] >> np.uint8(2 * (position & 3)) & np.uint8(3)


@compiled
def next_slot(whole, line, slot, fingerprint):
    """Line and slot of the next k-gram with a fingerprint, from a slot on; line -1 when there is none."""
    while True:
        state = whole[64 * line + LINE_STATE]
        for here in range(slot, np.int64(state & 15)):
            if whole[64 * line + here] == fingerprint:
                return line, np.int64(here)
        if not state & LINE_OVER:
            return np.int64(-1), np.int64(0)
        line, slot = line + 1, 0
        if 64 * line == whole.size:
            line = np.int64(0)


@compiled
def _end_of(tokens, begin, size):
    """Where the document that begins at a token ends: the place of its end mark."""
    while begin < size and tokens[begin] != 0:
        begin += 1
    return begin


@compiled
def _hash_all(tokens, begin, gram_tokens, weights, hashes):
    """Hash the k-grams from a token on, `hashes.size` of them, whether documents end in them or not."""
    hashes[:] = np.uint64(0)
    for j in range(gram_tokens):
        part = tokens[begin + j : begin + j + hashes.size]
        weight = weights[j]
        for i in range(hashes.size):
            hashes[i] += np.uint64(part[i]) * weight
    for i in range(hashes.size):
        hashes[i] = finish(hashes[i])


@compiled
def _distinct(tokens, size, gram_tokens, weights):
    """About how many distinct k-grams there are, seldom too few: those of a sample, chosen by hash, times its share."""
    known = np.zeros(1 << 12, dtype=np.uint64)
    hashes = np.empty(_CHUNK, dtype=np.uint64)
    sampled = windows = 0
    end = -1  # of the document in hand
    for chunk in range(0, size, _CHUNK):
        last = min(size, chunk + _CHUNK)
        _hash_all(tokens, chunk, gram_tokens, weights, hashes[: last - chunk])
        for position in range(chunk, last):
            if position > end:
                end = _end_of(tokens, position, size)
            if end - position < gram_tokens:
                continue
            windows += 1
            hashed = hashes[position - chunk]
            if (hashed >> np.uint64(8)) & np.uint64(_SAMPLE - 1):
                continue
            if 2 * sampled >= known.size:
                grown = np.zeros(4 * known.size, dtype=np.uint64)
                for one in known:
                    if one:
                        _enter_sample(grown, one)
                known = grown
            sampled += _enter_sample(known, hashed)
    if sampled < _SAMPLED_MIN:
        return windows  # too few to tell
    return min(windows, _SAMPLE * (sampled + 4 * np.int64(np.sqrt(sampled))))


@compiled
def _enter_sample(known, hashed):
    slot = np.intp(hashed >> np.uint64(14)) & (known.size - 1)
    while known[slot] != np.uint64(0):
        if known[slot] == hashed:
            return 0
        slot = (slot + 1) & (known.size - 1)
    known[slot] = hashed
    return 1


@compiled
def _fill(tokens, size, gram_tokens, states, words, pairs, whole, weights):
    """Enter every k-gram in text order; returns whether they fit."""
    lines = words.size // LINE_WORDS
    room = lines * LINE_GRAMS * _LOAD_MAX_PERCENT // 100
    hashes = np.empty(_CHUNK, dtype=np.uint64)
    held_position, held_begin = np.empty(_CHUNK, np.int64), np.empty(_CHUNK, np.int64)
    held_line = np.empty(_CHUNK, np.int64)
    begin, end = 0, -1  # of the document in hand
    for chunk in range(0, size, _CHUNK):
        last = min(size, chunk + _CHUNK)
        _hash_all(tokens, chunk, gram_tokens, weights, hashes[: last - chunk])
        filled = 0
        for position in range(chunk, last):
            if position > end:
                begin, end = end + 1, _end_of(tokens, position, size)
            if end - position >= gram_tokens:
                hashed = hashes[position - chunk]
                hashes[filled] = hashed
                held_position[filled], held_begin[filled] = position, begin
                held_line[filled] = line_of(hashed, lines)
                prefetch(words, held_line[filled] * LINE_WORDS)
                filled += 1
        for c in range(filled):
            line, slot = first_slot(pairs, held_line[c], hashes[c] & np.uint64(255))
            if line >= 0:
                first = np.intp(words[LINE_WORDS * line + LINE_POSITIONS + slot])
                prefetch(tokens, first)
                prefetch(tokens, first + gram_tokens - 1)  # often another cache line
        for c in range(filled):
            position = held_position[c]
            print_ = np.uint8(hashes[c] & np.uint64(255))
            line, slot = first_slot(pairs, held_line[c], hashes[c] & np.uint64(255))
            first = np.int64(0)
            while line >= 0:
                first = np.int64(words[LINE_WORDS * line + LINE_POSITIONS + slot])
                if not _differ(tokens, first, position, gram_tokens):
                    break
                line, slot = next_slot(whole, line, slot + 1, print_)
            if line >= 0:
                _count_one(words, line, slot)
                state = AGAIN if first >= held_begin[c] else COPIED
            elif room == 0:
                return False
            else:
                _put(words, whole, held_line[c], print_, position)
                room -= 1
                state = FIRST
            states[position >> 2] |= np.uint8(state << (2 * (position & 3)))
    return True


@compiled
def _put(words, whole, line, fingerprint, position):
    lines = words.size // LINE_WORDS
    while whole[64 * line + LINE_STATE] & 15 == LINE_GRAMS:
        whole[64 * line + LINE_STATE] |= LINE_OVER
        line += 1
        if line == lines:
            line = 0
    slot = np.int64(whole[64 * line + LINE_STATE] & 15)
    whole[64 * line + slot] = fingerprint
    whole[64 * line + LINE_STATE] += np.uint8(1)
    words[LINE_WORDS * line + LINE_POSITIONS + slot] = position
    _count_one(words, line, slot)


@compiled
def _count_one(words, line, slot):
    """Add one to the five bits that count, up to `FREQUENT`."""
    at, shift = LINE_WORDS * line + 3, 5 * slot
    if slot >= 6:
        at, shift = at + 1, shift - 30
    if words[at] >> np.uint32(shift) & np.uint32(31) != np.uint32(FREQUENT):
        words[at] += np.uint32(1 << shift)


@compiled
def _frequent(words, whole):
    """First positions of the k-grams that occur `FREQUENT` times or more."""
    out = np.empty(1024, dtype=np.uint32)
    count = 0
    for line in range(words.size // LINE_WORDS):
        for slot in range(np.int64(whole[64 * line + LINE_STATE] & 15)):
            at, shift = LINE_WORDS * line + 3, 5 * slot
            if slot >= 6:
                at, shift = at + 1, shift - 30
            if words[at] >> np.uint32(shift) & np.uint32(31) == np.uint32(FREQUENT):
                if count == out.size:
                    grown = np.empty(2 * count, dtype=np.uint32)
                    grown[:count] = out
                    out = grown
                out[count] = words[LINE_WORDS * line + LINE_POSITIONS + slot]
                count += 1
    return out[:count].copy()


@compiled
def place_of(tokens, order, low, high, position, gram_tokens):
    """First place in [low, high) of the suffix array whose k-gram is not below that at a position."""
    while low < high:
        middle = (low + high) >> 1
        below = False
        for j in range(gram_tokens):
            token = tokens[order[middle] + j]  # the end mark 0 stops this before the array does
            if token != tokens[position + j]:
                below = token < tokens[position + j]
                break
        if below:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _sizes(tokens, order, symbol_starts, gram_tokens, positions):
    """How often the k-gram at each of some positions occurs."""
    out = np.empty(positions.size, dtype=np.uint32)
    for i in range(positions.size):
        position = np.int64(positions[i])
        symbol = tokens[position]
        begin, end = np.int64(symbol_starts[symbol]), np.int64(symbol_starts[symbol + 1])
        begin = place_of(tokens, order, begin, end, position, gram_tokens)
        step = FREQUENT
        while begin + step < end and not _differ(tokens, order[begin + step], position, gram_tokens):
            step *= 2
        low, high = begin + step // 2, min(end, begin + step)
        while low < high:
            middle = (low + high) >> 1
            if _differ(tokens, order[middle], position, gram_tokens):
                high = middle
            else:
                low = middle + 1
        out[i] = low - begin
    return out


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
    if gram_tokens == 8:
        return (
            (tokens[one] ^ tokens[other])
            | (tokens[one + 1] ^ tokens[other + 1])
            | (tokens[one + 2] ^ tokens[other + 2])
            | (tokens[one + 3] ^ tokens[other + 3])
            | (tokens[one + 4] ^ tokens[other + 4])
            | (tokens[one + 5] ^ tokens[other + 5])
            | (tokens[one + 6] ^ tokens[other + 6])
            | (tokens[one + 7] ^ tokens[other + 7])
        ) != 0
    bits = np.int32(0)
    for j in range(gram_tokens):
        bits |= tokens[one + j] ^ tokens[other + j]
    return bits != 0


@compiled
def _ask(tokens, order, rank, gram_tokens):
    """Ask for the window that will be compared soon."""
    if rank < order.size:
        prefetch(tokens, np.intp(order[rank]))
        prefetch(tokens, np.intp(order[rank] + gram_tokens - 1))  # often another cache line


@compiled
def _groups_of(tokens, order, gram_tokens, size_min):
    found = np.empty((64, 3), dtype=np.int64)
    count = rank = 0
    while rank < order.size:
        first = position = order[rank]
        end = rank + 1
        _ask(tokens, order, rank + _AHEAD, gram_tokens)
        if _is_whole(tokens, position, gram_tokens):
            while end < order.size and not _differ(tokens, order[end], position, gram_tokens):
                _ask(tokens, order, end + _AHEAD, gram_tokens)
                first = min(first, order[end])
                end += 1
            if end - rank >= size_min:
                if count == found.shape[0]:
                    grown = np.empty((2 * count, 3), dtype=np.int64)
                    grown[:count] = found
                    found = grown
                found[count, 0], found[count, 1], found[count, 2] = rank, end - rank, first
                count += 1
        rank = end
    return found[:count].copy()
