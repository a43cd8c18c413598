"""A segment: some documents, their suffix array and their k-gram table, never changed once made.

Documents lie in order of registration (time, then id). Ids, owners and offsets live in flat arrays so
that a segment is the same in memory and in a file, and a kernel can be handed one row of addresses.
Knows nothing of files or of other segments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.grams import LINE_WORDS

NO_OWNER = -1
ANCHOR_TOKENS = 64
"""Tokens between two stored byte offsets."""

DELTA_LONG = 255
"""A distance between tokens that does not fit a byte, and is listed apart."""

FENCE_PLACES = 32
"""Places of the suffix array between two fences, and fences between two stairs."""

SKETCH_WORDS = 128

ARRAYS: Mapping[str, str] = {
    "tokens": "<i4",  # (n + padding,)
    "order": "<i4",  # (n,) suffix array
    "lines": "<u4",  # (16 * lines,) the k-gram table, one cache line after another
    "frequent": "<u4",  # (2 * rows,) first position and count of k-grams that occur often
    "vocabulary": "<u8",  # (2 * rows,) hash, id
    "deltas": "|u1",  # (n,) bytes from the token before
    "anchors": "<i8",  # (n / 64,) byte offset of every 64th token, all documents laid end to end
    "long_at": "<i8",  # tokens whose delta is DELTA_LONG ...
    "long_delta": "<i8",  # ... and what it is
    "document_starts": "<i4",  # (documents + 1,) first token
    "document_bases": "<i8",  # (documents + 1,) first byte
    "registered": "<i8",  # (documents,)
    "id_starts": "<i8",  # (documents + 1,)
    "id_bytes": "|u1",
    "id_hashes": "<u8",  # (documents,) sorted
    "id_documents": "<i4",  # (documents,) the document of each hash
    "owners": "<i4",  # (documents,) row of the owner, or NO_OWNER
    "owner_starts": "<i8",
    "owner_bytes": "|u1",
    "digests": "|u1",  # (32 * documents,) SHA-256 of the text
    "sketch_rows": "<i4",  # (documents,) row of the sketch, or -1
    "sketches": "<u4",  # (128 * rows,)
    "symbol_starts": "<i4",  # (symbols + 2,) first place of each symbol in the suffix array
    "fences": "<u8",  # (2 * n / 32,) first four tokens of every 32nd suffix, in order
    "stairs": "<u8",  # (2 * fences / 32,) every 32nd fence
}
"""Every array of a segment, with its type on disk; the order is the order in the file."""

(
    ROW_TOKENS, ROW_SIZE, ROW_ORDER, ROW_LINES, ROW_LINE_COUNT, ROW_FREQUENT, ROW_FREQUENT_COUNT,
    ROW_VOCABULARY, ROW_VOCABULARY_SIZE, ROW_DELTAS, ROW_ANCHORS, ROW_LONG_AT, ROW_LONG_DELTA, ROW_LONG_COUNT,
    ROW_DOCUMENT_STARTS, ROW_DOCUMENT_BASES, ROW_DOCUMENTS, ROW_REGISTERED, ROW_ID_STARTS, ROW_ID_BYTES, ROW_DEAD,
    ROW_SYMBOL_STARTS, ROW_SYMBOLS, ROW_FENCES, ROW_STAIRS,
) = range(25)  # fmt: skip
"""Places in a segment's row of addresses and sizes."""

ROW_LENGTH = 25


