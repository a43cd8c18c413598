"""One state of an index that readers hold while writers go on: some segments, and every query on them.

Results depend on the registered documents only, not on how they are cut into segments. Knows nothing
of files; safe to use from any number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.fold_table import fold_table
from headwater.attribution.spans.grams import WEIGHTS
from headwater.attribution.spans.reference import MICROBITS, Reference
from headwater.attribution.spans.searching import count_text, count_texts, maximal_matches
from headwater.attribution.spans.segment import ROW_LENGTH, Segment
from headwater.attribution.spans.tracing import (
    SETTING_COMMON,
    SETTING_COMMON_SIEVE,
    SETTING_COMMON_SIZE,
    SETTING_ENTRIES,
    SETTING_ENTRY_ROWS,
    SETTING_GRAM_TOKENS,
    SETTING_PAGES,
    SETTING_SEQUENCES,
    SETTING_SEQUENCES_SIZE,
    SETTING_UNSEEN,
    SETTING_WEIGHTS,
    SETTING_WORD_ROWS,
    SETTING_WORDS,
    SETTINGS_LENGTH,
    trace_text,
)
from headwater.attribution.spans.values import Match, Span, Trace, raw_of, several

_NAMES_MAX = 1 << 16


class Settings:
    """The tables all segments share, as kernels take them; keeps them alive."""

    __slots__ = ("gram_tokens", "reference", "row")

    def __init__(self, gram_tokens: int, reference: Reference) -> None:
        self.gram_tokens, self.reference = gram_tokens, reference
        fold = fold_table()
        row = np.zeros(SETTINGS_LENGTH, dtype=np.int64)
        row[SETTING_GRAM_TOKENS] = gram_tokens
        row[SETTING_WEIGHTS] = WEIGHTS.ctypes.data
        row[SETTING_PAGES], row[SETTING_ENTRIES] = fold.pages.ctypes.data, fold.entries.ctypes.data
        row[SETTING_ENTRY_ROWS] = fold.entries.shape[0]
        row[SETTING_SEQUENCES], row[SETTING_SEQUENCES_SIZE] = fold.sequences.ctypes.data, fold.sequences.size
        row[SETTING_WORDS], row[SETTING_WORD_ROWS] = reference.words.ctypes.data, reference.words.size // 2
        row[SETTING_UNSEEN] = reference.unseen_microbits
        if reference.gram_tokens == gram_tokens:
            row[SETTING_COMMON], row[SETTING_COMMON_SIZE] = reference.common.ctypes.data, reference.common.size
            row[SETTING_COMMON_SIEVE] = reference.sieve.ctypes.data
        self.row = row


class Snapshot:
    """Segments, near-duplicates and the digest of what is registered, at one moment."""

    def __init__(
        self, segments: Sequence[Segment], settings: Settings, *, clusters: Mapping[str, str], registered: str
    ) -> None:
        """Args: clusters: document -> earliest near-duplicate. registered: digest of what is registered."""
        self.segments = tuple(segments)
        self.settings = settings
        self.clusters = clusters
        self.registered = registered
        self.rows: NDArray[np.int64] = np.zeros((len(self.segments), ROW_LENGTH), dtype=np.int64)
        for i, segment in enumerate(self.segments):
            self.rows[i] = segment.row
        self._names: dict[tuple[int, int], tuple[str, str | None, str | None]] = {}

    def trace(self, text: str | bytes) -> Trace:
        """Where the words of `text` were registered first."""
        runs, tokens = trace_text(_bytes_of(text), self.rows, self.settings.row)
        return self._trace(runs.tolist(), tokens)

    def trace_batch(self, texts: Sequence[str | bytes], *, threads: int = 1) -> tuple[Trace, ...]:
        """`trace` of each text, over `threads` threads."""
        texts = several(texts)
        if threads <= 1 or len(texts) < 2:
            return tuple(self.trace(text) for text in texts)
        step = -(-len(texts) // (threads * 4))
        parts = [texts[i : i + step] for i in range(0, len(texts), step)]
        with ThreadPoolExecutor(threads) as pool:
            done = pool.map(lambda part: [self.trace(text) for text in part], parts)
            return tuple(trace for part in done for trace in part)

    def count(self, text: str | bytes) -> int:
        """Occurrences of the words of `text`, next to each other and in order; 0 for a text without words."""
        return int(count_text(_bytes_of(text), self.rows, self.settings.row))

    def count_batch(self, texts: Sequence[str | bytes]) -> tuple[int, ...]:
        """`count` of each text."""
        raws = [raw_of(text) for text in several(texts)]
        # A line feed between texts keeps the last word of one from running into the next.
        offsets = np.concatenate([[0], np.cumsum([len(raw) + 1 for raw in raws], dtype=np.int64)])
        joined = np.frombuffer(b"\n".join([*raws, b""]), dtype=np.uint8)
        return tuple(count_texts(joined, offsets, self.rows, self.settings.row).tolist())

    def matches(self, text: str | bytes, *, tokens_min: int) -> tuple[Match, ...]:
        """All maximal matches of at least `tokens_min` tokens, in text order."""
        rows = maximal_matches(_bytes_of(text), self.rows, self.settings.row, tokens_min)
        return tuple(Match(*row) for row in rows.tolist())

    def find(self, document_id: str) -> tuple[Segment, int] | None:
        """The segment and number of a document that was not removed."""
        for segment in self.segments:
            document = segment.find(document_id)
            if document is not None and (segment.dead is None or not segment.dead[document]):
                return segment, document
        return None

    def _trace(self, runs: list[list[int]], tokens: int) -> Trace:
        spans, covered = [], 0
        names, make = self._names, tuple.__new__  # a span is made ten times for an answer: no detour by its signature
        for start, end, microbits, segment, document, source, count, token, length in runs:
            name = names.get((segment, document)) or self._name(segment, document)
            covered += microbits
            document_id, owner, cluster = name
            bits = microbits / MICROBITS
            spans.append(make(Span, (start, end, bits, owner, document_id, source, count, cluster, token, length)))
        return Trace(tuple(spans), tokens, covered / MICROBITS, self.registered)

    def _name(self, segment: int, document: int) -> tuple[str, str | None, str | None]:
        if len(self._names) >= _NAMES_MAX:
            self._names.clear()
        document_id = self.segments[segment].document_id(document)
        name = document_id, self.segments[segment].owner(document), self.clusters.get(document_id)
        self._names[segment, document] = name
        return name


def _bytes_of(text: str | bytes) -> NDArray[np.uint8]:
    return np.frombuffer(raw_of(text), dtype=np.uint8)
