"""What new documents own, copy and take back, worked out against everything registered.

A word of a new document is its own when no k-gram over it was held by an earlier document; k-grams
that an older registration now turns out to have held first change hands. Knows nothing of files.
"""

# Compiled functions take arrays of fixed types and are checked by the compiler.
# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np
from numba.np.numpy_support import carray

from headwater.attribution.spans.finding import precedes
from headwater.attribution.spans.grams import AGAIN, COPIED, state_of
from headwater.attribution.spans.memory import compiled, i32_at
from headwater.attribution.spans.segment import ROW_DOCUMENT_STARTS, ROW_DOCUMENTS, ROW_SIZE, ROW_TOKENS, Segment
from headwater.attribution.spans.snapshot import Settings, Snapshot
from headwater.attribution.spans.tracing import SETTING_GRAM_TOKENS, first_holders, is_common
from headwater.attribution.spans.values import AddReport, Reassignment
from headwater.attribution.spans.vocabulary import hashes_by_id


class Ingest:
    """Adds up what one `add` did."""

    def __init__(self, settings: Settings) -> None:
        self.skipped = 0
        self.clusters: list[tuple[str, str]] = []
        self._settings = settings
        self._documents = self._tokens = self._owned = self._copied = 0
        self._reassigned: dict[tuple[str, str], int] = {}

    def take(self, new: Segment, numbers: list[int], others: list[Segment]) -> list[int]:
        """Count the words of new documents.

        Args:
            new: a segment that holds them.
            numbers: which of its documents are new.
            others: all other segments.

        Returns:
            Those documents that own any words.
        """
        view = Snapshot([*others, new], self._settings, clusters={}, registered="")
        symbols = int(new.arrays["symbol_starts"].size) - 2
        hashes = hashes_by_id(np.asarray(new.arrays["vocabulary"]), symbols)
        wanted = np.array(numbers, dtype=np.int64)
        before = list(others)
        if wanted.size < new.documents:  # the tail holds older documents too
            gone = np.zeros(new.documents, dtype=np.uint8)
            gone[wanted] = 1
            before.append(new.without(gone))
        old = Snapshot(before, self._settings, clusters={}, registered="")
        assert new.states is not None, "only a segment just built has new documents"
        words, taken = ownership(view.rows, old.rows, self._settings.row, len(others), wanted, hashes, new.states)
        starts = np.asarray(new.arrays["document_starts"], dtype=np.int64)
        self._documents += len(numbers)
        self._tokens += int((starts[wanted + 1] - starts[wanted] - 1).sum())
        self._owned += int(words[:, 0].sum())
        self._copied += int(words[:, 1].sum())
        for number, segment, document, grams in taken.tolist():
            pair = view.segments[segment].document_id(document), new.document_id(number)
            self._reassigned[pair] = self._reassigned.get(pair, 0) + grams
        return [int(number) for number in wanted[words[:, 0] > 0]]

    def report(self, manifest: str) -> AddReport:
        """The sum of it."""
        return AddReport(
            documents=self._documents,
            skipped=self.skipped,
            tokens=self._tokens,
            owned_tokens=self._owned,
            copied_tokens=self._copied,
            clusters=tuple(sorted(self.clusters)),
            reassigned=tuple(Reassignment(*pair, self._reassigned[pair]) for pair in sorted(self._reassigned)),
            manifest=manifest,
        )


@compiled
def ownership(rows, old_rows, settings, segment, numbers, hashes_by_id, states):
    """Words of some documents of one segment, and k-grams they take from documents that were there before.

    Args:
        rows: all segments.
        old_rows: the same without the new documents, which are in the last segment.
        segment: the one that holds the documents.
        numbers: (n,) which documents.
        hashes_by_id: token hash of each id of the segment.
        states: what repeats inside the segment, as `gram_table` says.

    Returns:
        (n, 2) int64 own words and others' words; (m, 4) int64 document, segment and document it takes
        from, k-grams (a pair may come up several times).
    """
    row = rows[segment]
    gram_tokens = settings[SETTING_GRAM_TOKENS]
    starts = carray(i32_at(row[ROW_DOCUMENT_STARTS]), row[ROW_DOCUMENTS] + 1)
    tokens = carray(i32_at(row[ROW_TOKENS]), row[ROW_SIZE])
    words = np.zeros((numbers.size, 2), dtype=np.int64)
    taken = np.empty((64, 4), dtype=np.int64)
    lines = 0
    longest: Any = 0
    for n in range(numbers.size):
        longest = max(longest, np.int64(starts[numbers[n] + 1] - starts[numbers[n]] - 1))
    room = np.empty(longest, dtype=np.uint64)
    alone = old_rows.shape[0] == 0
    before, held = np.empty((0, 3), dtype=np.int64), np.empty(0, dtype=np.int64)
    for n in range(numbers.size):
        document = numbers[n]
        first, count = np.int64(starts[document]), np.int64(starts[document + 1] - starts[document] - 1)
        hashes = room[:count]
        for i in range(count):
            hashes[i] = hashes_by_id[tokens[first + i]]
        if not alone:
            before, held = first_holders(hashes, old_rows, settings)
        last_own = last_copied = -gram_tokens  # the last k-gram of its own, and of another's, so far
        for i in range(count):
            state = state_of(states, first + i)
            if state and not is_common(hashes, i, settings):
                other = state == COPIED
                if not alone and held[i] and not other:
                    if precedes(rows, before[i, 0], before[i, 1], segment, document):
                        other = True
                    elif state != AGAIN:
                        lines, taken = _note(taken, lines, document, before[i, 0], before[i, 1])
                if other:
                    last_copied = i
                else:
                    last_own = i
            if last_copied > i - gram_tokens:
                words[n, 1] += 1
            elif last_own > i - gram_tokens:
                words[n, 0] += 1
    return words, taken[:lines].copy()


@compiled
def _note(taken, lines, document, segment, other):
    """Count a k-gram taken back in the last line, or in a new one."""
    if lines and taken[lines - 1, 0] == document and taken[lines - 1, 1] == segment and taken[lines - 1, 2] == other:
        taken[lines - 1, 3] += 1
        return lines, taken
    if lines == taken.shape[0]:
        grown = np.empty((2 * lines, 4), dtype=np.int64)
        grown[:lines] = taken
        taken = grown
    taken[lines, 0], taken[lines, 1], taken[lines, 2], taken[lines, 3] = document, segment, other, 1
    return lines + 1, taken
