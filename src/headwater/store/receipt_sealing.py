"""Sealing: the promised receipts of the append log copied into Parquet segments, and their bytes given back on demand.

    file of the segment  ->  manifest that names it  ->  coded rows of the close
                                                     ->  pointer of the log  ->  hole in the append file

Each step is whole or not at all and the next one begins when it is on the disk, so a kill between any
two leaves every receipt readable and the same command goes on. One sealer at a time, beside a writer at work.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from headwater.core.errors import ConflictError
from headwater.receipts import LogTree, leaf_hash
from headwater.store.close_rows import READ, PayoutRows
from headwater.store.object_store import LocalStore, open_store
from headwater.store.receipt_file import give_back
from headwater.store.receipt_frames import FILE_HEADER
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_sealed import SealedPointer, pointer_path, read_pointer, relative_location
from headwater.store.receipt_segments import (
    MANIFEST_NAME,
    SEGMENT_RECEIPTS_MAX,
    SealedRow,
    SegmentManifest,
    encode_segment,
    read_manifest,
    read_tables,
)


class Sealer:
    """Seals the log at `log` into the store at `location`, a folder beside the log when not given.

    Args:
        rows: folder of the coded rows that an epoch close reads (`close_rows`), when they are to be kept up with the
            segments; a step of its own after each, which the close makes up for when it is missing.
    """

    def __init__(
        self,
        log: Path,
        location: str | None = None,
        *,
        segment_receipts: int = SEGMENT_RECEIPTS_MAX,
        rows: Path | None = None,
    ) -> None:
        self.log, self._segment_receipts = log, segment_receipts
        self._rows = None if rows is None else PayoutRows(rows)
        self._location = location or str(log.with_suffix(".segments"))
        self.store = open_store(self._location)

    def seal(self, *, progress: Callable[[int, int], None] | None = None) -> SegmentManifest:
        """Copy what is promised and not sealed yet; gives the manifest as it is then.

        Raises:
            ConflictError: another process seals, or the segments there are of another log.
        """
        with self._alone(), ReceiptLog.open(self.log, read_only=True) as log:
            size = log.promised().size
            manifest = read_manifest(self.store)
            begins = not manifest.segments or manifest.segments[0].first == 0
            if not begins or manifest.size > size or log.root(manifest.size) != manifest.root:
                raise ConflictError(
                    f"the {manifest.size} receipts sealed in {self.store.location} are not the beginning of {self.log}",
                    code="log_differs",
                    fix="give every log its own folder of segments",
                )
            while manifest.size < size:
                manifest = self._seal_one(log, manifest, min(size, manifest.size + self._segment_receipts))
                if progress is not None:
                    progress(manifest.size, size)
        return manifest

    def _seal_one(self, log: ReceiptLog, before: SegmentManifest, end: int) -> SegmentManifest:
        rows = (
            SealedRow(bytes.fromhex(one.entry.id), leaf_hash(one.raw), bytes.fromhex(one.signature[2:]), one.raw)
            for one in (log.at(index) for index in range(before.size, end))
        )
        log_end, log_check = log.end_of(end - 1)
        seen: list[Any] = []
        see = None if self._rows is None else lambda table: seen.append(table.select(READ))
        segment, data = encode_segment(before.size, rows, log_end=log_end, log_check=log_check, see=see)
        self.store.write(segment.file, data)
        manifest = SegmentManifest((*before.segments, segment), end, log.root(end))
        self.store.write(MANIFEST_NAME, manifest.to_bytes())
        if self._rows is not None:
            # After the manifest: a segment that nothing names may be sealed again with another end.
            with self._rows.alone():
                if self._rows.size == before.size:  # else the close codes what is missing, in order
                    self._rows.add(pa.concat_tables(seen), earlier=log.place)
        return manifest

    def drop(self) -> int:
        """Give the append log's bytes of sealed receipts back to the disk; how many bytes that were.

        The segments are read back first: each file must hash to what the manifest says, and their receipts to the root.

        Raises:
            InvalidError: a segment cannot be read back as it was written; nothing is dropped.
        """
        with self._alone():
            manifest = read_manifest(self.store)
            pointer = read_pointer(self.log)
            if not manifest.segments:
                return 0
            dropped = pointer.log_end if pointer else len(FILE_HEADER)
            last = manifest.segments[-1]
            if pointer is None or pointer.size < manifest.size:
                self._read_back(manifest)
                fresh = SealedPointer(
                    relative_location(self.log, self._location), manifest.size, last.log_end, last.log_check
                )
                LocalStore(self.log.parent).write(pointer_path(self.log).name, fresh.to_bytes())
            handle = os.open(self.log, os.O_RDWR | os.O_CLOEXEC)
            try:
                # From the start each time: a kill between pointer and hole left bytes that nobody reads.
                given = give_back(handle, len(FILE_HEADER), last.log_end)
                os.fsync(handle)
            finally:
                os.close(handle)
            return last.log_end - dropped if given else 0

    def _read_back(self, manifest: SegmentManifest) -> None:
        tree = LogTree()
        for segment in manifest.segments:
            for table in read_tables(self.store, segment):
                tree.extend(map(leaf_hash, table["raw"].to_pylist()))
        if tree.root() != manifest.root:
            raise ConflictError(
                f"the receipts in {self.store.location} hash to {tree.root().hex()}, the log to {manifest.root.hex()}",
                code="segments_differ",
                fix="remove manifest and segments and seal again; nothing was dropped",
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = os.open(self.log.with_name(self.log.name + ".seal-lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConflictError(
                    f"{self.log} is being sealed elsewhere", code="seal_busy", fix="wait until that has ended"
                ) from None
            yield
        finally:
            os.close(lock)
