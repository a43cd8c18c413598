"""Suffix arrays of integer strings by induced sorting, in linear time whatever the input.

Source: Nong, Zhang, Chan, "Linear Suffix Array Construction by Almost Pure Induced-Sorting", 2009.
What differs: there is no sentinel character, one routine serves both inductions, the sign bit of an
entry says that its predecessor belongs to the other scan, and the random reads of each scan are
asked for ahead of time, since waiting for memory is what this costs. Recursion is a Python call per
level (a handful), so one compiled specialisation serves all.

Knows nothing of text: symbols are int32 in [0, alphabet).
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.memory import compiled, prefetch
from headwater.core.errors import InvalidError

SYMBOLS_MAX = 2**31 - 64
"""Longest string; positions are int32."""

_AHEAD = 64  # entries between asking for a symbol and needing it


def suffix_array(symbols: NDArray[np.int32], alphabet: int) -> NDArray[np.int32]:
    """The start positions of all suffixes in lexicographic order; a shorter suffix sorts before its extensions.

    Args:
        symbols: (n,) int32 in [0, alphabet), contiguous.
        alphabet: number of distinct symbols there may be.

    Returns:
        (n,) int32 permutation of 0..n-1. Beside it and `symbols`, about 3 bytes a symbol are used while sorting.

    Raises:
        InvalidError: longer than int32 can number.

    >>> suffix_array(np.array([2, 1, 3, 1, 3, 1], dtype=np.int32), 4).tolist()
    [5, 3, 1, 0, 4, 2]
    """
    if symbols.size > SYMBOLS_MAX:
        raise InvalidError(
            f"{symbols.size} symbols do not fit one suffix array (max {SYMBOLS_MAX})",
            code="segment_too_large",
            fix="split the text into more segments",
        )
    order = np.empty(symbols.size, dtype=np.int32)
    _sort(symbols, alphabet, order)
    return order


def _sort(symbols: NDArray[np.int32], alphabet: int, order: NDArray[np.int32]) -> None:
    size = symbols.size
    if size <= 1:
        order[:] = 0
        return
    counts = np.zeros(alphabet, dtype=np.int32)
    cursor = np.empty(alphabet, dtype=np.int32)
    landmarks = np.zeros((size >> 3) + 1, dtype=np.uint8)  # bit i: a leftmost S-type suffix starts at i
    count = _mark(symbols, counts, landmarks)
    _place_unsorted(symbols, counts, cursor, landmarks, order)
    _induce(symbols, counts, cursor, order)
    if count <= 1:
        return  # the order of at most one landmark is known, so that scan was the final one
    names = _name(symbols, landmarks, order, count)
    reduced = order[size - count :]
    if names < count:
        del counts, cursor  # the recursion needs the room more
        _sort(reduced, names, order[:count])
        counts = np.zeros(alphabet, dtype=np.int32)
        cursor = np.empty(alphabet, dtype=np.int32)
        _count(symbols, counts)
    else:
        _invert(reduced, order[:count])
    _positions(landmarks, size, reduced)
    _place_sorted(symbols, counts, cursor, order, count)
    _induce(symbols, counts, cursor, order)


@compiled
def _count(symbols, counts):
    for i in range(symbols.size):
        counts[symbols[i]] += 1


@compiled
def _mark(symbols, counts, landmarks):
    """Count symbols and set the bit of every S-type suffix that follows an L-type one; returns how many."""
    found = 0
    later_is_s = False  # the last suffix is larger than the empty one that follows it: L-type
    later = symbols[symbols.size - 1]
    counts[later] += 1
    for i in range(symbols.size - 2, -1, -1):
        symbol = symbols[i]
        counts[symbol] += 1
        is_s = symbol < later or (symbol == later and later_is_s)
        if later_is_s and not is_s:
            landmarks[(i + 1) >> 3] |= np.uint8(1 << ((i + 1) & 7))
            found += 1
        later, later_is_s = symbol, is_s
    return found


@compiled
def _bucket_ends(counts, cursor):
    total = 0
    for symbol in range(counts.size):
        total += counts[symbol]
        cursor[symbol] = total


@compiled
def _place_unsorted(symbols, counts, cursor, landmarks, order):
    _bucket_ends(counts, cursor)
    order[:] = 0
    for byte in range(landmarks.size):
        bits = landmarks[byte]
        if bits:
            for bit in range(8):
                if bits >> bit & 1:
                    i = byte * 8 + bit
                    cursor[symbols[i]] -= 1
                    order[cursor[symbols[i]]] = i


@compiled
def _place_sorted(symbols, counts, cursor, order, count):
    """Move the landmarks, sorted in order[:count] as indexes into order[-count:], to the ends of their buckets."""
    size = symbols.size
    for i in range(count):
        if i + _AHEAD < count:
            prefetch(order, np.intp(size - count + order[i + _AHEAD]))
        order[i] = order[size - count + order[i]]
    order[count:] = 0
    _bucket_ends(counts, cursor)
    # From the largest down, a landmark never lands below its own place, so nothing unread is overwritten.
    for i in range(count - 1, -1, -1):
        if i >= _AHEAD:
            prefetch(symbols, np.intp(order[i - _AHEAD]))
        position = order[i]
        order[i] = 0
        symbol = symbols[position]
        cursor[symbol] -= 1
        order[cursor[symbol]] = position


@compiled
def _induce(symbols, counts, cursor, order):
    """Sort all suffixes from the landmarks in `order`, where 0 marks an empty place.

    A negative entry ~j stands for j and says that the scan in hand has nothing to induce from it.
    """
    size = symbols.size
    total = 0
    for symbol in range(counts.size):
        cursor[symbol] = total
        total += counts[symbol]
    # L-type suffixes, left to right; the last suffix is one, and follows the empty suffix.
    last = size - 1
    symbol = symbols[last]
    order[cursor[symbol]] = ~last if symbols[last - 1] < symbol else last
    cursor[symbol] += 1
    for i in range(size):
        if i + _AHEAD < size:
            ahead = order[i + _AHEAD]
            if ahead > 0:
                prefetch(symbols, np.intp(ahead - 1))
            near = order[i + (_AHEAD >> 1)]
            if near > 0:
                prefetch(cursor, np.intp(symbols[near - 1]))
        j = order[i]
        order[i] = ~j
        if j > 0:
            j -= 1
            symbol = symbols[j]
            slot = cursor[symbol]
            cursor[symbol] = slot + 1
            order[slot] = ~j if j > 0 and symbols[j - 1] < symbol else j
    # S-type suffixes, right to left; they overwrite the landmarks that seeded the first scan.
    total = 0
    for symbol in range(counts.size):
        total += counts[symbol]
        cursor[symbol] = total
    for i in range(size - 1, -1, -1):
        if i >= _AHEAD:
            ahead = order[i - _AHEAD]
            if ahead > 0:
                prefetch(symbols, np.intp(ahead - 1))
            near = order[i - (_AHEAD >> 1)]
            if near > 0:
                prefetch(cursor, np.intp(symbols[near - 1]))
        j = order[i]
        if j > 0:
            j -= 1
            symbol = symbols[j]
            slot = cursor[symbol] - 1
            cursor[symbol] = slot
            order[slot] = ~j if j == 0 or symbols[j - 1] > symbol else j
        else:
            order[i] = ~j


@compiled
def _name(symbols, landmarks, order, count):
    """Name landmark substrings by rank and write the names, in text order, to order[-count:]; returns how many."""
    size = symbols.size
    kept = 0
    for i in range(size):
        if i + _AHEAD < size:
            prefetch(landmarks, np.intp(order[i + _AHEAD] >> 3))
        position = order[i]
        if landmarks[position >> 3] >> (position & 7) & 1:
            order[kept] = position
            kept += 1
    order[count:] = -1
    name, before = -1, -1
    for i in range(count):
        if i + _AHEAD < count:
            ahead = order[i + _AHEAD]
            prefetch(symbols, np.intp(ahead))
            prefetch(symbols, np.intp(min(ahead + 8, size - 1)))
            prefetch(landmarks, np.intp(ahead >> 3))
            prefetch(order, np.intp(count + (ahead >> 1)))
        position = order[i]
        if before < 0 or _differ(symbols, landmarks, before, position):
            name += 1
        before = position
        order[count + (position >> 1)] = name  # landmarks are never neighbours, so places do not clash
    at = size - 1
    for i in range(size - 1, count - 1, -1):
        if order[i] >= 0:
            order[at] = order[i]
            at -= 1
    return name + 1


@compiled
def _differ(symbols, landmarks, one, other):
    """Whether two landmark substrings (up to and with the next landmark) differ."""
    size = symbols.size
    j = 0
    while True:
        a, b = one + j, other + j
        if a >= size or b >= size or symbols[a] != symbols[b]:
            return True
        if j > 0:
            a_ends = landmarks[a >> 3] >> (a & 7) & 1
            b_ends = landmarks[b >> 3] >> (b & 7) & 1
            if a_ends or b_ends:
                return a_ends != b_ends
        j += 1


@compiled
def _invert(names, order):
    for i in range(names.size):
        order[names[i]] = i


@compiled
def _positions(landmarks, size, out):
    """Write the landmarks' positions in text order."""
    at = 0
    for byte in range(landmarks.size):
        bits = landmarks[byte]
        if bits:
            for bit in range(8):
                if bits >> bit & 1 and byte * 8 + bit < size:
                    out[at] = byte * 8 + bit
                    at += 1
