"""The journal of an embedded chain: every accepted transaction and time jump, one JSON object a line.

A line is on disk before its transaction is acknowledged. Blocks themselves are not kept: replaying the
lines on the same genesis gives the same blocks, and each line holds the hash of the block it made so that
the replay can be checked. A torn last line was never acknowledged and is cut off; damage anywhere else
stops the chain. One process at a time holds the folder. Knows nothing of the EVM.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from headwater.core.errors import ConflictError, UpstreamError


@dataclass(frozen=True, slots=True)
class Mined:
    """A block: with one transaction, or with none."""

    timestamp_s: int
    raw: bytes | None  # the signed transaction as it was sent
    block_hash: bytes  # 32


@dataclass(frozen=True, slots=True)
class Jumped:
    """The clock was moved forward."""

    seconds: int


Entry = Mined | Jumped


class Journal:
    """An open journal. Only one process can have it open."""

    def __init__(self, folder: Path) -> None:
        """Open or create the journal in `folder`.

        Raises:
            ConflictError: another process has it open.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "journal.jsonl"
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConflictError(
                f"another process keeps the chain in {folder}",
                code="chain_locked",
                fix="connect to that process's address, or stop it first",
            ) from None
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def entries(self) -> Iterator[Entry]:
        """All entries in order; call it once, before the first `append`.

        Raises:
            UpstreamError: a line that is damaged and not the last one.
        """
        raw = self._path.read_bytes()
        end = raw.rfind(b"\n") + 1
        if end < len(raw):
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        for number, line in enumerate(raw[:end].splitlines(), start=1):
            try:
                entry = _read(line)
            except (ValueError, KeyError, TypeError) as error:
                raise UpstreamError(
                    f"{self._path.name} line {number} is damaged: {error}",
                    code="journal_damaged",
                    fix="restore the chain folder from a copy",
                ) from None
            yield entry

    def append(self, entry: Entry) -> None:
        """Put `entry` on disk.

        Raises:
            UpstreamError: the disk refused it.
        """
        line = _write(entry)
        try:
            end = os.lseek(self._file, 0, os.SEEK_END)
            written = os.write(self._file, line)
            if written != len(line):
                os.ftruncate(self._file, end)
                raise OSError(f"wrote {written} of {len(line)} bytes")
            os.fsync(self._file)
        except OSError as error:
            raise UpstreamError(
                f"the chain's journal cannot be written: {error}", code="journal_unwritable", fix="free disk space"
            ) from None

    def close(self) -> None:
        """Give the folder back."""
        for handle in (self._file, self._lock):
            with contextlib.suppress(OSError):
                os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write(entry: Entry) -> bytes:
    fields: dict[str, int | str]
    match entry:
        case Jumped(seconds):
            fields = {"jump_s": seconds}
        case Mined(timestamp_s, raw, block_hash):
            fields = {"at_s": timestamp_s, "block": block_hash.hex()}
            if raw is not None:
                fields["tx"] = raw.hex()
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _read(line: bytes) -> Entry:
    fields = json.loads(line)
    if "jump_s" in fields:
        return Jumped(int(fields["jump_s"]))
    raw = bytes.fromhex(fields["tx"]) if "tx" in fields else None
    return Mined(int(fields["at_s"]), raw, bytes.fromhex(fields["block"]))
