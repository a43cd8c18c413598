"""Exact search in the suffix array: occurrences of any phrase, and all maximal matches of a text.

The k-gram table gives the part of the suffix array to search for a phrase of k tokens or more; a
shorter one starts from its first token's part. Knows nothing of owners.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numba.np.numpy_support import carray

from headwater.attribution.spans.finding import document_of, gram_place, token_ids
from headwater.attribution.spans.grams import LINE_POSITIONS, LINE_WORDS, gram_hash, line_of, next_slot, occurrences_at
from headwater.attribution.spans.memory import compiled, i32_at, prefetch, u8_at, u32_at, u64_at
from headwater.attribution.spans.segment import (
    FENCE_PLACES,
    ROW_DEAD,
    ROW_DOCUMENT_STARTS,
    ROW_DOCUMENTS,
    ROW_FENCES,
    ROW_FREQUENT,
    ROW_FREQUENT_COUNT,
    ROW_LINE_COUNT,
    ROW_LINES,
    ROW_ORDER,
    ROW_SIZE,
    ROW_STAIRS,
    ROW_SYMBOL_STARTS,
    ROW_SYMBOLS,
    ROW_TOKENS,
)
from headwater.attribution.spans.tracing import SETTING_GRAM_TOKENS, SETTING_WEIGHTS, tokens_of

_LOCKED = 64  # phrases searched in lock step


@compiled
def count_texts(texts, offsets, rows, settings):
    """Occurrences of the words of each of several texts, in order and next to each other: (n,) int64.

    Args:
        texts: all texts end to end.
        offsets: (n + 1,) where each begins.
        rows, settings: as everywhere.
    """
    out = np.zeros(offsets.size - 1, dtype=np.int64)
    block = min(_LOCKED, out.size)
    low, high = np.empty(block, dtype=np.int64), np.empty(block, dtype=np.int64)
    begins = np.empty(block + 1, dtype=np.int64)
    for first in range(0, out.size, _LOCKED):
        last = min(first + _LOCKED, out.size)
        hashes, places, _ends = tokens_of(texts[offsets[first] : offsets[last]], settings)
        ids = np.empty(hashes.size, dtype=np.int32)
        at = 0
        for n in range(first, last):
            begins[n - first] = at
            while at < hashes.size and places[at] < offsets[n + 1] - offsets[first]:
                at += 1
        begins[last - first] = at
        for segment in range(rows.shape[0]):
            row = rows[segment]
            token_ids(hashes, hashes.size, row, ids)
            _locate(row, ids, begins, last - first, low, high)
            for n in range(last - first):
                out[first + n] += _living_in(row, low[n], high[n])
    return out


@compiled
def count_text(text, rows, settings):
    """Occurrences of the words of one text."""
    offsets = np.zeros(2, dtype=np.int64)
    offsets[1] = text.size
    return count_texts(text, offsets, rows, settings)[0]


@compiled
def _locate(row, ids, begins, phrases, low, high):
    """Find [low, high) of many phrases in the suffix array.

    The searches for where they begin, first between the fences and then between two of them, go on in lock
    step, one step of each in turn, so that their reads overlap; from there it is seldom far to the end.
    """
    places = row[ROW_SIZE]
    fence_count = (places + FENCE_PLACES - 1) // FENCE_PLACES
    fences = carray(u64_at(row[ROW_FENCES]), 2 * fence_count)
    stairs = carray(u64_at(row[ROW_STAIRS]), 2 * ((fence_count + FENCE_PLACES - 1) // FENCE_PLACES))
    symbols = carray(i32_at(row[ROW_SYMBOL_STARTS]), row[ROW_SYMBOLS] + 1)
    order = carray(i32_at(row[ROW_ORDER]), places)
    tokens = carray(i32_at(row[ROW_TOKENS]), places)
    keys = np.zeros((phrases, 2), dtype=np.uint64)  # the first four tokens of each phrase
    left, right = np.zeros(phrases, dtype=np.int64), np.zeros(phrases, dtype=np.int64)
    step = FENCE_PLACES * FENCE_PLACES
    for n in range(phrases):
        low[n] = high[n] = 0
        begin, length = begins[n], begins[n + 1] - begins[n]
        known = length > 0
        for i in range(length):
            known = known and ids[begin + i] != 0
        if known:
            low[n], high[n] = symbols[ids[begin]], symbols[ids[begin] + 1]
            for i in range(min(4, length)):
                keys[n, i >> 1] |= np.uint64(ids[begin + i]) << np.uint64(32 - 32 * (i & 1))
            # Among stairs, which are few and stay near, then among the fences between two of them.
            left[n], right[n] = (low[n] + step - 1) // step, (high[n] + step - 1) // step
            while left[n] < right[n]:
                middle = (left[n] + right[n]) >> 1
                one = stairs[2 * middle]
                if one < keys[n, 0] or (one == keys[n, 0] and stairs[2 * middle + 1] < keys[n, 1]):
                    left[n] = middle + 1
                else:
                    right[n] = middle
            right[n] = min(left[n] * FENCE_PLACES, (high[n] + FENCE_PLACES - 1) // FENCE_PLACES)
            left[n] = max((left[n] - 1) * FENCE_PLACES, (low[n] + FENCE_PLACES - 1) // FENCE_PLACES)
            for fence in range(left[n], right[n], 4):
                prefetch(fences, np.intp(2 * fence))
    for n in range(phrases):
        while left[n] < right[n]:
            middle = (left[n] + right[n]) >> 1
            one = fences[2 * middle]
            if one < keys[n, 0] or (one == keys[n, 0] and fences[2 * middle + 1] < keys[n, 1]):
                left[n] = middle + 1
            else:
                right[n] = middle
    for n in range(phrases):
        if low[n] < high[n]:
            fence, equal = left[n], 0
            if begins[n + 1] - begins[n] > 4:  # among equal fences four tokens do not tell where it begins
                while (fence + equal) * FENCE_PLACES < high[n] and (
                    fences[2 * (fence + equal)] == keys[n, 0] and fences[2 * (fence + equal) + 1] == keys[n, 1]
                ):
                    equal = 2 * equal + 1
            left[n] = max(low[n], (fence - 1) * FENCE_PLACES)
            right[n] = min(high[n], (fence + equal) * FENCE_PLACES)
            prefetch(order, np.intp(min(left[n] + right[n], 2 * places - 1)) >> 1)
    if phrases == 1 and right[0] - left[0] <= FENCE_PLACES:  # nobody to take turns with: ask for all there is
        for rank in range(left[0], right[0], 16):
            prefetch(order, np.intp(rank))
        for rank in range(left[0], right[0]):
            prefetch(tokens, np.intp(order[rank]))
    position = np.zeros(phrases, dtype=np.int64)
    going = True
    while going:
        going = False
        for n in range(phrases):
            if left[n] < right[n]:
                position[n] = order[(left[n] + right[n]) >> 1]
                prefetch(tokens, np.intp(position[n]))
        for n in range(phrases):
            if left[n] >= right[n]:
                continue
            middle = (left[n] + right[n]) >> 1
            if _compare(tokens, position[n], ids, begins[n], begins[n + 1]) < 0:
                left[n] = middle + 1
            else:
                right[n] = middle
            if left[n] < right[n]:
                prefetch(order, np.intp((left[n] + right[n]) >> 1))
                going = True
    for n in range(phrases):
        if left[n] + 1 < high[n]:
            prefetch(tokens, np.intp(order[left[n] + 1]))
    for n in range(phrases):
        if low[n] < high[n]:
            low[n], high[n] = left[n], _end(tokens, order, ids, begins[n], begins[n + 1], left[n], high[n])


@compiled
def _compare(tokens, position, ids, begin, end):
    """Below, at or above 0 as the suffix is below, begins with or is above a phrase."""
    for i in range(end - begin):
        token = tokens[position + i]  # the end mark 0 stops this before the array does
        if token != ids[begin + i]:
            return -1 if token < ids[begin + i] else 1
    return 0


@compiled
def _end(tokens, order, ids, begin, end, low, high):
    """First place from `low` on whose suffix does not begin with the phrase, by doubling and then halving steps."""
    step = 1
    while low + step - 1 < high and _compare(tokens, order[low + step - 1], ids, begin, end) == 0:
        step *= 2
    left, right = low + step // 2, min(high, low + step - 1)
    while left < right:
        middle = (left + right) >> 1
        if _compare(tokens, order[middle], ids, begin, end) == 0:
            left = middle + 1
        else:
            right = middle
    return left


@compiled
def maximal_matches(text, rows, settings, least):
    """All maximal matches of at least `least` tokens: (matches, 4) int64 start, end, tokens, occurrences."""
    hashes, starts, ends = tokens_of(text, settings)
    count = hashes.size
    ids = np.empty(count, dtype=np.int32)
    longest = np.zeros(count, dtype=np.int64)
    occurrences = np.zeros(count, dtype=np.int64)
    for segment in range(rows.shape[0]):
        row = rows[segment]
        token_ids(hashes, count, row, ids)
        unknown = count  # first token at or after i that this segment does not hold
        for i in range(count - 1, -1, -1):
            if ids[i] == 0:
                unknown = i
            if unknown - i < max(least, longest[i]):
                continue
            length, seen = _longest(row, ids, i, unknown - i, least, settings)
            if length > longest[i]:
                longest[i], occurrences[i] = length, seen
            elif length == longest[i]:
                occurrences[i] += seen
    kept = 0
    for i in range(count):
        if longest[i] >= least and (i == 0 or longest[i - 1] < longest[i] + 1):
            kept += 1
    out = np.empty((kept, 4), dtype=np.int64)
    kept = 0
    for i in range(count):
        if longest[i] >= least and (i == 0 or longest[i - 1] < longest[i] + 1):
            out[kept, 0], out[kept, 1] = starts[i], ends[i + longest[i] - 1]
            out[kept, 2], out[kept, 3] = longest[i], occurrences[i]
            kept += 1
    return out


@compiled
def _longest(row, ids, begin, room, least, settings):
    """Longest match (up to `room` tokens) of the text from `begin` in living documents, and its occurrences."""
    low, high = _phrase(row, ids, begin, min(least, room), settings)
    seen = _living_in(row, low, high)
    if seen == 0:
        return 0, 0
    length = min(least, room)
    if row[ROW_DEAD] == 0:
        # The best match is a neighbour of where the text would stand among these suffixes.
        at = _bound(row, ids, begin, room, low, high, length, False)
        reach = length
        if at < high:
            reach = max(reach, _common(row, ids, begin, room, at, length))
        if at > low:
            reach = max(reach, _common(row, ids, begin, room, at - 1, length))
        if reach > length:
            first = _bound(row, ids, begin, reach, low, high, length, False)
            seen = _bound(row, ids, begin, reach, first, high, length, True) - first
        return reach, seen
    while length < room:  # with removed documents the neighbour may not count: narrow token by token
        next_low = _bound(row, ids, begin, length + 1, low, high, length, False)
        next_high = _bound(row, ids, begin, length + 1, next_low, high, length, True)
        living = _living_in(row, next_low, next_high)
        if living == 0:
            break
        low, high, seen = next_low, next_high, living
        length += 1
    return length, seen


@compiled
def _phrase(row, ids, begin, length, settings):
    """Range of the suffix array whose suffixes begin with a phrase of known tokens."""
    gram_tokens = settings[SETTING_GRAM_TOKENS]
    if length >= gram_tokens:
        low, high = _gram_range(row, ids, begin, settings)
        if high - low <= 1 and (low == high or _common(row, ids, begin, length, low, gram_tokens) < length):
            return low, low
        skip = gram_tokens
    else:
        symbols = carray(i32_at(row[ROW_SYMBOL_STARTS]), row[ROW_SYMBOLS] + 1)
        low, high = np.int64(symbols[ids[begin]]), np.int64(symbols[ids[begin] + 1])
        skip = 1
    if length == skip or low == high:
        return low, high
    low = _bound(row, ids, begin, length, low, high, skip, False)
    return low, _bound(row, ids, begin, length, low, high, skip, True)


@compiled
def _gram_range(row, ids, begin, settings):
    """Range of the suffix array of the k-gram at `begin`, or an empty one."""
    lines = row[ROW_LINE_COUNT]
    if lines == 0:
        return np.int64(0), np.int64(0)
    gram_tokens = settings[SETTING_GRAM_TOKENS]
    weights = carray(u64_at(settings[SETTING_WEIGHTS]), 32)
    tokens = carray(i32_at(row[ROW_TOKENS]), row[ROW_SIZE])
    words = carray(u32_at(row[ROW_LINES]), LINE_WORDS * lines)
    whole = carray(u8_at(row[ROW_LINES]), 64 * lines)
    frequent = carray(u32_at(row[ROW_FREQUENT]), 2 * row[ROW_FREQUENT_COUNT])
    hashed = gram_hash(ids, begin, gram_tokens, weights)
    fingerprint = np.uint8(hashed & np.uint64(255))
    line, slot = next_slot(whole, line_of(hashed, lines), 0, fingerprint)
    while line >= 0:
        first = np.int64(words[LINE_WORDS * line + LINE_POSITIONS + slot])
        same = True
        for j in range(gram_tokens):
            if tokens[first + j] != ids[begin + j]:
                same = False
                break
        if same:
            low = gram_place(row, first, gram_tokens)
            return low, low + occurrences_at(words, frequent, line, slot)
        line, slot = next_slot(whole, line, slot + 1, fingerprint)
    return np.int64(0), np.int64(0)


@compiled
def _bound(row, ids, begin, length, low, high, skip, upper):
    """First place in [low, high) whose suffix is not below the phrase (`upper`: is above it).

    All suffixes in the range begin with the first `skip` tokens of the phrase.
    """
    order = carray(i32_at(row[ROW_ORDER]), row[ROW_SIZE])
    tokens = carray(i32_at(row[ROW_TOKENS]), row[ROW_SIZE])
    while low < high:
        middle = (low + high) >> 1
        position = np.int64(order[middle])
        below = upper  # a suffix that begins with the phrase is below its upper bound
        for j in range(skip, length):
            token = tokens[position + j]  # the end mark 0 stops this before the array does
            if token != ids[begin + j]:
                below = token < ids[begin + j]
                break
        if below:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _common(row, ids, begin, room, rank, known):
    """Tokens that the suffix at `rank` shares with the text, at most `room`; the first `known` are shared."""
    tokens = carray(i32_at(row[ROW_TOKENS]), row[ROW_SIZE])
    position = np.int64(carray(i32_at(row[ROW_ORDER]), row[ROW_SIZE])[rank])
    length = known
    while length < room and tokens[position + length] == ids[begin + length]:
        length += 1
    return length


@compiled
def _living_in(row, low, high):
    """How many suffixes of a range lie in documents that were not removed."""
    if row[ROW_DEAD] == 0:
        return high - low
    order = carray(i32_at(row[ROW_ORDER]), row[ROW_SIZE])
    starts = carray(i32_at(row[ROW_DOCUMENT_STARTS]), row[ROW_DOCUMENTS] + 1)
    dead = carray(u8_at(row[ROW_DEAD]), row[ROW_DOCUMENTS])
    living = 0
    for rank in range(low, high):
        if not dead[document_of(starts, row[ROW_DOCUMENTS], np.int64(order[rank]))]:
            living += 1
    return living
