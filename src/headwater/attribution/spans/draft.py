"""Collects documents and turns them into a segment.

Texts are read once, a chunk at a time; what is kept of a token is its id and its distance from the
token before. Segments can be put in again (a merge), without the documents that were removed.
Invariant: the segment depends on the set of documents only up to the numbering of its vocabulary.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.clusters import sketch_documents
from headwater.attribution.spans.grams import PADDING, gram_table
from headwater.attribution.spans.memory import compiled, prefetch
from headwater.attribution.spans.segment import (
    ANCHOR_TOKENS,
    ARRAYS,
    DELTA_LONG,
    FENCE_PLACES,
    NO_OWNER,
    Segment,
    id_hash,
)
from headwater.attribution.spans.suffix_array import SYMBOLS_MAX, suffix_array
from headwater.attribution.spans.tokens import fold_arrays, scan
from headwater.attribution.spans.values import Document
from headwater.attribution.spans.vocabulary import Vocabulary, hashes_by_id, intern
from headwater.core.errors import InvalidError

_CHUNK_TOKENS = 1 << 13  # what is known of them while they are read stays in the nearest cache
_BLOCK_TOKENS = 1 << 22
_SKETCH_BATCH_TOKENS = 1 << 17


@dataclass(frozen=True, slots=True)
class _Row:
    """One document of a draft."""

    id: str
    owner: str | None
    registered_at: int
    size_bytes: int
    digest: bytes
    sketch: NDArray[np.uint32] | None


@dataclass(slots=True)
class _Block:
    """A stretch of tokens: ids, distances, and how many there are."""

    ids: NDArray[np.int32]
    deltas: NDArray[np.uint8]
    used: int = 0


class Draft:
    """Documents on their way into one segment."""

    def __init__(self, *, gram_tokens: int) -> None:
        self.gram_tokens = gram_tokens
        self.tokens = 0  # with end marks
        self.size_bytes = 0
        self._vocabulary = Vocabulary()
        self._rows: list[_Row] = []
        self._starts = [0]
        self._blocks: list[_Block] = []
        self._room = 0  # tokens that still fit the last block
        self._long_at: list[NDArray[np.int64]] = []
        self._long_delta: list[NDArray[np.int64]] = []
        self._unsketched: list[NDArray[np.uint64]] = []
        self._unsketched_rows: list[int] = []
        self._unsketched_tokens = 0
        room = _CHUNK_TOKENS + 32
        self._scratch = np.empty(room, np.uint64), np.empty(room, np.uint32), np.empty(room, np.uint32)
        self._fold = fold_arrays()

    @property
    def documents(self) -> int:
        """Documents so far."""
        return len(self._rows)

    def add(self, document: Document) -> bytes:
        """Take in a document; returns the SHA-256 of its text.

        Raises:
            InvalidError: the segment would outgrow what a suffix array can number.
        """
        raw = document.raw
        text = np.frombuffer(raw, dtype=np.uint8)
        vocabulary, words, at, before = self._vocabulary, 0, 0, 0
        while True:
            hashes, starts, ends = self._scratch
            wanted = min(_CHUNK_TOKENS, text.size - at) + 32
            ids, deltas = self._make_room(wanted + 1)
            vocabulary.make_room(wanted)
            last = before
            count, at, vocabulary.size, before, long = _read(
                text, at, before, hashes[:wanted], starts, ends, *self._fold, vocabulary.rows, vocabulary.size,
                ids, deltas,
            )  # fmt: skip
            if long:
                self._note_long(deltas[:count], starts[:count], last)
            self._use(count)
            words += count
            self._unsketched.append(hashes[:count].copy())
            if at >= text.size:
                break
        ids, deltas = self._make_room(1)
        ids[0] = 0
        step = len(raw) - before
        deltas[0] = min(step, DELTA_LONG)
        if step >= DELTA_LONG:
            self._long_at.append(np.array([self.tokens], dtype=np.int64))
            self._long_delta.append(np.array([step], dtype=np.int64))
        self._use(1)
        if self.tokens > SYMBOLS_MAX:
            raise InvalidError(
                f"document {document.id!r} takes the segment to {self.tokens} tokens (max {SYMBOLS_MAX})",
                code="segment_too_large",
                fix="register it in parts",
            )
        self._unsketched_rows.append(words)
        self._unsketched_tokens += words
        digest = hashlib.sha256(raw).digest()
        self._rows.append(_Row(document.id, document.owner, document.registered_at, len(raw), digest, None))
        self._starts.append(self.tokens)
        self.size_bytes += len(raw)
        if self._unsketched_tokens >= _SKETCH_BATCH_TOKENS:
            self._sketch()
        return digest

    def add_segment(self, segment: Segment) -> None:
        """Take in the documents of a segment that were not removed."""
        self._sketch()
        arrays = segment.arrays
        known = int(arrays["symbol_starts"].size) - 2
        remap = np.zeros(known + 1, dtype=np.int32)
        self._vocabulary.intern(hashes_by_id(np.asarray(arrays["vocabulary"]), known)[1:], remap[1:])
        starts, bases = arrays["document_starts"], arrays["document_bases"]
        long_at, long_delta = np.asarray(arrays["long_at"]), np.asarray(arrays["long_delta"])
        for begin, end in _runs(segment):
            first, last = int(starts[begin]), int(starts[end])
            ids, deltas = self._make_room(last - first)
            remap.take(np.asarray(arrays["tokens"][first:last], dtype=np.int32), out=ids[: last - first])
            deltas[: last - first] = arrays["deltas"][first:last]
            low, high = np.searchsorted(long_at, [first, last])
            self._long_at.append(np.asarray(long_at[low:high] - first + self.tokens, dtype=np.int64))
            self._long_delta.append(np.array(long_delta[low:high], dtype=np.int64))
            for document in range(begin, end):
                size = int(bases[document + 1] - bases[document])
                self._rows.append(
                    _Row(
                        segment.document_id(document),
                        segment.owner(document),
                        segment.registered_at(document),
                        size,
                        segment.digest(document),
                        segment.sketch(document),
                    )
                )
                self._starts.append(self.tokens + int(starts[document + 1]) - first)
                self.size_bytes += size
            self._use(last - first)
            if self.tokens > SYMBOLS_MAX:
                raise InvalidError(
                    f"merging gives {self.tokens} tokens (max {SYMBOLS_MAX})",
                    code="segment_too_large",
                    fix="keep the segments apart",
                )

    def build(self) -> Segment:
        """The segment; the draft is used up."""
        self._sketch()
        rank = sorted(range(len(self._rows)), key=lambda i: (self._rows[i].registered_at, self._rows[i].id))
        rows = [self._rows[i] for i in rank]
        starts = np.array(self._starts, dtype=np.int64)
        lengths = np.diff(starts)[rank] if rank else np.zeros(0, np.int64)
        document_starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        moved = np.array(rank, dtype=np.int64)
        tokens, deltas = self._flat()
        if not np.array_equal(moved, np.arange(moved.size)):
            tokens = _moved(tokens, starts, moved, document_starts)
            deltas = _moved(deltas, starts, moved, document_starts)
        long_at, long_delta = self._long(starts, moved, document_starts)
        anchors = np.empty(-(-self.tokens // ANCHOR_TOKENS), dtype=np.int64)
        _anchor(deltas, long_delta, anchors)
        order = suffix_array(tokens[: self.tokens], self._vocabulary.size + 1)
        symbols = np.zeros(self._vocabulary.size + 2, dtype=np.int32)
        _count_symbols(tokens, self.tokens, symbols)
        table, states = gram_table(tokens, order, symbols, self.gram_tokens)
        fences = np.empty(2 * -(-self.tokens // FENCE_PLACES), dtype=np.uint64)
        _fence(tokens, order, fences)
        stairs = np.ascontiguousarray(fences.reshape(-1, 2)[::FENCE_PLACES]).reshape(-1)
        arrays: dict[str, NDArray[np.generic]] = {
            "tokens": tokens,
            "order": order,
            "lines": table.lines,
            "frequent": table.frequent,
            "vocabulary": self._vocabulary.rows,
            "deltas": deltas,
            "anchors": anchors,
            "long_at": long_at,
            "long_delta": long_delta,
            "document_starts": document_starts.astype(np.int32),
            "symbol_starts": symbols,
            "fences": fences,
            "stairs": stairs,
        }
        arrays.update(_document_arrays(rows))
        self._rows, rows = [], []  # their sketches are in the arrays now
        held = {name: np.ascontiguousarray(arrays[name], dtype=kind) for name, kind in ARRAYS.items()}
        return Segment(held, states=states)

    def _make_room(self, tokens: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Where the next tokens and their distances go, at least so many."""
        if tokens > self._room:
            self._room = max(tokens, _BLOCK_TOKENS if self._blocks else _CHUNK_TOKENS)
            self._blocks.append(_Block(np.empty(self._room, np.int32), np.empty(self._room, np.uint8)))
        block = self._blocks[-1]
        return block.ids[block.used :], block.deltas[block.used :]

    def _use(self, tokens: int) -> None:
        """Count tokens that were written where `_make_room` said."""
        self._blocks[-1].used += tokens
        self._room -= tokens
        self.tokens += tokens

    def _flat(self) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """All tokens, padded, and their distances, in order of arrival; the blocks are used up."""
        ids = np.empty(self.tokens + PADDING, dtype=np.int32)
        deltas = np.empty(self.tokens, dtype=np.uint8)
        at = 0
        for block in self._blocks:
            ids[at : at + block.used] = block.ids[: block.used]
            deltas[at : at + block.used] = block.deltas[: block.used]
            at += block.used
        ids[at:] = 0
        self._blocks = []
        return ids, deltas

    def _note_long(self, deltas: NDArray[np.uint8], starts: NDArray[np.uint32], last: int) -> None:
        """List distances that do not fit a byte: `starts` are of the next tokens, `last` of the one before."""
        at = np.flatnonzero(deltas == DELTA_LONG)
        before = np.where(at > 0, starts[at - 1], last).astype(np.int64)
        self._long_at.append(at + self.tokens)
        self._long_delta.append(starts[at].astype(np.int64) - before)

    def _long(
        self, starts: NDArray[np.int64], moved: NDArray[np.int64], document_starts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        at, delta = _joined(self._long_at, np.int64), _joined(self._long_delta, np.int64)
        if not at.size:
            return at, delta
        shift = np.empty(moved.size, dtype=np.int64)
        shift[moved] = document_starts[:-1] - starts[:-1][moved]
        at = at + shift[np.searchsorted(starts, at, side="right") - 1]
        by_place = np.argsort(at, kind="stable")
        return at[by_place], delta[by_place]

    def _sketch(self) -> None:
        if not self._unsketched_rows:
            return
        first = len(self._rows) - len(self._unsketched_rows)
        sketches = sketch_documents(
            _joined(self._unsketched, np.uint64), np.array(self._unsketched_rows, dtype=np.int64)
        )
        for i, sketch in sketches.items():
            row = self._rows[first + i]
            self._rows[first + i] = _Row(row.id, row.owner, row.registered_at, row.size_bytes, row.digest, sketch)
        self._unsketched, self._unsketched_rows, self._unsketched_tokens = [], [], 0


def _runs(segment: Segment) -> list[tuple[int, int]]:
    """Ranges of documents that were not removed."""
    if segment.dead is None:
        return [(0, segment.documents)] if segment.documents else []
    edges = np.flatnonzero(np.diff(np.concatenate([[1], segment.dead, [1]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _joined(parts: list[NDArray[np.generic]] | list, kind: type) -> NDArray:  # type: ignore[type-arg]
    return np.concatenate(parts) if parts else np.empty(0, dtype=kind)


def _document_arrays(rows: list[_Row]) -> dict[str, NDArray[np.generic]]:
    ids = [row.id.encode() for row in rows]
    hashes = np.array([id_hash(row.id) for row in rows], dtype=np.uint64)
    by_hash = np.argsort(hashes, kind="stable")
    owners = sorted({row.owner for row in rows if row.owner is not None})
    owner_row = {owner: i for i, owner in enumerate(owners)}
    owner_texts = [owner.encode() for owner in owners]
    with_sketch = [i for i, row in enumerate(rows) if row.sketch is not None]
    sketch_rows = np.full(len(rows), -1, dtype=np.int32)
    sketch_rows[with_sketch] = np.arange(len(with_sketch))
    sketches = [row.sketch for row in rows if row.sketch is not None]
    return {
        "document_bases": np.concatenate([[0], np.cumsum([row.size_bytes for row in rows], dtype=np.int64)]),
        "registered": np.array([row.registered_at for row in rows], dtype=np.int64),
        "id_starts": np.concatenate([[0], np.cumsum([len(i) for i in ids], dtype=np.int64)]),
        "id_bytes": np.frombuffer(b"".join(ids), dtype=np.uint8),
        "id_hashes": hashes[by_hash],
        "id_documents": by_hash,
        "owners": np.array([NO_OWNER if row.owner is None else owner_row[row.owner] for row in rows], dtype=np.int32),
        "owner_starts": np.concatenate([[0], np.cumsum([len(t) for t in owner_texts], dtype=np.int64)]),
        "owner_bytes": np.frombuffer(b"".join(owner_texts), dtype=np.uint8),
        "digests": np.frombuffer(b"".join(row.digest for row in rows), dtype=np.uint8),
        "sketch_rows": sketch_rows,
        "sketches": np.concatenate(sketches) if sketches else np.empty(0, np.uint32),
    }


def _moved(
    source: NDArray[Any], starts: NDArray[np.int64], moved: NDArray[np.int64], new_starts: NDArray[np.int64]
) -> NDArray[Any]:
    """The documents of `source` in their new order, and what is behind them as it is."""
    out = np.empty_like(source)
    _gather(source, starts, moved, new_starts, out)
    out[new_starts[-1] :] = source[new_starts[-1] :]
    return out


@compiled
def _gather(source, starts, moved, new_starts, out):
    for i in range(moved.size):
        begin = starts[moved[i]]
        for j in range(new_starts[i + 1] - new_starts[i]):
            out[new_starts[i] + j] = source[begin + j]


@compiled
def _read(text, at, before, hashes, starts, ends, pages, entries, sequences, rows, size, ids, deltas):
    """Tokenise from a byte on, number the words and measure the distances between them.

    Args:
        before: where the token before begins.
        hashes: as many as there is room for; `starts` and `ends` have no less.
        rows, size: the vocabulary, with room for as many words.

    Returns:
        (tokens, next byte, size of the vocabulary, where the last token begins, distances that did not fit).
    """
    count, at = scan(text, at, hashes, starts, ends, pages, entries, sequences)
    _, size = intern(hashes[:count], ids, 0, rows, size)
    long = 0
    for i in range(count):
        step = np.int64(starts[i]) - before
        before = np.int64(starts[i])
        if step >= DELTA_LONG:
            long += 1
            step = DELTA_LONG
        deltas[i] = step
    return count, at, size, before, long


@compiled
def _anchor(deltas, long_delta, anchors):
    """Write the byte offset of every 64th token."""
    offset, long = 0, 0
    for i in range(deltas.size):
        if deltas[i] == 255:
            offset += long_delta[long]
            long += 1
        else:
            offset += deltas[i]
        if i & 63 == 0:
            anchors[i >> 6] = offset


@compiled
def _count_symbols(tokens, size, starts):
    """First place of each symbol in the suffix array, and the end."""
    for i in range(size):
        starts[tokens[i] + 1] += 1
    for symbol in range(1, starts.size):
        starts[symbol] += starts[symbol - 1]


@compiled
def _fence(tokens, order, fences):
    """Write the first four tokens of every 32nd suffix as two words that compare as the tokens do."""
    for i in range(fences.size >> 1):
        if i + 16 < fences.size >> 1:
            prefetch(tokens, np.intp(order[(i + 16) * FENCE_PLACES]))
        at = order[i * FENCE_PLACES]
        fences[2 * i] = np.uint64(tokens[at]) << np.uint64(32) | np.uint64(tokens[at + 1])
        fences[2 * i + 1] = np.uint64(tokens[at + 2]) << np.uint64(32) | np.uint64(tokens[at + 3])
