"""The receipt log as a process has it that does not own it: receipts are handed to the owner, who appends them.

What `append_each` returned is on the disk. When the owner goes away in the middle of it, nobody here can know whether
those receipts were stored: they may stand in the log, and then their calls are charged when the owner's next start
recovers this run. So a lost log stays lost: nothing is appended any more, each try is ``log_unreachable``, what those
calls held stays held, and the process should end. Asking again elsewhere would let one lease pay twice.

Knows nothing of what receipts say.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from headwater.core.errors import HeadwaterError, InvalidError, UpstreamError
from headwater.core.ids import receipt_id
from headwater.core.limits import RECEIPT_SIZE_BYTES_MAX
from headwater.store.log_wire import (
    FRAME_BYTES_MAX,
    VERSION,
    Answer,
    Append,
    Appended,
    Count,
    Fault,
    Hello,
    Request,
    Size,
    error_of,
    read_answer,
    send_frame,
)
from headwater.store.receipt_admission import Entry

_RETRY_S: Final = 0.02
_FRAME_ITEM_BYTES: Final = 160
"""What a receipt takes in a frame beside its own bytes, at most."""


class RemoteLog:
    """The log that a `LogService` serves at `path`; safe to share between threads.

    Args:
        run_id: this life of this process, by which its appending can be ended.
        patience_s: how long to wait for the service to be there.

    Raises:
        UpstreamError: ``log_unreachable``.
        ConflictError: ``log_version_other``.
    """

    def __init__(self, path: Path, run_id: str, *, patience_s: float = 5.0) -> None:
        self.path, self._run_id = path, run_id
        self._talking = threading.Lock()  # one request at a time
        self._lost = False
        self._watched: socket.socket | None = None
        self._sock = _connect(path, patience_s)
        try:
            self._ask(Hello(VERSION, run_id))
        except BaseException:
            self._sock.close()
            raise

    @property
    def broken(self) -> bool:
        """Whether the log is lost: it takes no more receipts, and the last ones may or may not be in it."""
        return self._lost

    def append_each(self, receipts: Sequence[tuple[bytes, str]]) -> tuple[Entry | HeadwaterError, ...]:
        """Store receipts of different writers: each gets its entry or its own error. As `ReceiptLog.append_each`."""
        outcomes: list[Entry | HeadwaterError] = []
        for part in _frames(receipts):
            outcomes += self._append(part)
        return tuple(outcomes)

    def append(self, raw: bytes, signature: str) -> Entry:
        """Store one receipt; when this returns it is on the disk.

        Raises:
            HeadwaterError: as `ReceiptLog.append`, or ``log_unreachable``.
        """
        (outcome,) = self.append_each(((raw, signature),))
        if isinstance(outcome, HeadwaterError):
            raise outcome
        return outcome

    def __len__(self) -> int:
        answer = self._ask(Count())
        assert isinstance(answer, Size)
        return answer.size

    def watch(self, told: Callable[[], None]) -> None:
        """Have `told` called, once and on a thread of its own, when the owner of the log has gone; not after `close`.

        Raises:
            UpstreamError: ``log_unreachable``.
        """
        sock = self._watched = _connect(self.path, 0.0)

        def wait() -> None:
            with suppress(OSError):
                while sock.recv(1):
                    pass
            if self._watched is not None:
                told()

        threading.Thread(target=wait, name="log watch", daemon=True).start()

    def close(self) -> None:
        """End the connection; an append under way fails."""
        self._lost = True
        watched, self._watched = self._watched, None
        for sock in (self._sock, watched):
            if sock is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        with self._talking:
            self._sock.close()
        if watched is not None:
            watched.close()

    def _append(self, receipts: Sequence[tuple[bytes, str]]) -> Iterator[Entry | HeadwaterError]:
        large = next((len(raw) for raw, _ in receipts if len(raw) > RECEIPT_SIZE_BYTES_MAX), None)
        if large is not None:  # alone in its frame, which it need not fit
            return iter([_too_large(large)])
        try:
            answer = self._ask(Append(list(receipts)))
        except HeadwaterError as error:
            return iter([error] * len(receipts))
        assert isinstance(answer, Appended)
        return (
            error_of(outcome) if isinstance(outcome, Fault) else Entry(outcome, receipt_id(raw))
            for (raw, _), outcome in zip(receipts, answer.outcomes, strict=True)
        )

    def _ask(self, request: Request) -> Answer:
        with self._talking:
            if self._lost:
                raise self._unreachable("it was lost before")
            try:
                send_frame(self._sock, request)
                answer = read_answer(self._sock)
            except (OSError, InvalidError) as error:
                self._lost = True
                self._sock.close()
                raise self._unreachable(str(error)) from error
        if isinstance(answer, Fault):
            raise error_of(answer)
        return answer

    def _unreachable(self, why: str) -> UpstreamError:
        return UpstreamError(
            f"the receipt log at {self.path} is lost: {why}",
            code="log_unreachable",
            fix="end this process; what it had at work is settled by the next start",
        )


def _connect(path: Path, patience_s: float) -> socket.socket:
    end_s = time.monotonic() + patience_s
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            if time.monotonic() >= end_s or not isinstance(error, ConnectionRefusedError | FileNotFoundError):
                raise UpstreamError(
                    f"no receipt log at {path}: {error.strerror or error}",
                    code="log_unreachable",
                    fix="start the gateway that owns it",
                ) from error
            time.sleep(_RETRY_S)
        else:
            return sock


def _frames(receipts: Sequence[tuple[bytes, str]]) -> Iterator[Sequence[tuple[bytes, str]]]:
    """Receipts in frames that are not too long; one that is too large for the log is by itself."""
    start, size = 0, 0
    for at, (raw, signature) in enumerate(receipts):
        takes = len(raw) + len(signature) + _FRAME_ITEM_BYTES
        alone = len(raw) > RECEIPT_SIZE_BYTES_MAX
        if at > start and (alone or size + takes > FRAME_BYTES_MAX // 2):
            yield receipts[start:at]
            start, size = at, 0
        size += takes
        if alone:
            yield receipts[start : at + 1]
            start, size = at + 1, 0
    if start < len(receipts):
        yield receipts[start:]


def _too_large(size: int) -> InvalidError:
    return InvalidError(
        f"receipt takes {size} bytes, the limit is {RECEIPT_SIZE_BYTES_MAX}",
        code="receipt_too_large",
        fix="append receipts as they were issued",
    )
