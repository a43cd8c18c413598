"""The files of one index and the one process that may change them.

State on disk is a manifest (segments, removals, clusters) and a journal of what came after it. A
change is durable before it is visible. Merging is done aside and put in force by whoever holds the
index next, so it never waits for a writer and a writer seldom waits for it.

Knows nothing of queries.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headwater.attribution.spans.draft import Draft
from headwater.attribution.spans.journal import Added, Clustered, Record, Removed, append_records, read_records
from headwater.attribution.spans.manifest import MANIFEST_FILE, Manifest, Registered, document_record, read_manifest
from headwater.attribution.spans.segment import Segment
from headwater.attribution.spans.segments import (
    SegmentFile,
    check_segment,
    disk_error,
    map_segment,
    stamp,
    write_durably,
    write_segment,
)
from headwater.attribution.spans.values import Document
from headwater.core.canonical import digest
from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, Problem

LIVE_SEGMENTS_MAX = 4
SEGMENT_TOKENS_MAX = 1 << 27
"""Most tokens of a merged segment, and by default of a new one; bounds memory at about 14 bytes each."""

LOCK_FILE, STAMPS_FILE = "LOCK", "stamps.json"


@dataclass(frozen=True, slots=True)
class _Merge:
    """A merge that was computed and written, and is not yet in force."""

    inputs: dict[str, Segment]  # as they were when it began
    known: SegmentFile


class Shelf:
    """Segments, tail, clusters and the sum of what is registered, as of the last change seen."""

    def __init__(self, folder: Path, *, salvage: bool, background: bool) -> None:
        """Read the state in `folder`; see `SpanIndex.open` for what is raised."""
        self.folder = folder
        self.problems: tuple[Problem, ...] = ()
        self.tail: Segment | None = None
        self.clusters: dict[str, str] = {}
        self._salvage, self._background = salvage, background
        self._lock_descriptor: int | None = None
        self._worker: threading.Thread | None = None
        self._merged: _Merge | None = None
        self._tail_documents: dict[str, Document] = {}
        self.load()

    @property
    def manifest(self) -> Manifest:
        """The manifest in force."""
        return self._manifest

    @property
    def segments(self) -> list[Segment]:
        """Every segment, the tail last."""
        on_disk = [self._files[known.file] for known in self._manifest.segments]
        return on_disk if self.tail is None else [*on_disk, self.tail]

    @property
    def registered(self) -> Registered:
        """The sum of all documents that were not removed."""
        return self._base.joined(self._tail_sum)

    @property
    def writable(self) -> bool:
        """Whether this process holds the index for writing."""
        return self._lock_descriptor is not None

    # --- reading --------------------------------------------------------------------------------

    def load(self) -> None:
        """Read the state on disk."""
        for attempt in range(3):
            manifest = read_manifest(self.folder)
            try:
                files = self._map(manifest)
                break
            except InvalidError:
                # A merge may have replaced files between reading the manifest and mapping them.
                if attempt == 2 or read_manifest(self.folder).next_number == manifest.next_number:
                    raise
        kept = tuple(known for known in manifest.segments if known.file in files)
        self._files = files
        self._manifest = replace(manifest, segments=kept)
        self._number = manifest.next_number
        self._base = manifest.registered if len(kept) == len(manifest.segments) else sum_of(files.values())
        self.clusters = dict(manifest.clusters)
        self._tail_documents, self._tail_sum = {}, Registered()
        records, self._journal_bytes = read_records(self._journal, salvage=self._salvage)
        for record in records:
            self._replay(record)
        self._build_tail()
        self._seen = self._signs()

    def changed(self) -> bool:
        """Whether another process has changed the files since they were read."""
        return self._seen != self._signs()

    def check(self) -> tuple[Problem, ...]:
        """Read every byte and recompute every digest."""
        found = list(self.problems)
        for known in self._manifest.segments:
            try:
                check_segment(self.folder, known)
            except HeadwaterError as error:
                found.append(_problem(known.file, error))
        try:
            read_records(self._journal)
        except HeadwaterError as error:
            found.append(_problem(self._journal.name, error))
        if not found and sum_of(self.segments).digest != self.registered.digest:
            found.append(
                Problem(MANIFEST_FILE, "registered_sum", "the documents are not those it sums up", "restore the index")
            )
        return tuple(found)

    # --- writing --------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Become the one that writes.

        Raises:
            ConflictError: another process is.
        """
        if self._lock_descriptor is None:
            try:
                descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise disk_error(self.folder / LOCK_FILE, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise ConflictError(
                    f"somebody else is writing to the index in {self.folder.name!r}",
                    code="index_locked",
                    fix="let that process finish or close its index, or send it the documents",
                ) from None
            self._lock_descriptor = descriptor
            if self.changed():
                self.load()
            self._tidy()
        self.finish_merge(wait=False)

    def release(self) -> None:
        """Finish merging and let others write."""
        self.finish_merge(wait=True)
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None

    def with_tail(self, documents: Sequence[Document], *, gram_tokens: int) -> Segment:
        """The tail as it would be with more documents."""
        draft = Draft(gram_tokens=gram_tokens)
        if self.tail is not None:
            draft.add_segment(self.tail)
        for document in documents:
            draft.add(document)
        return draft.build()

    def put_tail(self, documents: Sequence[Document], tail: Segment, pairs: Sequence[tuple[str, str]]) -> None:
        """Acknowledge documents into the journal; `tail` is what `with_tail` gave."""
        records: list[Record] = [_added(documents)]
        if pairs:
            records.append(Clustered(list(pairs)))
        append_records(self._journal, records)
        for document in documents:
            self._tail_documents[document.id] = document
            self._tail_sum = self._tail_sum.plus(_record_of(document))
        self.tail = tail
        self.clusters = self.clusters | dict(pairs)
        self._seen = self._signs()

    def put_segment(self, segment: Segment, pairs: Sequence[tuple[str, str]]) -> None:
        """Write a segment of new documents and put it in force."""
        known = write_segment(self.folder, self._next_name(), segment)
        files = {**self._files, known.file: map_segment(self.folder, known)}
        clusters = self.clusters | dict(pairs)
        self._commit((*self._manifest.segments, known), files, self._base.joined(sum_of([segment])), clusters)
        self._settle()

    def flush(self) -> None:
        """Make a segment of the tail."""
        if self.tail is None:
            return
        known = write_segment(self.folder, self._next_name(), self.tail)
        files = {**self._files, known.file: map_segment(self.folder, known)}
        tail, documents, total = self.tail, self._tail_documents, self._tail_sum
        self.tail, self._tail_documents, self._tail_sum = None, {}, Registered()
        try:
            self._commit((*self._manifest.segments, known), files, self._base.joined(total), self.clusters)
        except HeadwaterError:
            self.tail, self._tail_documents, self._tail_sum = tail, documents, total
            raise
        self._settle()

    def remove(self, document_id: str) -> None:
        """Acknowledge a removal."""
        append_records(self._journal, [Removed(document_id)])
        in_tail = document_id in self._tail_documents
        self._remove(document_id)
        if in_tail:
            self._build_tail()
        self._seen = self._signs()

    def compact(self) -> None:
        """One segment without removed documents, or as few as the size allows."""
        self.finish_merge(wait=True)
        self.flush()
        self.finish_merge(wait=True)
        chosen: list[SegmentFile] = []
        for known in sorted(self._manifest.segments, key=lambda s: s.tokens):
            if sum(s.tokens for s in chosen) + known.tokens <= max(SEGMENT_TOKENS_MAX, known.tokens):
                chosen.append(known)
        if len(chosen) > 1 or any(self._files[known.file].dead is not None for known in chosen):
            self._put_merge(self._merge(chosen))
        if self._journal.exists():  # it may still hold the words of what was removed from the tail
            self._commit(self._manifest.segments, self._files, self._base, self.clusters)

    def finish_merge(self, *, wait: bool) -> None:
        """Put a merge that was done in the background in force; `wait` for one that is under way."""
        if self._worker is not None and (wait or not self._worker.is_alive()):
            self._worker.join()
            self._worker = None
        merged, self._merged = self._merged, None
        if merged is not None:
            self._put_merge(merged)

    # --- inside ---------------------------------------------------------------------------------

    @property
    def _journal(self) -> Path:
        return self.folder / self._manifest.journal

    def _signs(self) -> tuple[int, int, int]:
        """What is different on disk when another process has written."""
        status = (self.folder / MANIFEST_FILE).stat()
        try:
            size = self._journal.stat().st_size
        except OSError:
            size = 0
        return status.st_mtime_ns, status.st_ino, size

    def _map(self, manifest: Manifest) -> dict[str, Segment]:
        try:
            stamps = json.loads((self.folder / STAMPS_FILE).read_bytes())
        except (OSError, ValueError):
            stamps = {}
        files, problems, checked = {}, [], False
        for known in manifest.segments:
            try:
                if not isinstance(stamps, dict) or stamps.get(known.file) != stamp(self.folder, known):
                    check_segment(self.folder, known)
                    checked = True
                segment = map_segment(self.folder, known)
            except InvalidError as error:
                if not self._salvage:
                    raise
                problems.append(_problem(known.file, error))
                continue
            dead = np.zeros(segment.documents, dtype=np.uint8)
            dead[[number for file, number in manifest.removed if file == known.file]] = 1
            files[known.file] = segment.without(dead)
        self.problems = tuple(problems)
        if checked and not problems:
            self._write_stamps(manifest.segments)
        return files

    def _write_stamps(self, segments: tuple[SegmentFile, ...]) -> None:
        """Note what the checked files look like; a reader without the right to write checks again next time."""
        stamps = {known.file: stamp(self.folder, known) for known in segments}
        try:
            write_durably(self.folder / STAMPS_FILE, json.dumps(stamps).encode())
        except HeadwaterError:
            return

    def _replay(self, record: Record) -> None:
        match record:
            case Added():
                for document in record.values():
                    self._tail_documents[document.id] = document
                    self._tail_sum = self._tail_sum.plus(_record_of(document))
            case Clustered():
                self.clusters.update(record.pairs)
            case Removed():
                self._remove(record.document_id)

    def _remove(self, document_id: str) -> None:
        members = {member for member, head in self.clusters.items() if head == document_id}
        self.clusters = {m: h for m, h in self.clusters.items() if m != document_id and h != document_id}
        if document_id in self._tail_documents:
            document = self._tail_documents.pop(document_id)
            self._tail_sum = self._tail_sum.minus(_record_of(document))
        else:
            for name, segment in self._files.items():
                number = segment.find(document_id)
                if number is None or (segment.dead is not None and segment.dead[number]):
                    continue
                dead = np.zeros(segment.documents, dtype=np.uint8) if segment.dead is None else segment.dead.copy()
                dead[number] = 1
                self._files[name] = segment.without(dead)
                self._base = self._base.minus(_record_in(segment, number))
                break
        self._rehead(members)

    def _rehead(self, members: set[str]) -> None:
        """Give a cluster that lost its earliest document its next one."""
        placed = []
        for member in members:
            if member in self._tail_documents:
                placed.append((self._tail_documents[member].registered_at, member))
                continue
            for segment in self._files.values():
                number = segment.find(member)
                if number is not None and (segment.dead is None or not segment.dead[number]):
                    placed.append((segment.registered_at(number), member))
        if placed:
            head = min(placed)[1]
            self.clusters = self.clusters | {member: head for _, member in placed if member != head}

    def _build_tail(self) -> None:
        self.tail = None
        if self._tail_documents:
            self.tail = self.with_tail(tuple(self._tail_documents.values()), gram_tokens=self._manifest.gram_tokens)

    def _tidy(self) -> None:
        """Cut off a record that was never acknowledged, and files that no manifest names."""
        if self._journal.exists() and self._journal.stat().st_size > self._journal_bytes:
            os.truncate(self._journal, self._journal_bytes)
        wanted = {known.file for known in self._manifest.segments} | {self._journal.name}
        for path in self.folder.iterdir():
            if path.name not in wanted and path.suffix in {".hws", ".log", ".part"}:
                path.unlink(missing_ok=True)
        self._seen = self._signs()

    def _next_name(self) -> str:
        self._number += 1
        return f"segment-{self._number - 1}.hws"

    def _commit(
        self,
        segments: tuple[SegmentFile, ...],
        files: dict[str, Segment],
        base: Registered,
        clusters: dict[str, str],
    ) -> None:
        """Put a manifest with all that is known in force; what is in the tail goes to a journal of its own."""
        before = self._manifest
        self._number += 1
        manifest = replace(
            before,
            segments=segments,
            journal=f"journal-{self._number - 1}.log",
            next_number=self._number,
            removed=frozenset(
                (name, int(number))
                for name, segment in files.items()
                if segment.dead is not None
                for number in np.flatnonzero(segment.dead)
            ),
            clusters=clusters,
            registered=base,
        )
        try:
            if self._tail_documents:
                append_records(self.folder / manifest.journal, [_added(tuple(self._tail_documents.values()))])
            manifest.write(self.folder)
        except HeadwaterError:
            for known in set(segments) - set(before.segments):
                (self.folder / known.file).unlink(missing_ok=True)
            (self.folder / manifest.journal).unlink(missing_ok=True)
            raise
        self._manifest, self._files, self._base, self.clusters = manifest, files, base, clusters
        for name in {s.file for s in before.segments} - {s.file for s in segments} | {before.journal}:
            (self.folder / name).unlink(missing_ok=True)  # readers that mapped it keep it
        self._write_stamps(segments)
        self._seen = self._signs()

    def _settle(self) -> None:
        """Keep to four segments: merge now when there are more, in the background when there are as many."""
        if len(self._manifest.segments) > LIVE_SEGMENTS_MAX:
            self.finish_merge(wait=True)
        while len(self._manifest.segments) > LIVE_SEGMENTS_MAX and (chosen := _tier(self._manifest.segments)):
            self._put_merge(self._merge(chosen))
        if self._background and self._worker is None and len(self._manifest.segments) == LIVE_SEGMENTS_MAX:
            chosen = _tier(self._manifest.segments)
            if chosen:
                inputs = {known.file: self._files[known.file] for known in chosen}
                self._worker = threading.Thread(target=self._merge_aside, args=(inputs, self._next_name()), daemon=True)
                self._worker.start()

    def _merge(self, chosen: Sequence[SegmentFile]) -> _Merge:
        inputs = {known.file: self._files[known.file] for known in chosen}
        return self._merge_files(inputs, self._next_name())

    def _merge_aside(self, inputs: dict[str, Segment], name: str) -> None:
        try:
            self._merged = self._merge_files(inputs, name)
        except HeadwaterError as error:  # nothing is lost: the segments are still there
            self.problems = (*self.problems, _problem("merge", error))

    def _merge_files(self, inputs: dict[str, Segment], name: str) -> _Merge:
        draft = Draft(gram_tokens=self._manifest.gram_tokens)
        for segment in inputs.values():
            draft.add_segment(segment)
        return _Merge(inputs, write_segment(self.folder, name, draft.build()))

    def _put_merge(self, merged: _Merge) -> None:
        segment = map_segment(self.folder, merged.known)
        dead = np.zeros(segment.documents, dtype=np.uint8)
        for name, before in merged.inputs.items():
            now = self._files[name].dead
            if now is None:
                continue
            for number in np.flatnonzero(now if before.dead is None else now & ~before.dead):  # removed meanwhile
                moved = segment.find(before.document_id(int(number)))
                if moved is not None:
                    dead[moved] = 1
        files = {name: held for name, held in self._files.items() if name not in merged.inputs}
        files[merged.known.file] = segment.without(dead)
        kept = tuple(known for known in self._manifest.segments if known.file not in merged.inputs)
        self._commit((merged.known, *kept), files, self._base, self.clusters)


def sum_of(segments: Iterable[Segment]) -> Registered:
    """The sum of all documents of some segments that were not removed."""
    total = Registered()
    for segment in segments:
        for number in range(segment.documents):
            if segment.dead is None or not segment.dead[number]:
                total = total.plus(_record_in(segment, number))
    return total


def _tier(segments: Sequence[SegmentFile]) -> list[SegmentFile]:
    """The segments to merge: the smallest two, and every next one not larger than those before it together."""
    by_size = sorted(segments, key=lambda s: (s.tokens, s.file))
    chosen = by_size[:2]
    for known in by_size[2:]:
        if known.tokens > sum(s.tokens for s in chosen):
            break
        chosen.append(known)
    while len(chosen) > 1 and sum(s.tokens for s in chosen) > SEGMENT_TOKENS_MAX:
        chosen.pop()
    return chosen if len(chosen) > 1 else []


def _added(documents: Sequence[Document]) -> Added:
    return Added([(d.id, d.owner, d.registered_at, d.raw) for d in documents])


def _record_of(document: Document) -> bytes:
    text = bytes.fromhex(digest(document.raw).removeprefix("sha256:"))
    return document_record(document.id, document.owner, document.registered_at, text)


def _record_in(segment: Segment, number: int) -> bytes:
    return document_record(
        segment.document_id(number), segment.owner(number), segment.registered_at(number), segment.digest(number)
    )


def _problem(where: str, error: HeadwaterError) -> Problem:
    return Problem(where, error.code, error.message, error.fix or "restore the file")
