"""Files of an index: written whole or not at all, and read back only with the digest they were written with.

A full disk or a folder that cannot be written becomes one clear error. Knows nothing of what the files hold.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from headwater.core.errors import HeadwaterError, UpstreamError


class HashedFile:
    """A file being written; counts and hashes what goes through."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle, self._hash, self.size_bytes = handle, hashlib.sha256(), 0

    def write(self, raw: bytes | memoryview) -> None:
        """Append bytes."""
        self._handle.write(raw)
        self._hash.update(raw)
        self.size_bytes += len(raw) if isinstance(raw, bytes) else raw.nbytes

    @property
    def digest(self) -> str:
        """``sha256:…`` of everything written so far."""
        return f"sha256:{self._hash.hexdigest()}"


@contextmanager
def whole_file(path: Path) -> Iterator[HashedFile]:
    """Write `path` so that a reader, or the machine after a crash, sees all of it or nothing.

    Raises:
        UpstreamError: the disk is full or refuses.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with disk_errors(path):
            with open(partial, "wb") as handle:
                yield HashedFile(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(partial, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says into one of our errors."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from None


def disk_error(path: Path, error: OSError) -> HeadwaterError:
    """The error for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UpstreamError(
            f"no space left on the disk for {path.name}",
            code="disk_full",
            fix="free space and run the same build again: finished parts are kept",
        )
    return UpstreamError(f"{path.name}: {error.strerror}", code="index_unwritable", fix="check the folder")


def file_digest(path: Path) -> str:
    """``sha256:…`` of a file's bytes."""
    with open(path, "rb") as handle:
        return f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}"
