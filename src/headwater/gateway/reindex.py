"""Makes a gateway's indexes again when what is registered has changed: those of passages and of spans.

Blocks, so it belongs on a thread beside the event loop. Nothing is taken over here: what was in force stays so until
`Renewed.in_force` is called, and a failure leaves it so for good.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headwater.attribution.spans import SpanIndex, SpanView
from headwater.core.errors import UpstreamError
from headwater.retrieval import PassageIndex, forget


@dataclass(frozen=True, slots=True)
class Renewed:
    """Indexes of what is registered now."""

    passages: PassageIndex | None
    spans: SpanView | None
    changes: dict[str, Any]  # for the trail: documents before and after, and the digests of the indexes
    in_force: Callable[[], None]  # to be called once they are; blocks


class Indexes:
    """The indexes in force, and how to make them again. One renewal at a time.

    Args:
        passages: what sources are found in, and `open_passages` to make it anew: given the one in force, it gives that
            back when nothing has changed. None where no model is offered sources.
        spans: the index that answers are traced in, which this process writes, and `update` to bring it up to date.
            None where no answer is traced.
        state: what the spans are made of, as a value that differs when they have to be brought up to date.
        folder: the cache of passage indexes, to take replaced ones out of.
    """

    def __init__(
        self,
        passages: PassageIndex | None,
        open_passages: Callable[[PassageIndex], PassageIndex],
        spans: SpanIndex | None,
        update: Callable[[SpanIndex], None],
        *,
        state: Callable[[], Hashable],
        folder: Path,
    ) -> None:
        self._passages, self._open_passages = passages, open_passages
        self._index, self._update, self._state, self._folder = spans, update, state, folder
        self._seen: Hashable = None  # so that the first renewal looks, whatever came while the gateway started
        self.spans = spans.view() if spans is not None else None

    def renew(self) -> Renewed | None:
        """Indexes of what is registered now, to be taken over; None when those in force are.

        Raises:
            UpstreamError: ``reindex_failed``: the disk failed.
            HeadwaterError: a text is missing or damaged, the disk is full.
        """
        try:
            return self._renew()
        except OSError as error:
            raise UpstreamError(
                f"no index of what is registered now could be made: {error}",
                code="reindex_failed",
                fix="see to the disk and reload again; what was found before still is",
            ) from error

    def _renew(self) -> Renewed | None:
        before, spans_before = self._passages, self.spans
        seen = self._state() if self._index is not None else None
        passages = self._open_passages(before) if before is not None else None
        spans = spans_before
        if self._index is not None and seen != self._seen:
            self._update(self._index)
            spans = self._index.view()
        changes: dict[str, Any] = {}
        if before is not None and passages is not None and passages.digest != before.digest:
            counts = len(before.tables.entries), len(passages.tables.entries)
            changes["documents"] = _changed(counts, before.digest, passages.digest)
        if spans is not None and spans_before is not None and spans.digest != spans_before.digest:
            counts = spans_before.documents, spans.documents
            changes["traced_documents"] = _changed(counts, spans_before.digest, spans.digest)
        if not changes:
            self._seen = seen
            return None

        def in_force() -> None:
            self._passages, self.spans, self._seen = passages, spans, seen
            if before is not None and "documents" in changes:
                forget(self._folder, before.digest)

        return Renewed(passages, spans, changes, in_force)


def _changed(documents: tuple[int, int], before: str, after: str) -> dict[str, Any]:
    return {"before": documents[0], "after": documents[1], "index_digest": {"from": before, "to": after}}
