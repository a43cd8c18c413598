"""Many writers of one event loop, one sync: what comes while a batch is being written makes the next batch.

`GroupCommit` does this for threads, at the price of waking a thread for each receipt; here waiting costs a future.
A writer waits for at most the batch under way and its own. An error of one receipt is its writer's alone.
Knows nothing of HTTP or of what receipts say.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final, Protocol

from headwater.core.errors import HeadwaterError, RefusedError
from headwater.store.kernel_sync import KernelSync
from headwater.store.receipt_admission import Entry
from headwater.store.receipt_log import ReceiptLog, Written

BATCH_MAX = 2_000
"""Receipts written at once: enough to make a sync cheap, few enough to be done in some milliseconds."""

GATHER_S: Final = 0.003
"""The longest a receipt waits for those that are expected with it."""

AT_ONCE_MAX: Final = 512
"""The most receipts that are written on the event loop itself; more take long enough to be a thread's work."""

Told = Callable[[Entry | None], None]
"""Is told on the event loop, always and once, where a receipt stands, or nothing when it could not be written."""


class Receipts(Protocol):
    """A receipt log to append to: the one this process owns, or another process's (`remote_log`)."""

    @property
    def broken(self) -> bool:
        """Whether it takes no more receipts, and those it was given last may or may not be in it."""
        ...

    def append_each(self, receipts: Sequence[tuple[bytes, str]]) -> Sequence[Entry | HeadwaterError]:
        """Store receipts, (canonical bytes, signature) each: on the disk when this returns, or each with its error."""
        ...

    def __len__(self) -> int:
        """How many receipts it holds."""
        ...


_Waiting = tuple[asyncio.Future[Entry], Told | None]


