"""Requests with an idempotency key: one answer, one price, as often as it is asked for.

What is at work is a claim on (payer, key), what was answered is on the disk and looked for once the claim is had. A
call that is passed on keeps its claim to its end. One that is journalled (a model in process, sources in the call)
needs it only until the journal has it, and looks for what was answered by others while it has the claim; so whichever
comes second finds the first, by its claim or on the disk. One process claims in memory; several claim by files locked
for as long as the claim lasts, which the kernel frees however a process dies. A request that is passed on and fails
leaves nothing, and its key is free again.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError
from headwater.core.ids import CallId
from headwater.gateway.room import ASIDE_BYTES
from headwater.receipts import Issued
from headwater.store.kept_store import KeptAnswer, KeptStore, conflict
from headwater.store.key_store import KeyRecord

AtDesk = Callable[[Callable[[], Any]], Awaitable[Any]]


class Keeping:
    """One request at work, whose answer is to be kept."""

    __slots__ = ("_at_desk", "_digest", "_key_id", "_name", "_store", "_stream")

    def __init__(self, store: KeptStore, at_desk: AtDesk, key_id: str, name: str, digest: str, *, stream: bool) -> None:
        self._store, self._at_desk = store, at_desk
        self._key_id, self._name, self._digest, self._stream = key_id, name, digest, stream

    async def keep(self, call_id: CallId, issued: Issued, answer: bytes) -> None:
        """Keep the answer and what will charge it. When this returns it is on the disk.

        Raises:
            HeadwaterError: it could not be kept; nothing is charged.
        """
        kept = KeptAnswer(
            *(self._key_id, self._name, self._digest, call_id, self._stream),
            answer=answer,
            receipt=issued.raw,
            signature=issued.signature,
        )
        await self._at_desk(lambda: self._store.keep(kept))


class Claims(Protocol):
    """Idempotency keys of requests at work. Used by any thread; whoever took a claim frees it."""

    def take(self, key_id: str, name: str, asked: str) -> None:
        """Claim a payer's idempotency key for a request until `free`.

        Args:
            asked: digest of the request.

        Raises:
            ConflictError: ``call_in_progress``, or ``idempotency_conflict`` when another request has it.
        """
        ...

    def free(self, key_id: str, name: str) -> None:
        """End a claim."""
        ...


class OwnClaims:
    """The claims of one process, in memory; as `Claims`."""

    def __init__(self) -> None:
        self._working: dict[tuple[str, str], str] = {}  # digest of the request by payer and idempotency key
        self._one = threading.Lock()

    def take(self, key_id: str, name: str, asked: str) -> None:
        """As `Claims.take`."""
        with self._one:
            working = self._working.get((key_id, name))
            if working is None:
                self._working[key_id, name] = asked
                return
        raise _at_work(name, same=working == asked)

    def free(self, key_id: str, name: str) -> None:
        """As `Claims.free`."""
        del self._working[key_id, name]


class SharedClaims:
    """The claims of several processes: a locked file each in `folder`, which is its owner's alone; as `Claims`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True, mode=0o700)
        self._locks: dict[tuple[str, str], int] = {}

    def take(self, key_id: str, name: str, asked: str) -> None:
        """As `Claims.take`."""
        path = self._path(key_id, name)
        while True:
            lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                working = os.pread(lock, 2 * len(asked), 0)
                os.close(lock)
                # What is not written whole yet is of a request that has just come: the retry is told.
                same = len(working) != len(asked) or working == asked.encode()
                raise _at_work(name, same=same) from None
            try:
                status = os.fstat(lock)
                if status.st_size:  # its process died; a new file, so that nobody reads the old request in it
                    path.unlink()
                elif os.path.samestat(status, path.stat()):
                    os.write(lock, asked.encode())
                    self._locks[key_id, name] = lock
                    return
            except FileNotFoundError:
                pass  # freed between opening and locking it
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)

    def free(self, key_id: str, name: str) -> None:
        """As `Claims.free`."""
        lock = self._locks.pop((key_id, name))
        self._path(key_id, name).unlink(missing_ok=True)
        os.close(lock)

    def sweep(self) -> int:
        """Remove what processes left that died; how many files that were."""
        swept = 0
        for path in self._folder.iterdir():
            with suppress(OSError):
                lock = os.open(path, os.O_RDWR)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.path.samestat(os.fstat(lock), path.stat()):
                        path.unlink()
                        swept += 1
                finally:
                    os.close(lock)
        return swept

    def _path(self, key_id: str, name: str) -> Path:
        return self._folder / sha256(f"{key_id}\x00{name}".encode()).hexdigest()


@contextmanager
def claimed(claims: Claims, key_id: str, name: str | None, asked: str) -> Iterator[None]:
    """Have a payer's idempotency key, if there is one, for as long as the block runs; otherwise as `Claims.take`."""
    if name is None:
        yield
        return
    claims.take(key_id, name, asked)
    try:
        yield
    finally:
        claims.free(key_id, name)


class Keeper:
    """All of them."""

    def __init__(self, store: KeptStore, at_desk: AtDesk, claims: Claims | None = None) -> None:
        self._store, self._at_desk = store, at_desk
        self._claims = OwnClaims() if claims is None else claims

    async def begin(self, key: KeyRecord, name: str, path: str, raw: bytes, *, stream: bool) -> Keeping | KeptAnswer:
        """Take an idempotency key, which `end` gives back, or find what its request was answered.

        Raises:
            ConflictError: ``call_in_progress``, or ``idempotency_conflict`` when the key came with another request.
        """
        said = path.encode() + b"\x00" + raw
        asked = digest(said) if len(raw) <= ASIDE_BYTES else await self._at_desk(lambda: digest(said))
        self._claims.take(key.key_id, name, asked)
        try:
            kept = await self._at_desk(lambda: self._store.find(key.key_id, name, asked))
        except BaseException:
            self._claims.free(key.key_id, name)
            raise
        if kept is not None:
            self._claims.free(key.key_id, name)
            assert isinstance(kept, KeptAnswer)
            return kept
        return Keeping(self._store, self._at_desk, key.key_id, name, asked, stream=stream)

    def end(self, key: KeyRecord, name: str) -> None:
        """The request came to its end, one way or another."""
        self._claims.free(key.key_id, name)


def _at_work(name: str, *, same: bool) -> ConflictError:
    if not same:
        return conflict(name, "at work")
    return ConflictError(
        "a request with this idempotency key is still being answered",
        code="call_in_progress",
        fix="wait and send the same request again",
    )
