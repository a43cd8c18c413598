"""Near-duplicate documents share one credit: MinHash sketches, bands, and clusters by earliest member.

Sketches are made by `rensa` over shingles of three tokens, which still overlap when every eighth or
tenth word was changed. Two documents with a common band are compared sketch against sketch, and those
that are alike word by word: pages of one template are alike in what is the template's, so only the
surroundings of words that were changed count as evidence. Whole passages that are the same do not, and need
not: the k-gram table settles whose they are. What is decided of two documents depends on these two alone.

Knows nothing of owners or of exact copying, which the k-gram table settles.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import rensa
from numpy.typing import NDArray

from headwater.attribution.spans.memory import compiled
from headwater.attribution.spans.segment import SKETCH_WORDS, Segment
from headwater.attribution.spans.tokens import finish
from headwater.attribution.spans.vocabulary import hashes_by_id

SHINGLE_TOKENS = 3
SKETCHED_TOKENS_MIN = 24
"""A shorter text has no sketch: chance overlap would be too likely."""

BAND_WORDS = 3
BANDS = SKETCH_WORDS // BAND_WORDS
SAME_WORDS_MIN = 56
"""Fewest equal words of two sketches of near-duplicates: a Jaccard similarity of 0.44.

Changing every tenth word leaves about 0.54, changing every eighth 0.45.
"""

EVIDENCE_PERCENT_MIN = 60
"""Share of the shingles about changed words that the earlier document must hold too."""

_ALIKE_MAX = 3  # most similar documents that are compared word by word
_HOLDERS_MAX = 4  # documents noted for one band: a template's bands have thousands
_TRIED_MAX = BANDS * _HOLDERS_MAX

_SEED = 42


def sketch_documents(hashes: NDArray[np.uint64], lengths: NDArray[np.int64]) -> dict[int, NDArray[np.uint32]]:
    """Sketches of documents laid end to end.

    Args:
        hashes: token hashes of all documents.
        lengths: (documents,) tokens of each.

    Returns:
        Document number -> (128,) sketch, for those of at least `SKETCHED_TOKENS_MIN` tokens.
    """
    ends = np.cumsum(lengths)
    long = np.flatnonzero(lengths >= SKETCHED_TOKENS_MIN)
    if not long.size:
        return {}
    shingles, offsets = _shingles(hashes, ends[long] - lengths[long], ends[long])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets, SKETCH_WORDS, _SEED)
    rows = np.array(matrix.to_rows(), dtype=np.uint32)
    return {int(document): rows[i] for i, document in enumerate(long)}


def join_clusters(
    new: Segment, numbers: list[int], others: list[Segment], heads: Mapping[str, str], *, gram_tokens: int
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Put new documents into clusters with those they nearly repeat.

    A document joins the cluster of the earliest document it is an edited copy of. One that is earlier than a
    cluster's head becomes its head.

    Args:
        new: a segment that holds them.
        numbers: which of its documents are new and own words, ascending.
        others: all other segments.
        heads: document -> earliest near-duplicate, so far.
        gram_tokens: k; runs of so many equal words are exact copies and no evidence.

    Returns:
        (changed entries of `heads`, (document, head) of the new documents that joined one).
    """
    table = _Table(new, sorted(numbers))
    reader = _Reader()
    links: dict[str, set[str]] = {}
    at: dict[str, int] = {}
    if table.rows.size:
        for segment in [*others, new]:
            for other, mine in table.similar(segment):
                theirs, ours = reader.read(segment, other), reader.read(new, mine)
                later, earlier = (ours, theirs) if _precedes(segment, other, new, mine) else (theirs, ours)
                if not is_edited(later, earlier, gram_tokens):
                    continue
                one, two = segment.document_id(other), new.document_id(mine)
                at[one], at[two] = segment.registered_at(other), new.registered_at(mine)
                links.setdefault(two, set()).add(one)
    current, changed = dict(heads), dict[str, str]()
    fresh = {new.document_id(number) for number in numbers}
    settled: set[str] = set()

    def order(name: str) -> tuple[int, str]:
        if name not in at:
            for segment in [*others, new]:
                number = segment.find(name)
                if number is not None:
                    at[name] = segment.registered_at(number)
        return at[name], name

    for me in sorted(fresh & (links.keys() | {one for ones in links.values() for one in ones}), key=order):
        settled.add(me)
        similar = [other for other in links.get(me, ()) if other not in fresh or other in settled]
        if not similar:
            continue
        earliest = min(similar, key=order)
        head = current.get(earliest, earliest)
        if order(me) < order(head):
            for member in [head, *(m for m, h in current.items() if h == head)]:
                current[member] = changed[member] = me
        else:
            current[me] = changed[me] = head
    joined = [(me, current[me]) for me in sorted(settled) if me in current]
    return sorted(changed.items()), joined


