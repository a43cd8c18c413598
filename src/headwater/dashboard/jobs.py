"""Work that takes longer than a page: processes of their own, each with a folder that says how far it is.

    job.json       what is to be done, as it was asked for     lock        held by the process while it lives
    progress.json  how far it is, written by the process       pid         of the process
    result.json    what came of it, written whole at the end   output      what it printed

The server starts a process and need not live as long as it does: whether a process is alive is told by its lock, which
the kernel drops however it dies. Folders may be deleted when nothing runs in them. Knows nothing of what jobs do.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from headwater.core.errors import ConflictError, InvalidError, MissingError

State = Literal["running", "done", "failed", "stopped"]

JOBS_MAX: Final = 200
RUNNING_MAX: Final = 2
_ID: Final = re.compile(r"job_[0-9a-f]{16}")
_OUTPUT_BYTES: Final = 4_000


@dataclass(frozen=True, slots=True)
class Job:
    """A job as its folder tells it."""

    id: str
    kind: str
    title: str
    begun_at_ns: int
    state: State
    spec: Mapping[str, Any]
    progress: Mapping[str, Any]  # empty before the process has said anything
    folder: Path

    def result(self) -> dict[str, Any]:
        """What came of it.

        Raises:
            MissingError: there is no result, yet or at all.
        """
        found = _read(self.folder / "result.json")
        if not found:
            raise MissingError(f"{self.id} has no result", code="result_missing", fix="wait until it is done")
        return found

    def output(self) -> str:
        """The end of what it printed."""
        path = self.folder / "output"
        return path.read_bytes()[-_OUTPUT_BYTES:].decode("utf-8", "replace") if path.exists() else ""


class Jobs:
    """The jobs in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        kind: str,
        title: str,
        spec: Mapping[str, Any],
        command: Sequence[str],
        *,
        now_ns: int,
        random_bytes: bytes,
        cwd: Path | None = None,
    ) -> Job:
        """Begin a process; `{job}` in `command` stands for its folder.

        Raises:
            ConflictError: ``jobs_running``, so many run already.
        """
        running = [job for job in self.all() if job.state == "running"]
        if len(running) >= RUNNING_MAX:
            raise ConflictError(
                f"{len(running)} jobs are running", code="jobs_running", fix="wait for one to end, or stop one"
            )
        identity = "job_" + random_bytes[:8].hex()
        folder = self.folder / identity
        folder.mkdir(parents=True, mode=0o700)
        value = {"id": identity, "kind": kind, "title": title, "begun_at_ns": now_ns, "spec": spec}
        write_json(folder / "job.json", value)
        self._launch(identity, [part.replace("{job}", str(folder)) for part in command], cwd)
        self._sweep()
        return self.get(identity)

    def again(self, identity: str, command: Sequence[str], *, cwd: Path | None = None) -> Job:
        """Begin the process of a job that has ended once more, in the same folder.

        Raises:
            ConflictError: it is running.
        """
        job = self.get(identity)
        if job.state == "running":
            raise ConflictError(f"{identity} is running", code="jobs_running", fix="wait until it ends")
        for name in ("stopped", "result.json"):
            (job.folder / name).unlink(missing_ok=True)
        self._launch(identity, [part.replace("{job}", str(job.folder)) for part in command], cwd)
        return self.get(identity)

    def stop(self, identity: str) -> Job:
        """End a job's process; doing it again changes nothing."""
        job = self.get(identity)
        if job.state == "running":
            (job.folder / "stopped").touch()
            pid = int((job.folder / "pid").read_text("ascii"))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)  # its lock was held a moment ago, so the pid is still its own
            if identity in self._children:
                with suppress(subprocess.TimeoutExpired):
                    self._children[identity].wait(10)
        return self.get(identity)

    def get(self, identity: str) -> Job:
        """A job.

        Raises:
            MissingError: there is none.
        """
        folder = self.folder / identity
        found = _read(folder / "job.json") if _ID.fullmatch(identity) else {}
        if not found:
            raise MissingError(f"no job {identity[:40]!r}", code="job_missing", fix="see the list")
        return Job(
            identity,
            *(str(found["kind"]), str(found["title"]), int(found["begun_at_ns"])),
            self._state(identity, folder),
            *(found["spec"], _read(folder / "progress.json"), folder),
        )

    def all(self, kind: str | None = None) -> tuple[Job, ...]:
        """Jobs, of one kind if given, the newest first."""
        names = sorted(self.folder.iterdir()) if self.folder.is_dir() else ()
        found = [self.get(path.name) for path in names if (path / "job.json").exists() and _ID.fullmatch(path.name)]
        return tuple(
            sorted((job for job in found if kind in (None, job.kind)), key=lambda job: (-job.begun_at_ns, job.id))
        )

    def _launch(self, identity: str, command: Sequence[str], cwd: Path | None) -> None:
        folder = self.folder / identity
        lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with (folder / "output").open("ab") as output:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    pass_fds=(lock,),  # the lock is the child's from here on, and ends with it
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
                )
        finally:
            os.close(lock)
        (folder / "pid").write_text(str(child.pid), "ascii")
        self._children[identity] = child

    def _state(self, identity: str, folder: Path) -> State:
        child = self._children.get(identity)
        if child is not None and child.poll() is None:
            return "running"
        if child is None and _locked(folder / "lock"):
            return "running"
        if (folder / "stopped").exists():
            return "stopped"
        if child is not None:
            return "done" if child.returncode == 0 else "failed"
        return "done" if (folder / "result.json").exists() else "failed"

    def _sweep(self) -> None:
        """Delete the oldest jobs beyond `JOBS_MAX`."""
        for job in self.all()[JOBS_MAX:]:
            if job.state != "running":
                shutil.rmtree(job.folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write a file whole, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(msgspec.json.encode(value))
    draft.replace(path)


def whole(text: str, name: str, low: int, high: int) -> int:
    """A whole number of a form.

    Raises:
        InvalidError: not one, or out of range.
    """
    plain = text.strip()
    if not (plain.isascii() and plain.isdecimal()) or len(plain) > 15 or not low <= int(plain) <= high:
        raise InvalidError(
            f"{name} is {text[:40]!r}", code="field_invalid", fix=f"give a whole number from {low} to {high}"
        )
    return int(plain)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _locked(path: Path) -> bool:
    try:
        lock = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
