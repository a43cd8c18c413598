"""Which of many texts a new one nearly repeats: sketches in memory, found by their bands, confirmed word by word.

The sketches are `clusters`'s, cut to one byte a word: 128 bytes a text and about as much again for the bands, so a
million texts take some 400 MB. A text is found when a band agrees and enough words of the two sketches do; whether it
is a copy is then decided on the words themselves. Knows nothing of where texts and sketches are kept.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from headwater.attribution.spans.clusters import (
    BAND_WORDS,
    BANDS,
    SAME_WORDS_MIN,
    held_percent,
    is_edited,
    sketch_documents,
)
from headwater.attribution.spans.memory import compiled
from headwater.attribution.spans.segment import SKETCH_WORDS
from headwater.attribution.spans.tokens import finish, tokenise

GRAM_TOKENS: Final = 8
"""Equal runs of so many words say who was first, not that a text was edited."""

HELD_PERCENT_MIN: Final = 80
"""A text is a copy, whatever was added, when the earlier one holds so much of its three-word runs."""

FOUND_MAX: Final = 3
"""Most similar earlier texts that are given for a new one."""

_HOLDERS_MAX = 4  # texts noted for one band: a template's bands have thousands
_LOAD = 0.6


def sketches_of(texts: Sequence[bytes]) -> dict[int, bytes]:
    """Place in `texts` -> sketch (128 bytes), for those long enough to have one."""
    hashes = [tokenise(text).hashes for text in texts]
    lengths = np.array([one.size for one in hashes], dtype=np.int64)
    rows = sketch_documents(np.concatenate([*hashes, np.empty(0, np.uint64)]), lengths)
    return {place: row.astype(np.uint8).tobytes() for place, row in rows.items()}


def nearly_repeats(later: bytes, earlier: bytes) -> bool:
    """Whether a text is an earlier one with changes here and there, or holds little else than parts of it."""
    new, old = tokenise(later).hashes, tokenise(earlier).hashes
    return held_percent(new, old) >= HELD_PERCENT_MIN or bool(is_edited(new, old, GRAM_TOKENS))


class SketchTable:
    """Sketches in the order they were added, by their bands."""

    def __init__(self) -> None:
        self._sketches = np.empty((1024, SKETCH_WORDS), dtype=np.uint8)
        self._table = np.zeros(1 << 17, dtype=np.uint32)  # row + 1
        self._size = self._used = 0

    def __len__(self) -> int:
        return self._size

    def add(self, sketches: Sequence[bytes]) -> list[tuple[int, ...]]:
        """Add sketches; for each, the rows of the most similar earlier ones, best first."""
        fresh = np.frombuffer(b"".join(sketches), dtype=np.uint8).reshape(-1, SKETCH_WORDS)
        begin, end = self._size, self._size + fresh.shape[0]
        self._make_room(end)
        self._sketches[begin:end] = fresh
        found = np.full((fresh.shape[0], FOUND_MAX), -1, dtype=np.int64)
        self._used += _enter(self._sketches, begin, end, self._table, found)
        self._size = end
        return [tuple(int(row) for row in rows if row >= 0) for rows in found]

    def _make_room(self, rows: int) -> None:
        if rows > self._sketches.shape[0]:
            grown = np.empty((max(rows, 2 * self._sketches.shape[0]), SKETCH_WORDS), dtype=np.uint8)
            grown[: self._size] = self._sketches[: self._size]
            self._sketches = grown
        needed = self._used + (rows - self._size) * BANDS
        if needed > _LOAD * self._table.size:
            size = self._table.size
            while needed > _LOAD / 2 * size:
                size *= 2
            self._table = np.zeros(size, dtype=np.uint32)
            nothing = np.empty((0, FOUND_MAX), dtype=np.int64)
            self._used = _enter(self._sketches, 0, self._size, self._table, nothing)


@compiled
def _slot(sketches, row, band, mask):
    key = np.uint64(band + 1)
    for i in range(BAND_WORDS):
        key = (key ^ np.uint64(sketches[row, band * BAND_WORDS + i])) * np.uint64(0x9E3779B97F4A7C15)
    return finish(key) & mask


@compiled
def _same_band(sketches, one, other, band):
    for i in range(band * BAND_WORDS, (band + 1) * BAND_WORDS):  # noqa: SIM110 - compiled code has no all()
        if sketches[one, i] != sketches[other, i]:
            return False
    return True


@compiled
def _enter(sketches, begin, end, table, found):
    """Enter rows begin..end-1 and, unless `found` is empty, note the rows most similar to each; gives slots taken."""
    mask = np.uint64(table.size - 1)
    tried = np.empty(BANDS * _HOLDERS_MAX, dtype=np.int64)
    sameness = np.empty(FOUND_MAX, dtype=np.int64)
    taken = 0
    for row in range(begin, end):
        tries = 0
        sameness[:] = 0
        for band in range(BANDS):
            slot, holders = _slot(sketches, row, band, mask), 0
            while table[slot] != np.uint32(0):
                other = np.int64(table[slot]) - 1
                if other != row and _same_band(sketches, row, other, band):
                    holders += 1
                    known = found.shape[0] == 0
                    for i in range(tries):
                        known = known or tried[i] == other
                    if not known:
                        tried[tries] = other
                        tries += 1
                        _note(sketches, row, other, found[row - begin], sameness)
                    if holders == _HOLDERS_MAX:
                        break
                slot = (slot + np.uint64(1)) & mask
            if holders < _HOLDERS_MAX:
                while table[slot] != np.uint32(0):
                    slot = (slot + np.uint64(1)) & mask
                table[slot] = np.uint32(row + 1)
                taken += 1
    return taken


@compiled
def _note(sketches, row, other, best, sameness):
    same = 0
    for i in range(SKETCH_WORDS):
        same += sketches[row, i] == sketches[other, i]
    if same < SAME_WORDS_MIN:
        return
    at = best.size
    while at > 0 and (sameness[at - 1] < same or (sameness[at - 1] == same and best[at - 1] > other)):
        at -= 1
    if at == best.size:
        return
    for i in range(best.size - 1, at, -1):
        best[i], sameness[i] = best[i - 1], sameness[i - 1]
    best[at], sameness[at] = other, same