class ReceiptQueue:
    """Appends to `log` for the coroutines of one event loop. Close it before the log.

    Args:
        waiting_max: receipts that may wait; beyond it writers are refused and should slow down.
        expected: how many more may be handed in any moment. A batch leaves when it has as many as are still expected,
            or after `GATHER_S`: what a sync costs is shared by more where many come, and nobody waits where few do.
        kernel: syncs the log of this process without a thread; where it gives None, and for another process's log,
            a thread waits for the disk.
    """

    def __init__(
        self,
        log: Receipts,
        *,
        batch_max: int = BATCH_MAX,
        waiting_max: int = 100_000,
        expected: Callable[[], int] = lambda: 0,
        kernel: Callable[[], KernelSync | None] = KernelSync.open,
    ) -> None:
        self._log, self._batch_max, self._waiting_max, self._expected = log, batch_max, waiting_max, expected
        self._timer: asyncio.TimerHandle | None = None
        self._leaving = False
        self._receipts: list[tuple[bytes, str]] = []  # not handed to the writer yet
        self._waiting: list[_Waiting] = []  # whose they are
        self._writing: list[_Waiting] = []  # of the batch the writer has
        self._loop: asyncio.AbstractEventLoop | None = None
        self._jobs: SimpleQueue[list[tuple[bytes, str]] | None] = SimpleQueue()
        self._writer: threading.Thread | None = None
        self._drained: asyncio.Future[None] | None = None
        self._open_kernel = kernel
        self._kernel: KernelSync | None = None
        self._written_down: Written | None = None  # by this loop, being synced by the kernel

    async def append(self, raw: bytes, signature: str) -> Entry:
        """Store one receipt; when this returns it is on the disk. A writer that is cancelled may have stored it.

        Raises:
            RefusedError: ``receipts_waiting``, too many receipts wait for the disk.
            HeadwaterError: as `ReceiptLog.append`.
        """
        return await self.submit(raw, signature)

    def submit(self, raw: bytes, signature: str, told: Told | None = None) -> asyncio.Future[Entry]:
        """Hand in one receipt; the future is done, in the order of handing in, when it is on the disk or refused.

        Args:
            told: is told too, also when the future has been cancelled.

        Raises:
            RefusedError: ``receipts_waiting``.
        """
        if len(self._waiting) >= self._waiting_max:
            raise RefusedError(
                f"{len(self._waiting)} receipts wait for the disk", code="receipts_waiting", fix="retry in a second"
            )
        loop = self._loop
        if loop is None:
            loop = self._begin()
        future: asyncio.Future[Entry] = loop.create_future()
        self._receipts.append((raw, signature))
        self._waiting.append((future, told))
        if not self._writing:
            self._gather(loop)
        return future

    async def close(self) -> None:
        """Wait until everything that was handed in is on the disk or refused."""
        if self._loop is not None and (self._waiting or self._writing):
            self._drained = self._loop.create_future()
            self._hand_over()
            await self._drained
        if self._writer is not None:
            self._jobs.put(None)
            self._writer.join()
            self._stop_kernel()
            self._writer = self._loop = None

    def _begin(self) -> asyncio.AbstractEventLoop:
        self._loop = asyncio.get_running_loop()
        self._writer = threading.Thread(target=self._write, args=(self._loop,), name="receipts", daemon=True)
        self._writer.start()
        self._kernel = self._open_kernel() if isinstance(self._log, ReceiptLog) else None
        if self._kernel is not None:
            self._loop.add_reader(self._kernel.told, self._synced)
        return self._loop

    def _gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand over what waits, or wait a little for more."""
        if len(self._waiting) >= self._expected():
            if not self._leaving:
                self._leaving = True
                loop.call_soon(self._hand_over)  # what else this turn of the loop brings comes along
        elif self._timer is None:
            self._timer = loop.call_later(GATHER_S, self._hand_over)

    def _hand_over(self) -> None:
        self._leaving = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._writing or not self._waiting:
            return
        most = self._batch_max
        receipts, self._receipts = self._receipts[:most], self._receipts[most:]
        self._writing, self._waiting = self._waiting[:most], self._waiting[most:]
        if self._kernel is None or len(receipts) > AT_ONCE_MAX or not self._write_down(receipts, self._kernel):
            self._jobs.put(receipts)

    def _write_down(self, receipts: Sequence[tuple[bytes, str]], kernel: KernelSync) -> bool:
        """Write here and have the kernel sync; False when the thread has to."""
        assert isinstance(self._log, ReceiptLog)
        self._written_down = written = self._log.begin_each(receipts)
        if written is None:
            return False
        if not kernel.begin(written.handle):
            self._finish(_sync(written.handle))  # the one time that this is found out
            self._stop_kernel()
        return True

    def _stop_kernel(self) -> None:
        if self._kernel is not None and self._loop is not None:
            self._loop.remove_reader(self._kernel.told)
            self._kernel.close()
        self._kernel = None

    def _synced(self) -> None:
        if self._kernel is not None and self._written_down is not None:
            self._finish(self._kernel.ended())

    def _finish(self, failed: OSError | None) -> None:
        written, self._written_down = self._written_down, None
        assert isinstance(self._log, ReceiptLog)
        assert written is not None
        self._written(self._log.finish(written, failed))

    def _written(self, outcomes: Sequence[Entry | Exception]) -> None:
        writing, self._writing = self._writing, []
        for (future, told), outcome in zip(writing, outcomes, strict=True):
            if told is not None:
                told(None if isinstance(outcome, Exception) else outcome)
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if self._waiting and self._loop is not None:
            self._gather(self._loop)
        if self._drained is not None and not self._writing and not self._waiting:
            self._drained.set_result(None)
            self._drained = None

    def _write(self, loop: asyncio.AbstractEventLoop) -> None:
        """The writer's thread."""
        while (receipts := self._jobs.get()) is not None:
            try:
                outcomes: Sequence[Entry | Exception] = self._log.append_each(receipts)
            except Exception as error:  # also what is not ours: nobody may wait for ever
                outcomes = [error] * len(receipts)
            loop.call_soon_threadsafe(self._written, outcomes)


def _sync(handle: int) -> OSError | None:
    try:
        os.fdatasync(handle)
    except OSError as error:
        return error
    return None
