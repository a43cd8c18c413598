"""Sealed receipts as the log reads them once their bytes have left the append file.

`<log>.sealed` says how many receipts are read from where, and at which byte and check the append file goes
on. It is written before the first byte is given back, so at every moment each receipt can be read somewhere.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from headwater.core.canonical import canonical, parse_canonical
from headwater.core.errors import UpstreamError
from headwater.receipts import LogTree, fields
from headwater.store.object_store import LocalStore, open_store, reader
from headwater.store.receipt_segments import ROW_GROUP_RECEIPTS, SegmentManifest, read_manifest

SCHEMA: Final = "headwater.sealed/1"


@dataclass(frozen=True, slots=True)
class SealedPointer:
    """Up to where a log is read from segments."""

    location: str  # of the segments; relative to the log's folder unless it is an address or absolute
    size: int  # receipts
    log_end: int  # where the append file goes on, bytes
    log_check: int  # from which the next frame's check continues

    def to_bytes(self) -> bytes:
        """The pointer's file."""
        return canonical(
            {
                "schema": SCHEMA,
                "location": self.location,
                "size": self.size,
                "log_end": self.log_end,
                "log_check": self.log_check,
            }
        )

    @classmethod
    def from_bytes(cls, raw: bytes) -> SealedPointer:
        """Read a pointer's file.

        Raises:
            InvalidError: of another form.
        """
        value = parse_canonical(raw)
        _POINTER(value, "$")
        return cls(value["location"], value["size"], value["log_end"], value["log_check"])


def pointer_path(log: Path) -> Path:
    """Where a log keeps its pointer."""
    return log.with_name(log.name + ".sealed")


def read_pointer(log: Path) -> SealedPointer | None:
    """A log's pointer, or None while all its receipts are in the append file."""
    try:
        return SealedPointer.from_bytes(pointer_path(log).read_bytes())
    except FileNotFoundError:
        return None


class SealedReceipts:
    """The first `size` receipts of a log, read from its segments.

    Raises:
        UpstreamError: the segments hold fewer, or do not lead to the manifest's root.
    """

    def __init__(self, log: Path, pointer: SealedPointer) -> None:
        location = pointer.location if "://" in pointer.location else str(log.parent / pointer.location)
        self._store = open_store(location)
        self.pointer = pointer
        manifest = read_manifest(self._store)
        self._segments = tuple(one for one in manifest.segments if one.first < pointer.size)
        if not self._segments or self._segments[-1].first + self._segments[-1].count != pointer.size:
            raise self._damaged(f"hold {manifest.size} receipts, {pointer.size} were sealed")
        self._firsts = [one.first for one in self._segments]
        self.ids, self.calls, self.leaves = self._columns()
        self._check_root(manifest)
        self._file = lru_cache(4)(self._open)
        self._group = lru_cache(4)(self._read_group)

    def read(self, index: int) -> tuple[bytes, bytes]:
        """(receipt, signature) at `index`."""
        number = bisect_right(self._firsts, index) - 1
        group, row = divmod(index - self._firsts[number], ROW_GROUP_RECEIPTS)
        raws, signatures = self._group(number, group)
        return raws[row].as_py(), signatures[row].as_py()

    def _columns(self) -> tuple[bytes, bytes, list[bytes]]:
        ids, calls, leaves = [], [], []
        for number in range(len(self._segments)):
            table = self._open(number).read(columns=["receipt_id", "call_id", "leaf_hash"])
            ids += table["receipt_id"].to_pylist()
            calls += table["call_id"].to_pylist()
            leaves += table["leaf_hash"].to_pylist()
        if {len(ids), len(calls), len(leaves)} != {self.pointer.size}:
            raise self._damaged(f"hold {len(ids)} rows, {self.pointer.size} were sealed")
        return b"".join(ids), b"".join(calls), leaves

    def _check_root(self, manifest: SegmentManifest) -> None:
        if manifest.size == self.pointer.size and LogTree(self.leaves).root() != manifest.root:
            raise self._damaged("do not lead to the root of their manifest")

    def _open(self, number: int) -> Any:
        segment = self._segments[number]
        try:
            return pq.ParquetFile(reader(self._store, segment.file))
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(f"{segment.file} cannot be read: {error}") from None

    def _read_group(self, number: int, group: int) -> tuple[Any, Any]:
        try:
            table = self._file(number).read_row_group(group, columns=["raw", "signature"])
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(f"{self._segments[number].file} cannot be read: {error}") from None
        return table["raw"], table["signature"]

    def _damaged(self, reason: str) -> UpstreamError:
        return UpstreamError(
            f"the segments in {self._store.location} {reason}",
            code="segments_damaged",
            fix="restore them from another copy; the append log no longer holds these receipts",
        )


def relative_location(log: Path, location: str) -> str:
    """How a pointer names a store, so that a home can be moved as a whole."""
    store = open_store(location)
    if isinstance(store, LocalStore):
        folder, home = store.folder.resolve(), log.parent.resolve()
        return str(folder.relative_to(home)) if folder.is_relative_to(home) else str(folder)
    return location


_POINTER: Final = fields.record(
    {
        "schema": fields.one_of(SCHEMA),
        "location": fields.matching(r"[^\x00-\x1f]{1,4096}", "a path or an address"),
        "size": fields.integer(1),
        "log_end": fields.integer(1),
        "log_check": fields.integer(0, 2**32 - 1),
    }
)
