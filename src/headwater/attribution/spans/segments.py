"""Segments as files: one file each, written once, synced, memory-mapped, known by its SHA-256.

Layout: magic, length of the header, header (canonical JSON: name, type, count and place of each
array), arrays on 64-byte boundaries. The digest and the size are kept by the manifest.

Invariant: a file is complete under its name or it is not there: it is written aside, synced and
renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.segment import ARRAYS, Segment
from headwater.core.canonical import canonical
from headwater.core.errors import InvalidError, UpstreamError

_MAGIC = b"HWSPANS2"
_ALIGNMENT = 64
_READ_BYTES = 1 << 22
_SHEET_BYTES = 1 << 21  # a large page of the processor


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """How the manifest knows a segment."""

    file: str  # name inside the index folder
    sha256: str  # 64 hex digits
    size_bytes: int
    documents: int
    tokens: int


def write_segment(folder: Path, name: str, segment: Segment) -> SegmentFile:
    """Write a segment durably.

    Raises:
        UpstreamError: the disk failed or is full; nothing is left behind.
    """
    table: list[tuple[str, str, int, int]] = []
    at = 0
    for array_name in ARRAYS:
        array = segment.arrays[array_name]
        at = -(-at // _ALIGNMENT) * _ALIGNMENT
        table.append((array_name, array.dtype.str, array.size, at))
        at += array.nbytes
    header = canonical(table)
    begin = -(-(16 + len(header)) // _ALIGNMENT) * _ALIGNMENT
    target, aside = folder / name, folder / f"{name}.part"
    try:
        with aside.open("wb", buffering=0) as out:
            paper = _Paper(out)
            put = paper.put
            put((_MAGIC + len(header).to_bytes(8, "little") + header).ljust(begin, b"\0"))
            at = 0
            for array_name, _, _, place in table:
                array = segment.arrays[array_name]
                put(b"\0" * (place - at))
                if array.size:
                    put(array.view(np.uint8).data)
                at = place + array.nbytes
            sha256, size = paper.finish()
            os.fsync(out.fileno())
        os.replace(aside, target)
        sync_folder(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise disk_error(target, error) from error
    return SegmentFile(name, sha256, size, segment.documents, segment.tokens)


class _Paper:
    """Writes a file in whole sheets, so that the system keeps it in large pages, and digests it on the way."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._digest = hashlib.sha256()
        self._sheet = memoryview(bytearray(_SHEET_BYTES))
        self._filled = self._size = 0

    def put(self, piece: bytes | memoryview) -> None:
        """Write bytes."""
        rest = memoryview(piece)
        while rest:
            part = rest[: _SHEET_BYTES - self._filled]
            self._sheet[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == _SHEET_BYTES:
                self._turn()

    def finish(self) -> tuple[str, int]:
        """SHA-256 and size of what was written."""
        self._turn()
        return self._digest.hexdigest(), self._size

    def _turn(self) -> None:
        view = self._sheet[: self._filled]
        self._digest.update(view)
        self._size += self._filled
        self._filled = 0
        while view:
            view = view[self._out.write(view) :]


def map_segment(folder: Path, known: SegmentFile) -> Segment:
    """Map a segment whose size fits what the manifest says; its bytes are not read.

    Raises:
        InvalidError: missing, cut short or not laid out as a segment; the file is named.
    """
    path = folder / known.file
    try:
        size = path.stat().st_size
    except OSError:
        raise _damaged(path, "is missing") from None
    if size != known.size_bytes:
        raise _damaged(path, f"has {size} bytes, not {known.size_bytes}")
    # A plain ndarray, because looking things up through np.memmap costs microseconds each time.
    whole = _mapped(path)
    try:
        if whole[:8].tobytes() != _MAGIC:
            raise ValueError
        length = int.from_bytes(whole[8:16].tobytes(), "little")
        table = json.loads(whole[16 : 16 + length].tobytes())
        begin = -(-(16 + length) // _ALIGNMENT) * _ALIGNMENT
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, kind, count, place in table:
            if kind != ARRAYS[name]:
                raise ValueError
            end = begin + place + count * np.dtype(kind).itemsize
            arrays[name] = whole[begin + place : end].view(kind)
            if arrays[name].size != count:
                raise ValueError
        if set(arrays) != set(ARRAYS):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise _damaged(path, "is not laid out as a segment") from None
    return Segment(arrays)


def _mapped(path: Path) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as source:
            memory = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        raise _damaged(path, "cannot be read") from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # advice: queries read all over the file
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)


def check_segment(folder: Path, known: SegmentFile) -> None:
    """Read a segment file and compare its digest.

    Raises:
        InvalidError: missing, cut short or changed; the file is named.
    """
    path = folder / known.file
    digest = hashlib.sha256()
    try:
        if path.stat().st_size != known.size_bytes:
            raise _damaged(path, f"has {path.stat().st_size} bytes, not {known.size_bytes}")
        with path.open("rb", buffering=0) as source:
            while piece := source.read(_READ_BYTES):
                digest.update(piece)
    except OSError:
        raise _damaged(path, "is missing or cannot be read") from None
    if digest.hexdigest() != known.sha256:
        raise _damaged(path, f"has SHA-256 {digest.hexdigest()}, not {known.sha256}")


def stamp(folder: Path, known: SegmentFile) -> str:
    """What the file system says of a file that would be different had anybody written to it."""
    try:
        status = (folder / known.file).stat()
    except OSError:
        return "missing"
    return f"{known.sha256}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def write_durably(path: Path, raw: bytes) -> None:
    """Replace a small file as a whole, or leave it as it was.

    Raises:
        UpstreamError: the disk failed or is full.
    """
    aside = path.with_name(f"{path.name}.part")
    try:
        with aside.open("wb") as out:
            out.write(raw)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise disk_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_error(path: Path, error: OSError) -> UpstreamError:
    """The error to raise when writing `path` failed."""
    return UpstreamError(
        f"{path.name} could not be written: {error.strerror}; the index is as it was",
        code="index_disk",
        fix="free space or repair the disk, then try again",
    )


def _damaged(path: Path, what: str) -> InvalidError:
    return InvalidError(
        f"segment {path.name} {what}",
        code="segment_damaged",
        fix="restore the file, or open with --salvage to go on without its documents",
    )
