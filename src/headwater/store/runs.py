"""Lives of processes: a file locked for as long as its process lives. The kernel drops the lock however it dies.

Several processes may look at once: looking takes a shared lock for a moment, so no look is mistaken for a life; who
takes a run waits out such moments. A lock goes to forks of its process too: start processes by executing them.

Knows nothing of what a process had at work.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from headwater.core.errors import ConflictError, InvalidError

MARK_BYTES: Final = 6
"""What call ids of a run begin with: enough that two lives of one home never share it."""

_TRIES: Final = 100
_TRY_S: Final = 0.005


def run_mark(run_id: str) -> str:
    """The 12 hex digits that call ids of a run begin with, so that a receipt tells whose it is."""
    return hashlib.sha256(b"headwater run\x00" + run_id.encode()).hexdigest()[: 2 * MARK_BYTES]


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
    tries = 0
    while True:
        lock = _locked(path, os.O_CREAT | os.O_RDWR)
        if lock is None:
            tries += 1
            if tries == _TRIES:
                raise ConflictError(
                    f"run {run_id} is alive", code="run_in_use", fix="give every process its own run id"
                )
            time.sleep(_TRY_S)  # perhaps somebody only looks whether it lives
            continue
        with suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == path.stat().st_ino:
                return lock
        os.close(lock)  # swept away between opening and locking it: make it again


def _locked(path: Path, flags: int, kind: int = fcntl.LOCK_EX) -> int | None:
    lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def alive(folder: Path, run_id: str) -> bool:
    """Whether the process that took `run_id` still lives."""
    try:
        lock = _locked(folder / run_id, os.O_RDWR, fcntl.LOCK_SH)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def living(folder: Path) -> tuple[str, ...]:
    """The runs whose processes live."""
    return tuple(sorted(path.name for path in folder.glob("*") if alive(folder, path.name)))


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