class Segment:
    """The arrays of one segment, and look-ups in its document table."""

    def __init__(
        self,
        arrays: Mapping[str, NDArray[np.generic]],
        *,
        dead: NDArray[np.uint8] | None = None,
        states: NDArray[np.uint8] | None = None,
    ) -> None:
        """Wrap arrays.

        Args:
            arrays: one for each name of `ARRAYS`, contiguous.
            dead: (documents,) 1 for each removed document.
            states: what `gram_table` says of the k-gram at each token; known while the segment is new.
        """
        self.arrays = arrays
        self.dead = dead
        self.states = states

    def __getitem__(self, name: str) -> NDArray[np.generic]:
        return self.arrays[name]

    @property
    def documents(self) -> int:
        """How many documents, with the removed ones."""
        return self.arrays["registered"].size

    @property
    def tokens(self) -> int:
        """How many tokens, with one end mark for each document."""
        return self.arrays["order"].size

    def document_id(self, document: int) -> str:
        """The id of a document."""
        return self._text("id", document)

    def owner(self, document: int) -> str | None:
        """The owner of a document."""
        row = int(self.arrays["owners"][document])
        return None if row == NO_OWNER else self._text("owner", row)

    def registered_at(self, document: int) -> int:
        """When a document was registered, ns."""
        return int(self.arrays["registered"][document])

    def digest(self, document: int) -> bytes:
        """SHA-256 of a document's text."""
        return self.arrays["digests"][32 * document : 32 * document + 32].tobytes()

    def find(self, document_id: str) -> int | None:
        """The document of that id."""
        hashes = self.arrays["id_hashes"]
        hashed = id_hash(document_id)
        at = int(np.searchsorted(hashes, hashed))
        while at < hashes.size and hashes[at] == hashed:
            document = int(self.arrays["id_documents"][at])
            if self.document_id(document) == document_id:
                return document
            at += 1
        return None

    def sketch(self, document: int) -> NDArray[np.uint32] | None:
        """The MinHash sketch of a document long enough to have one: (128,)."""
        row = int(self.arrays["sketch_rows"][document])
        if row < 0:
            return None
        return np.asarray(self.arrays["sketches"][SKETCH_WORDS * row : SKETCH_WORDS * (row + 1)], dtype=np.uint32)

    def without(self, dead: NDArray[np.uint8]) -> Segment:
        """The same segment with other documents removed."""
        return Segment(self.arrays, dead=dead if dead.any() else None)

    @cached_property
    def row(self) -> NDArray[np.int64]:
        """Addresses and sizes for kernels; valid while this object lives."""
        row = np.zeros(ROW_LENGTH, dtype=np.int64)
        for place, name in _ADDRESSES.items():
            row[place] = self.arrays[name].ctypes.data
        row[ROW_SIZE] = self.tokens
        row[ROW_LINE_COUNT] = self.arrays["lines"].size // LINE_WORDS
        row[ROW_FREQUENT_COUNT] = self.arrays["frequent"].size // 2
        row[ROW_VOCABULARY_SIZE] = self.arrays["vocabulary"].size // 2
        row[ROW_LONG_COUNT] = self.arrays["long_at"].size
        row[ROW_DOCUMENTS] = self.documents
        row[ROW_SYMBOLS] = self.arrays["symbol_starts"].size - 1
        row[ROW_DEAD] = 0 if self.dead is None else self.dead.ctypes.data
        return row

    def _text(self, kind: str, row: int) -> str:
        starts = self.arrays[f"{kind}_starts"]
        return self.arrays[f"{kind}_bytes"][int(starts[row]) : int(starts[row + 1])].tobytes().decode("utf-8")


_ADDRESSES = {
    ROW_TOKENS: "tokens",
    ROW_ORDER: "order",
    ROW_LINES: "lines",
    ROW_FREQUENT: "frequent",
    ROW_VOCABULARY: "vocabulary",
    ROW_DELTAS: "deltas",
    ROW_ANCHORS: "anchors",
    ROW_LONG_AT: "long_at",
    ROW_LONG_DELTA: "long_delta",
    ROW_DOCUMENT_STARTS: "document_starts",
    ROW_DOCUMENT_BASES: "document_bases",
    ROW_REGISTERED: "registered",
    ROW_ID_STARTS: "id_starts",
    ROW_ID_BYTES: "id_bytes",
    ROW_SYMBOL_STARTS: "symbol_starts",
    ROW_FENCES: "fences",
    ROW_STAIRS: "stairs",
}


def id_hash(document_id: str) -> np.uint64:
    """A 64-bit hash of a document id, for finding it."""
    return np.uint64(int.from_bytes(hashlib.blake2b(document_id.encode("utf-8"), digest_size=8).digest(), "little"))
