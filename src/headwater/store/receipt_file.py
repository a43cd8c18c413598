"""The file of a receipt log: opened, locked to one writer, begun, written, and cut where only a person may cut.

Also the two things about it that only the kernel can do: room is set aside ahead of the end without
lengthening the file, and a range whose receipts are sealed elsewhere gives its blocks back.

Knows the frames and nothing of what the log says about them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from headwater.core.errors import ConflictError, InvalidError, MissingError, UpstreamError
from headwater.store.receipt_frames import FILE_HEADER, FIRST_CHECK, Damage, scan

AHEAD_BYTES: Final = 16 * 2**20
"""Room set aside at a time: syncing into it needs no new blocks, which evens out the latency."""

_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE
_PUNCH_HOLE: Final = 2  # FALLOC_FL_PUNCH_HOLE
_lock_range = struct.Struct("hhqqi4x")  # struct flock on 64-bit Linux: type, whence, start, length, pid


@dataclass(frozen=True, slots=True)
class TornTail:
    """What was left behind the last good frame, now cut off."""

    offset: int  # bytes from the start of the file
    size_bytes: int
    reason: str


def check_header(handle: int, path: Path) -> None:
    """Refuse a file that does not begin like a receipt log of this version."""
    if os.pread(handle, len(FILE_HEADER), 0) != FILE_HEADER:
        raise InvalidError(
            f"{path} does not begin like a receipt log of version 1",
            code="log_header_invalid",
            fix="give the path of a receipt log; if its first 16 bytes were damaged, restore it from a copy",
        )


def cut_damaged_tail(path: Path) -> TornTail | None:
    """Cut a log off at its first damaged frame, after saving what is cut in a file beside it.

    For the one case that opening refuses and only a person can judge: the damage is in the last write
    before a power cut, so that nobody was promised what is lost. Everything behind it goes, too.

    Returns:
        What was cut, or None when nothing is damaged.
    """
    handle = open_file(path, read_only=False)
    try:
        lock_for_writing(handle, path)
        check_header(handle, path)
        size = os.fstat(handle).st_size
        damage = None
        for found in scan(handle, len(FILE_HEADER), FIRST_CHECK, size):
            damage = found if isinstance(found, Damage) else None
        if damage is None:
            return None
        saved = path.with_name(f"{path.name}.cut-{damage.offset}")
        with open(saved, "xb") as file:
            file.write(os.pread(handle, size - damage.offset, damage.offset))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
        os.ftruncate(handle, damage.offset)
        os.fsync(handle)
        return TornTail(damage.offset, size - damage.offset, damage.reason)
    finally:
        os.close(handle)


def open_file(path: Path, read_only: bool) -> int:
    """A file descriptor of the log at `path`, which is made when it is missing and may be written."""
    flags = os.O_RDONLY if read_only else os.O_RDWR | os.O_CREAT
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        raise MissingError(
            f"no receipt log at {path}", code="log_missing", fix="give its path, or make the folder it should be in"
        ) from None
    except OSError as error:
        raise UpstreamError(
            f"{path} cannot be opened: {error.strerror}",
            code="log_not_opened",
            fix="check the path and its permissions",
        ) from None


def lock_for_writing(handle: int, path: Path) -> None:
    """Be the one writer until the descriptor is closed, or refuse at once."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise ConflictError(
            f"{path} is open for writing elsewhere",
            code="log_locked",
            fix="stop the other process, or open the log read-only",
        ) from None


def start_file(handle: int, path: Path, sync: Callable[[int], None]) -> None:
    """Write the header of a new file, or of one whose making was cut short."""
    begun = os.pread(handle, len(FILE_HEADER), 0)
    if len(begun) == len(FILE_HEADER) or not FILE_HEADER.startswith(begun):
        return
    try:
        write_all(handle, FILE_HEADER, 0)
        sync(handle)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
        raise UpstreamError(
            f"{path} could not be started: {error.strerror}", code="disk_full", fix="make room on the disk"
        ) from error


def write_all(handle: int, data: bytes, offset: int) -> None:
    """Write every byte of `data` at `offset`, however many calls it takes."""
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def set_aside(handle: int, end: int) -> int:
    """Reserve blocks behind `end` without changing the file's size; the place up to which that was done.

    Only a convenience: where the disk, its space or the system does not allow it, nothing is reserved.
    """
    if not _allocate(handle, _KEEP_SIZE, end, AHEAD_BYTES):
        return end
    return end + AHEAD_BYTES


def give_back(handle: int, start: int, end: int) -> bool:
    """Turn the bytes [start, end) into a hole that takes no room; whether the file system can."""
    return start >= end or _allocate(handle, _KEEP_SIZE | _PUNCH_HOLE, start, end - start)


def begin_write(handle: int) -> None:
    """Keep readers from taking what is being written for promised. Ends with `end_write` or with the process."""
    fcntl.fcntl(handle, fcntl.F_OFD_SETLKW, _lock_range.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))


def try_begin_write(handle: int) -> bool:
    """As `begin_write`, but without waiting; False when a reader is in between."""
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _lock_range.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except OSError:
        return False
    return True


def end_write(handle: int) -> None:
    """What was written is now durable or taken back."""
    fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _lock_range.pack(fcntl.F_UNLCK, os.SEEK_SET, 0, 1, 0))


@contextlib.contextmanager
def between_writes(handle: int) -> Iterator[None]:
    """While inside, no write is under way: every whole frame is promised, or its writer died."""
    fcntl.fcntl(handle, fcntl.F_OFD_SETLKW, _lock_range.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 1, 0))
    try:
        yield
    finally:
        end_write(handle)


def _allocate(handle: int, mode: int, offset: int, size: int) -> bool:
    call = _fallocate()
    return call is not None and call(handle, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) == 0


@cache
def _fallocate() -> Any:
    """The C library's fallocate64, or None: Python offers only the form that lengthens the file."""
    try:
        return ctypes.CDLL(None).fallocate64
    except (OSError, AttributeError):
        return None


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def damaged(path: Path, damage: Damage) -> UpstreamError:
    """The refusal of a log in which promised records do not fit their checksums."""
    return UpstreamError(
        f"{path} is damaged at byte {damage.offset}: {damage.reason}",
        code="log_damaged",
        fix="restore the file from a copy; if this was the last write before a power cut, cut it with cut_damaged_tail",
    )