def _precedes(segment: Segment, document: int, other: Segment, number: int) -> bool:
    """Whether one document was registered before another."""
    if segment is other:
        return document < number
    mine = segment.registered_at(document), segment.document_id(document)
    return mine < (other.registered_at(number), other.document_id(number))


class _Reader:
    """Token hashes of single documents."""

    def __init__(self) -> None:
        self._hashes: dict[int, NDArray[np.uint64]] = {}

    def read(self, segment: Segment, document: int) -> NDArray[np.uint64]:
        """The tokens of one document."""
        held = self._hashes.get(id(segment))
        if held is None:
            symbols = int(segment["symbol_starts"].size) - 2
            held = self._hashes[id(segment)] = hashes_by_id(np.asarray(segment["vocabulary"]), symbols)
        starts = segment["document_starts"]
        tokens = np.asarray(segment["tokens"][int(starts[document]) : int(starts[document + 1]) - 1])
        return held[tokens]


class _Table:
    """Bands of new documents, to be met by others."""

    def __init__(self, new: Segment, numbers: list[int]) -> None:
        self._new = new
        rows = np.asarray(new.arrays["sketch_rows"])[numbers] if numbers else np.empty(0, np.int32)
        self._numbers = np.array(numbers, dtype=np.int64)[rows >= 0]
        self.rows = rows[rows >= 0].astype(np.int64)
        size = 1 << max(4, (2 * self.rows.size * BANDS).bit_length())  # half full at most
        self._keys = np.zeros(size if self.rows.size else 0, dtype=np.uint64)
        self._holders = np.zeros(self._keys.size, dtype=np.int32)
        self._within = np.empty((0, 2), dtype=np.int64)
        if self.rows.size:
            self._within = _fill_bands(self._sketches(new), self.rows, self._keys, self._holders)

    def similar(self, segment: Segment) -> list[tuple[int, int]]:
        """Pairs (document of `segment`, new document) that resemble each other; for the new segment, its own pairs
        (earliest alike, later)."""
        documents = np.flatnonzero(np.asarray(segment.arrays["sketch_rows"]) >= 0)
        pairs = (
            [(int(self._numbers[one]), int(self._numbers[two])) for one, two in self._within]
            if segment is self._new
            else []
        )
        if segment is self._new:
            documents = np.setdiff1d(documents, self._numbers)
        if segment.dead is not None:
            documents = documents[segment.dead[documents] == 0]
        if documents.size:
            rows = np.asarray(segment.arrays["sketch_rows"])[documents].astype(np.int64)
            met = _meet(self._sketches(segment), rows, self._sketches(self._new), self.rows, self._keys, self._holders)
            pairs += [(int(documents[one]), int(self._numbers[two])) for one, two in met]
        return pairs

    @staticmethod
    def _sketches(segment: Segment) -> NDArray[np.uint32]:
        flat = segment.arrays["sketches"]
        return np.ascontiguousarray(flat, dtype=np.uint32).reshape(-1, SKETCH_WORDS)


@compiled
def _shingle(hashes, at):
    return finish(hashes[at] * np.uint64(3) + hashes[at + 1] * np.uint64(5) + hashes[at + 2] * np.uint64(7))


@compiled
def _shingles(hashes, begins, ends):
    total = 0
    for i in range(begins.size):
        total += ends[i] - begins[i] - 2
    out = np.empty(total, dtype=np.uint64)
    offsets = np.zeros(begins.size + 1, dtype=np.uint64)
    at = 0
    for i in range(begins.size):
        for j in range(begins[i], ends[i] - 2):
            out[at] = _shingle(hashes, j)
            at += 1
        offsets[i + 1] = at
    return out, offsets


@compiled
def _band_key(sketches, row, band):
    key = np.uint64(band + 1)
    for i in range(BAND_WORDS):
        key = (key ^ np.uint64(sketches[row, band * BAND_WORDS + i])) * np.uint64(0x9E3779B97F4A7C15)
    return finish(key)


@compiled
def is_edited(later, earlier, gram_tokens):
    """Whether the words of a text are those of another but for changes here and there.

    Args:
        later, earlier: token hashes.
        gram_tokens: k.
    """
    held = _held(earlier)
    count = later.size - 2
    same = np.zeros(max(0, count), dtype=np.uint8)
    for i in range(count):
        same[i] = _holds(held, _shingle(later, i))
    # A shingle is evidence unless it lies k or more words inside a stretch of k equal words.
    evidence = agreeing = begin = 0
    while begin < count:
        if not same[begin]:
            evidence += 1
            begin += 1
            continue
        end = begin
        while end < count and same[end]:
            end += 1
        near = end - begin
        if near + 2 >= gram_tokens:  # only what is near its ends
            near = min(near, (begin > 0) * (gram_tokens - 2) + (end < count) * (gram_tokens - 2))
        evidence += near
        agreeing += near
        begin = end
    return 100 * agreeing >= EVIDENCE_PERCENT_MIN * evidence


