"""Transactions that were signed and whose fate is not known yet, kept so that a crash never sends one twice.

A line is on disk before its transaction leaves. An *intent* is what a transaction is meant to do: chain, sender,
target, data and value. As long as an intent is open, asking for it again goes on with the transactions that were
signed for it, at their nonce; once it has settled, asking again is a new intent. One file per key; one process at a
time holds it. Holds signed transactions, no keys. Knows nothing of nodes or contracts.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from headwater.core.errors import ConflictError, UpstreamError
from headwater.core.keccak import keccak256

_LINES_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Signed:
    """One intent with every transaction that was signed for it; they share a nonce, so at most one is mined."""

    intent: str
    nonce: int
    raws: tuple[bytes, ...]  # oldest first, each dearer than the one before

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """Their hashes, 32 bytes each."""
        return tuple(keccak256(raw) for raw in self.raws)


class Outbox:
    """The open intents of one key. Without a path they are kept in memory only."""

    def __init__(self, path: Path | None = None) -> None:
        """Nothing is opened before `hold`."""
        self._path = path
        self._file: BinaryIO | None = None
        self._open: dict[str, Signed] = {}
        self.kept = path is not None

    def hold(self) -> None:
        """Take the file, or begin one; nothing happens when it is held already.

        Raises:
            ConflictError: another process holds it.
            UpstreamError: it is damaged before its last line.
        """
        if self._path is None or self._file is not None:
            return
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise ConflictError(
                f"another process sends with the outbox {self._path.name}",
                code="outbox_busy",
                fix="wait until it has ended",
            ) from None
        lines = self._read(self._path.name)
        if lines > _LINES_MAX and not self._open:
            self._file.truncate(0)

    def __iter__(self) -> Iterator[Signed]:
        return iter(sorted(self._open.values(), key=lambda entry: entry.nonce))

    def find(self, intent: str) -> Signed | None:
        """The transactions of an intent that is open."""
        return self._open.get(intent)

    def keep(self, intent: str, nonce: int, raw: bytes) -> Signed:
        """Keep a signed transaction before it is sent; gives all of its intent."""
        before = self._open.get(intent)
        raws = before.raws if before and before.nonce == nonce else ()
        entry = Signed(intent, nonce, raws if raw in raws else (*raws, raw))
        self._write(_line(entry))
        self._open[intent] = entry
        return entry

    def settle(self, intent: str) -> None:
        """The fate of an intent is known: it was mined, or can never be."""
        if self._open.pop(intent, None) is not None:
            self._write({"settled": intent})

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, fields: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(fields, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self, name: str) -> int:
        assert self._file is not None
        raw = self._file.read()
        whole, _, torn = raw.rpartition(b"\n")
        if torn:  # never acknowledged, so never sent
            self._file.truncate(len(raw) - len(torn))
        lines = whole.split(b"\n") if whole else []
        for number, line in enumerate(lines, start=1):
            try:
                fields = json.loads(line)
                if "settled" in fields:
                    self._open.pop(fields["settled"], None)
                    continue
                raws = tuple(bytes.fromhex(one) for one in fields["raws"])
                self._open[fields["intent"]] = Signed(fields["intent"], int(fields["nonce"]), raws)
            except (ValueError, KeyError, TypeError):
                raise UpstreamError(
                    f"line {number} of the outbox {name} is damaged",
                    code="outbox_damaged",
                    fix="look its transactions up on the chain, then remove the file",
                ) from None
        return len(lines)


def intent_of(chain_id: int, sender: str, transaction: Mapping[str, Any]) -> str:
    """What identifies an intent, 64 hex digits."""
    meant = [chain_id, sender.lower(), str(transaction.get("to", "")).lower(), str(transaction.get("data", ""))]
    return keccak256(json.dumps([*meant, int(transaction.get("value", 0))]).encode()).hex()


def _line(entry: Signed) -> dict[str, Any]:
    return {"intent": entry.intent, "nonce": entry.nonce, "raws": [raw.hex() for raw in entry.raws]}
