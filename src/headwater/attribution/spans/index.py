"""The span index: register texts, then ask whose words a text repeats.

    index = SpanIndex.create(path)
    index.add([Document("a", "ctr_1", registered_at_ns, text)])
    trace = index.trace(answer)
    credit = index.credit(trace, CreditRules())

One process writes (a lock file says which), any number read. What `add` and `remove` acknowledge is on
disk: small additions in a journal and an in-memory tail, large ones as segments. At most four
segments live on disk; smaller ones are merged into larger ones in the background. A reader works on a
snapshot and is never blocked.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from headwater.attribution.spans.clusters import join_clusters
from headwater.attribution.spans.credit import Credit, CreditRules, credit_trace
from headwater.attribution.spans.draft import Draft
from headwater.attribution.spans.grams import GRAM_TOKENS_MAX, GRAM_TOKENS_MIN
from headwater.attribution.spans.ingest import Ingest
from headwater.attribution.spans.manifest import MANIFEST_FILE, Manifest, Registered, read_manifest, state_digest
from headwater.attribution.spans.reference import Reference, default_reference, read_reference
from headwater.attribution.spans.segment import Segment
from headwater.attribution.spans.segments import disk_error, write_durably
from headwater.attribution.spans.shelf import SEGMENT_TOKENS_MAX, Shelf
from headwater.attribution.spans.snapshot import Settings, Snapshot
from headwater.attribution.spans.tokens import tokeniser_digest
from headwater.attribution.spans.values import AddReport, Document, Match, Span, Trace, raw_of
from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, InvalidError, MissingError, Problem

TAIL_TOKENS_MAX = 1 << 18
"""Tokens kept in memory and journal before they become a segment."""

REFERENCE_FILE = "reference.bin"


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What an index holds."""

    documents: int
    removed: int  # not yet merged away
    tokens: int  # words and one end mark for each document
    segments: int
    tail_tokens: int
    size_bytes: int  # segment files
    clustered: int  # documents whose credit goes to an earlier near-duplicate
    gram_tokens: int
    reference: str
    manifest: str