@compiled
def held_percent(later, earlier):
    """How many of a hundred shingles of a text an earlier one holds too; nought for a text without one.

    Args:
        later, earlier: token hashes.
    """
    count = later.size - 2
    if count <= 0:
        return 0
    held = _held(earlier)
    same = 0
    for i in range(count):
        same += _holds(held, _shingle(later, i))
    return 100 * same // count


@compiled
def _held(hashes):
    """A bit for each shingle of a text, by hash; a power of two of bits, at least sixteen a shingle."""
    size = 64
    while size < 16 * hashes.size:
        size *= 2
    held = np.zeros(size >> 3, dtype=np.uint8)
    for i in range(hashes.size - 2):
        bit = np.intp(_shingle(hashes, i) & np.uint64(size - 1))
        held[bit >> 3] |= np.uint8(1 << (bit & 7))
    return held


@compiled
def _holds(held, shingle):
    bit = np.intp(shingle & np.uint64(8 * held.size - 1))
    return held[bit >> 3] >> (bit & 7) & 1


@compiled
def _sameness(one, row, other, other_row):
    """How many words of two sketches are equal."""
    same = 0
    for i in range(SKETCH_WORDS):
        same += one[row, i] == other[other_row, i]
    return same


@compiled
def _fill_bands(sketches, rows, keys, holders):
    """Enter the bands of all rows; returns (earlier row, row) for the most similar ones among those alike."""
    mask = np.uint64(keys.size - 1)
    pairs = np.empty((1024, 2), dtype=np.int64)
    count = 0
    tried = np.empty(_TRIED_MAX, dtype=np.int64)
    best = np.empty((_ALIKE_MAX, 2), dtype=np.int64)  # equal words, row
    for n in range(rows.size):
        tries = kept = 0
        for band in range(BANDS):
            key = _band_key(sketches, rows[n], band)
            slot, seen = key & mask, 0
            while keys[slot] != np.uint64(0):
                if keys[slot] == key:
                    seen += 1
                    earlier = np.int64(holders[slot])
                    if earlier != n and not _among(tried, tries, earlier):
                        tried[tries] = earlier
                        tries += 1
                        kept = _keep(best, kept, _sameness(sketches, rows[earlier], sketches, rows[n]), earlier)
                    if seen == _HOLDERS_MAX:
                        break
                slot = (slot + np.uint64(1)) & mask
            if seen < _HOLDERS_MAX:
                keys[slot], holders[slot] = key, n
        if count + kept > pairs.shape[0]:
            grown = np.empty((2 * pairs.shape[0], 2), dtype=np.int64)
            grown[:count] = pairs[:count]
            pairs = grown
        for i in range(kept):
            pairs[count, 0], pairs[count, 1] = best[i, 1], n
            count += 1
    return pairs[:count].copy()


@compiled
def _keep(best, kept, same, row):
    """Keep a row among the most similar ones, earlier ones first among equals."""
    if same < SAME_WORDS_MIN:
        return kept
    at = kept
    while at > 0 and (best[at - 1, 0] < same or (best[at - 1, 0] == same and best[at - 1, 1] > row)):
        if at < best.shape[0]:
            best[at] = best[at - 1]
        at -= 1
    if at < best.shape[0]:
        best[at, 0], best[at, 1] = same, row
    return min(kept + 1, best.shape[0])


@compiled
def _meet(sketches, rows, new_sketches, new_rows, keys, holders):
    """(row, new row) for the new rows most similar to each row among those alike."""
    mask = np.uint64(keys.size - 1)
    pairs = np.empty((1024, 2), dtype=np.int64)
    count = 0
    tried = np.empty(_TRIED_MAX, dtype=np.int64)
    best = np.empty((_ALIKE_MAX, 2), dtype=np.int64)
    for n in range(rows.size):
        tries = kept = 0
        for band in range(BANDS):
            key = _band_key(sketches, rows[n], band)
            slot, seen = key & mask, 0
            while keys[slot] != np.uint64(0) and seen < _HOLDERS_MAX:
                if keys[slot] == key:
                    seen += 1
                    holder = np.int64(holders[slot])
                    if not _among(tried, tries, holder):
                        tried[tries] = holder
                        tries += 1
                        kept = _keep(best, kept, _sameness(sketches, rows[n], new_sketches, new_rows[holder]), holder)
                slot = (slot + np.uint64(1)) & mask
        if count + kept > pairs.shape[0]:
            grown = np.empty((2 * pairs.shape[0], 2), dtype=np.int64)
            grown[:count] = pairs[:count]
            pairs = grown
        for i in range(kept):
            pairs[count, 0], pairs[count, 1] = n, best[i, 1]
            count += 1
    return pairs[:count].copy()


@compiled
def _among(tried, tries, wanted):
    for i in range(tries):  # noqa: SIM110 - compiled code has no any()
        if tried[i] == wanted:
            return True
    return False
