"""Lives of processes: a file locked for as long as its process lives. The kernel drops the lock however it dies.

Knows nothing of what a process had at work.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from headwater.core.errors import ConflictError, InvalidError


def take_run(folder: Path, run_id: str) -> int:
    """Mark `run_id` as alive; gives the descriptor that holds the mark until it is closed.

    Raises:
        InvalidError: ``run_id_invalid``.
        ConflictError: ``run_in_use``.
    """
    if not run_id or not run_id.replace("_", "").replace("-", "").isalnum() or len(run_id) > 64:
        raise InvalidError(
            f"run id {run_id[:80]!r}", code="run_id_invalid", fix="use up to 64 letters, digits, _ and -"
        )
    folder.mkdir(exist_ok=True, mode=0o700)
    path = folder / run_id
    while True:
        lock = _locked(path, os.O_CREAT | os.O_RDWR)
        if lock is None:
            raise ConflictError(f"run {run_id} is alive", code="run_in_use", fix="give every process its own run id")
        with suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == path.stat().st_ino:
                return lock
        os.close(lock)  # swept away between opening and locking it: make it again


def _locked(path: Path, flags: int) -> int | None:
    lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def alive(folder: Path, run_id: str) -> bool:
    """Whether the process that took `run_id` still lives."""
    try:
        lock = _locked(folder / run_id, os.O_RDWR)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def sweep(folder: Path, own: str | None) -> None:
    """Remove the files of dead runs, each while its lock is held, so that none is taken in between."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.name == own:
            continue
        with suppress(FileNotFoundError):
            lock = _locked(path, os.O_RDWR)
            if lock is not None:
                path.unlink()
                os.close(lock)