class SpanView:
    """One state of an index: what is traced on it can be credited on it, whatever becomes of the index meanwhile.

    Safe for any number of threads. What it maps is let go when nobody holds it.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    @property
    def digest(self) -> str:
        """Of what is registered in this state, as receipts name it."""
        return self._snapshot.registered

    @property
    def documents(self) -> int:
        """Documents that are registered in this state and were not taken out."""
        return sum(
            segment.documents - int(segment.dead.sum()) if segment.dead is not None else segment.documents
            for segment in self._snapshot.segments
        )

    def trace(self, text: str | bytes) -> Trace:
        """As `SpanIndex.trace`."""
        return self._snapshot.trace(text)

    def credit(self, trace: Trace, rules: CreditRules | None = None, *, exclude: Collection[str] = ()) -> Credit:
        """As `SpanIndex.credit`.

        Raises:
            ConflictError: the trace was made on another state.
        """
        snapshot = self._snapshot
        if trace.manifest != snapshot.registered:
            raise ConflictError(
                f"the trace was made when the index was {trace.manifest}, now it is {snapshot.registered}",
                code="trace_outdated",
                fix="trace the text again",
            )

        def head(span: Span) -> tuple[str, str | None]:
            if span.cluster_id is None or span.owner is None:
                return span.document_id, span.owner
            held = snapshot.find(span.cluster_id)
            return (span.cluster_id, held[0].owner(held[1])) if held else (span.document_id, span.owner)

        return credit_trace(trace, rules or CreditRules(), head, exclude)


class SpanIndex:
    """An index in a folder. Make one with `create` or `open`."""

    def __init__(self, folder: Path, settings: Settings, *, salvage: bool = False, background: bool = True) -> None:
        """Use `create` or `open`."""
        self._settings = settings
        self._writing = threading.RLock()
        self._shelf = Shelf(folder, salvage=salvage, background=background)
        self.snapshot: Snapshot
        self._publish()

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        gram_tokens: int = 8,
        reference: Reference | None = None,
        background: bool = True,
    ) -> SpanIndex:
        """A new, empty index.

        Args:
            path: a folder, made if need be.
            gram_tokens: k, the fewest words in a row that count as a match.
            reference: what words are worth, for ever; by default the one that ships.
            background: merge segments in a thread; else inside `add` when there are too many.

        Raises:
            ConflictError: there is an index already.
            InvalidError: k out of range.
        """
        folder = Path(path)
        if not GRAM_TOKENS_MIN <= gram_tokens <= GRAM_TOKENS_MAX:
            raise InvalidError(
                f"gram_tokens {gram_tokens} is out of range",
                code="gram_tokens_invalid",
                fix=f"use {GRAM_TOKENS_MIN} to {GRAM_TOKENS_MAX}, normally 8",
            )
        if (folder / MANIFEST_FILE).exists():
            raise ConflictError(
                f"there is a span index in {folder.name!r} already",
                code="index_exists",
                fix="go on with `headwater index add` or SpanIndex.open, or choose another folder",
            )
        held = reference or default_reference()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(folder, error) from error
        write_durably(folder / REFERENCE_FILE, held.raw)
        Manifest(gram_tokens=gram_tokens, tokeniser=tokeniser_digest(), reference=held.digest).write(folder)
        return cls(folder, Settings(gram_tokens, held), background=background)

    @classmethod
    def open(cls, path: str | Path, *, salvage: bool = False, background: bool = True) -> SpanIndex:
        """An index that was created before.

        Files that changed since they were last checked are read and compared with their digests.

        Args:
            path: its folder.
            salvage: go on without damaged segments and journal records; `problems` names them.
            background: as for `create`.

        Raises:
            MissingError: no index there.
            InvalidError: damaged (the file is named), or made for another tokeniser.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if manifest.tokeniser != tokeniser_digest():
            raise InvalidError(
                f"the index was made with tokeniser {manifest.tokeniser}, this is {tokeniser_digest()}",
                code="index_tokeniser",
                fix="build the index again with this version",
            )
        try:
            raw = (folder / REFERENCE_FILE).read_bytes()
        except OSError:
            raw = b""
        if digest(raw) != manifest.reference:
            raise InvalidError(
                f"{REFERENCE_FILE} has digest {digest(raw)}, not {manifest.reference}",
                code="reference_damaged",
                fix="restore the file the index was created with",
            )
        return cls(folder, Settings(manifest.gram_tokens, read_reference(raw)), salvage=salvage, background=background)

    def close(self) -> None:
        """Finish merging and let others write."""
        with self._writing:
            self._shelf.release()
            self._publish()

    def __enter__(self) -> SpanIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- asking ---------------------------------------------------------------------------------

    def view(self) -> SpanView:
        """The state of now, to hold on to."""
        return SpanView(self.snapshot)

    def trace(self, text: str | bytes) -> Trace:
        """Where the words of `text` were registered first, as spans that never overlap."""
        return self.snapshot.trace(text)

    def trace_batch(self, texts: Sequence[str | bytes], *, threads: int = 1) -> tuple[Trace, ...]:
        """`trace` of each text against one state of the index, over `threads` threads."""
        return self.snapshot.trace_batch(texts, threads=threads)

    def count(self, text: str | bytes) -> int:
        """Occurrences of the words of `text`, in order and next to each other; any length."""
        return self.snapshot.count(text)

    def count_batch(self, texts: Sequence[str | bytes]) -> tuple[int, ...]:
        """`count` of each text against one state of the index."""
        return self.snapshot.count_batch(texts)

    def matches(self, text: str | bytes, *, tokens_min: int | None = None) -> tuple[Match, ...]:
        """All maximal matches of at least `tokens_min` (default k) tokens, whoever owns them."""
        least = self._settings.gram_tokens if tokens_min is None else tokens_min
        if least < 1:
            raise InvalidError(f"tokens_min {least} is below 1", code="tokens_min_invalid", fix="use 1 or more")
        return self.snapshot.matches(text, tokens_min=least)

    def credit(self, trace: Trace, rules: CreditRules | None = None, *, exclude: Collection[str] = ()) -> Credit:
        """What the spans of a trace earn; `exclude` names documents that were in the context.

        Raises:
            ConflictError: the index has changed since the trace was made.
        """
        return self.view().credit(trace, rules, exclude=exclude)

    def document_digest(self, document_id: str) -> str:
        """SHA-256 of a registered text as ``sha256:…``.

        Raises:
            MissingError: no such document.
        """
        segment, document = self._held(document_id)
        return "sha256:" + segment.digest(document).hex()

    def is_exact(self, span: Span, text: str | bytes, document_text: bytes) -> bool:
        """Whether a span repeats the registered text byte for byte, not only word for word.

        Args:
            span: from a trace of `text`.
            text: what was traced.
            document_text: the registered text, which the index does not keep; its digest is compared.

        Raises:
            InvalidError: `document_text` is not what was registered.
        """
        if digest(document_text) != self.document_digest(span.document_id):
            raise InvalidError(
                f"the text given for {span.document_id!r} is not the one that was registered",
                code="document_text_differs",
                fix="give the bytes that were added",
            )
        raw = raw_of(text)
        return (
            document_text[span.document_start : span.document_start + span.end - span.start]
            == raw[span.start : span.end]
        )

    def stats(self) -> IndexStats:
        """What the index holds."""
        shelf, snapshot = self._shelf, self.snapshot
        return IndexStats(
            documents=shelf.registered.count,
            removed=sum(int(segment.dead.sum()) for segment in snapshot.segments if segment.dead is not None),
            tokens=sum(segment.tokens for segment in snapshot.segments),
            segments=len(shelf.manifest.segments),
            tail_tokens=shelf.tail.tokens if shelf.tail else 0,
            size_bytes=sum(known.size_bytes for known in shelf.manifest.segments),
            clustered=len(shelf.clusters),
            gram_tokens=self._settings.gram_tokens,
            reference=self._settings.reference.digest,
            manifest=snapshot.registered,
        )

    @property
    def tokeniser(self) -> str:
        """Digest of how texts are read."""
        return self._shelf.manifest.tokeniser

    @property
    def registered(self) -> Registered:
        """The sum of all registered documents; those of disjoint indexes can be joined."""
        return self._shelf.registered

    def split(self, folders: Sequence[str | Path], starts_ns: Sequence[int]) -> None:
        """Write this index again as shards by time of registration, which `ShardedIndex` serves as one.

        Args:
            folders: where to, one for each shard.
            starts_ns: ascending; shard i takes what was registered from starts_ns[i] to before starts_ns[i + 1].
                The first must not be after the first document.

        Raises:
            InvalidError: the starts do not fit.
        """
        snapshot = self.snapshot
        least = min((s.registered_at(0) for s in snapshot.segments if s.documents), default=0)
        if (
            len(folders) != len(starts_ns)
            or list(starts_ns) != sorted(starts_ns)
            or not starts_ns
            or starts_ns[0] > least
        ):
            raise InvalidError(
                f"{len(folders)} shards cannot start at {list(starts_ns)[:8]}",
                code="shards_invalid",
                fix=f"give as many ascending instants as folders, the first at most {least}",
            )
        for folder, begin, end in zip(folders, starts_ns, [*starts_ns[1:], 2**63 - 1], strict=True):
            draft = self._draft()
            for segment in snapshot.segments:
                times = np.asarray(segment.arrays["registered"])
                outside = ((times < begin) | (times >= end)).astype(np.uint8)
                draft.add_segment(segment.without(outside if segment.dead is None else outside | segment.dead))
            held = draft.build()
            pairs = [(m, h) for m, h in snapshot.clusters.items() if held.find(m) is not None]
            with SpanIndex.create(
                folder, gram_tokens=self._settings.gram_tokens, reference=self._settings.reference
            ) as shard:
                shard._shelf.acquire()
                shard._shelf.put_segment(held, pairs)
                shard._publish()

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What salvage left out, and merges that failed."""
        return self._shelf.problems

    def verify(self) -> tuple[Problem, ...]:
        """Read every byte and recompute every digest; returns what is wrong."""
        with self._writing:
            return self._shelf.check()

    # --- changing -------------------------------------------------------------------------------

    def add(
        self,
        documents: Iterable[Document] | Document,
        *,
        segment_tokens_max: int = SEGMENT_TOKENS_MAX,
        progress: Callable[[int], None] | None = None,
    ) -> AddReport:
        """Register documents; on return they are on disk and every query sees them.

        A document that is registered already with the same owner, time and text is skipped, so an
        interrupted import may be repeated.

        Args:
            documents: one, or as many as there are; about 14 bytes of memory a token are used.
            segment_tokens_max: where to begin another segment.
            progress: called with the bytes of each text taken in.

        Raises:
            ConflictError: another process writes, or an id is taken by another text, owner or time. With
                several segments in one call, those finished before stay.
            UpstreamError: the disk failed; what was there before is intact.
        """
        with self._writing:
            self._shelf.acquire()
            self._publish()
            ingest = Ingest(self._settings)
            draft, fresh = self._draft(), dict[str, Document | None]()
            digests = dict[str, tuple[str | None, int, bytes]]()
            for document in [documents] if isinstance(documents, Document) else documents:
                if not isinstance(document, Document):
                    raise InvalidError(
                        f"{type(document).__name__} {str(document)[:40]!r} is not a Document",
                        code="document_invalid",
                        fix="give Document(id, owner, registered_at, text) values",
                    )
                if self._is_known(document, digests):
                    ingest.skipped += 1
                    continue
                digests[document.id] = document.owner, document.registered_at, draft.add(document)
                # Texts are kept only while they may still go to the journal.
                if draft.tokens <= TAIL_TOKENS_MAX:
                    fresh[document.id] = document
                else:
                    fresh.clear()
                if progress is not None:
                    progress(len(document.raw))
                if draft.tokens >= segment_tokens_max:
                    self._put_segment(draft.build(), ingest)
                    draft, fresh, digests = self._draft(), {}, {}
            if draft.documents and draft.tokens > TAIL_TOKENS_MAX:
                self._put_segment(draft.build(), ingest)
            elif draft.documents:
                self._put_tail([d for d in fresh.values() if d is not None], ingest)
            self._shelf.finish_merge(wait=False)
            self._publish()
            return ingest.report(self.snapshot.registered)

    def remove(self, document_id: str) -> None:
        """Take a document out; the next holder of its words, if any, becomes the first.

        To keep copies from inheriting, add the text again with the same time and no owner.

        Raises:
            MissingError: no such document.
            ConflictError: another process writes.
        """
        with self._writing:
            self._shelf.acquire()
            self._publish()
            self._held(document_id)
            self._shelf.remove(document_id)
            self._publish()

    def compact(self) -> None:
        """Put everything into one segment, without removed documents (more if it would be too large)."""
        with self._writing:
            self._shelf.acquire()
            self._shelf.compact()
            self._publish()

    def refresh(self) -> bool:
        """See what another process wrote since; returns whether anything changed."""
        with self._writing:
            if self._shelf.writable or not self._shelf.changed():
                return False
            self._shelf.load()
            self._publish()
            return True

    # --- inside ---------------------------------------------------------------------------------

    def _draft(self) -> Draft:
        return Draft(gram_tokens=self._settings.gram_tokens)

    def _publish(self) -> None:
        """Let readers see the state of the shelf."""
        shelf = self._shelf
        registered = state_digest(
            shelf.registered,
            shelf.clusters,
            gram_tokens=self._settings.gram_tokens,
            reference=self._settings.reference.digest,
            tokeniser=shelf.manifest.tokeniser,
        )
        self.snapshot = Snapshot(shelf.segments, self._settings, clusters=shelf.clusters, registered=registered)

    def _held(self, document_id: str) -> tuple[Segment, int]:
        held = self.snapshot.find(document_id)
        if held is None:
            raise MissingError(
                f"document {document_id!r} is not in the index", code="document_missing", fix="check the id"
            )
        return held

    def _is_known(self, document: Document, fresh: dict[str, tuple[str | None, int, bytes]]) -> bool:
        held = self.snapshot.find(document.id)
        if held is not None:
            segment, number = held
            known = segment.owner(number), segment.registered_at(number), segment.digest(number)
        elif document.id in fresh:
            known = fresh[document.id]
        else:
            return False
        if known != (document.owner, document.registered_at, hashlib.sha256(document.raw).digest()):
            raise ConflictError(
                f"document {document.id!r} is registered with another text, owner or time",
                code="document_conflict",
                fix="remove it first, or give the new version an id of its own",
            )
        return True

    def _put_tail(self, documents: list[Document], ingest: Ingest) -> None:
        shelf = self._shelf
        tail = shelf.with_tail(documents, gram_tokens=self._settings.gram_tokens)
        numbers = [tail.find(document.id) for document in documents]
        pairs = self._take_in(
            tail, [n for n in numbers if n is not None], shelf.segments[: len(shelf.manifest.segments)], ingest
        )
        shelf.put_tail(documents, tail, pairs)
        self._publish()
        if tail.tokens > TAIL_TOKENS_MAX:
            shelf.flush()

    def _put_segment(self, segment: Segment, ingest: Ingest) -> None:
        pairs = self._take_in(segment, list(range(segment.documents)), self._shelf.segments, ingest)
        self._shelf.put_segment(segment, pairs)
        self._publish()

    def _take_in(
        self, new: Segment, numbers: list[int], others: list[Segment], ingest: Ingest
    ) -> list[tuple[str, str]]:
        """Report what new documents own and copy; returns the changes to clusters."""
        owning = ingest.take(new, numbers, others)
        gram_tokens = self._settings.gram_tokens
        changes, joined = join_clusters(new, owning, others, self._shelf.clusters, gram_tokens=gram_tokens)
        ingest.clusters.extend(joined)
        return changes
