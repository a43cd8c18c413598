"""Many writers of one event loop, one sync: what comes while a batch is being written makes the next batch.

`GroupCommit` does this for threads, at the price of waking a thread for each receipt; here waiting costs a future.
A writer waits for at most the batch under way and its own. An error of one receipt is its writer's alone.
Knows nothing of HTTP or of what receipts say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from headwater.core.errors import RefusedError
from headwater.store.receipt_admission import Entry
from headwater.store.receipt_log import ReceiptLog

BATCH_MAX = 2_000
"""Receipts written at once: enough to make a sync cheap, few enough to be done in some milliseconds."""


class ReceiptQueue:
    """Appends to `log` for the coroutines of one event loop. Close it before the log.

    Args:
        waiting_max: receipts that may wait; beyond it writers are refused and should slow down.
    """

    def __init__(self, log: ReceiptLog, *, batch_max: int = BATCH_MAX, waiting_max: int = 100_000) -> None:
        self._log, self._batch_max, self._waiting_max = log, batch_max, waiting_max
        self._waiting: list[tuple[tuple[bytes, str], asyncio.Future[Entry]]] = []
        self._writer = ThreadPoolExecutor(1, "receipts")
        self._drained: asyncio.Task[None] | None = None

    async def append(self, raw: bytes, signature: str) -> Entry:
        """Store one receipt; when this returns it is on the disk. A writer that is cancelled may have stored it.

        Raises:
            RefusedError: ``receipts_waiting``, too many receipts wait for the disk.
            HeadwaterError: as `ReceiptLog.append`.
        """
        return await self.submit(raw, signature)

    def submit(self, raw: bytes, signature: str) -> asyncio.Future[Entry]:
        """Hand in one receipt; the future is done, in the order of handing in, when it is on the disk or refused.

        Raises:
            RefusedError: ``receipts_waiting``.
        """
        if len(self._waiting) >= self._waiting_max:
            raise RefusedError(
                f"{len(self._waiting)} receipts wait for the disk", code="receipts_waiting", fix="retry in a second"
            )
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append(((raw, signature), future))
        if self._drained is None or self._drained.done():
            self._drained = asyncio.create_task(self._drain())
        return future

    async def close(self) -> None:
        """Wait until everything that was handed in is on the disk or refused."""
        if self._drained is not None:
            await self._drained
        self._writer.shutdown()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._batch_max], self._waiting[self._batch_max :]
            receipts = [receipt for receipt, _ in batch]
            try:
                outcomes: Sequence[Entry | Exception] = await loop.run_in_executor(
                    self._writer, self._log.append_each, receipts
                )
            except Exception as error:  # also what is not ours: nobody may wait for ever
                outcomes = [error] * len(batch)
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
