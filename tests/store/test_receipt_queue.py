import asyncio
import json
import os
import select
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, RefusedError, UpstreamError
from headwater.receipts import Receipt
from headwater.store.kernel_sync import KernelSync
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_queue import ReceiptQueue

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
SIGNATURE = EXAMPLE["signature"]
RAWS = [replace(RECEIPT, call_id=f"call_{number:032x}").to_bytes() for number in range(400)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "receipts.log"


def run(work):
    return asyncio.run(work)


def test_many_writers_share_syncs_and_each_gets_its_own_entry(path):
    """400 writers at once: far fewer syncs than receipts, and every entry names its writer's receipt."""
    syncs = []

    async def work():
        with ReceiptLog.open(path, sync=syncs.append) as log:
            queue = ReceiptQueue(log)
            entries = await asyncio.gather(*(queue.append(raw, SIGNATURE) for raw in RAWS))
            await queue.close()
            assert [log.at(entry.index).raw for entry in entries] == RAWS
            return len(log)

    assert run(work()) == 400
    assert len(syncs) < 20


def test_an_error_of_one_writer_is_not_anothers(path):
    """A conflict and a malformed signature are refused to those who sent them; all others are stored."""
    other = replace(RECEIPT, call_id="call_" + f"{7:032x}", payer="payer:other").to_bytes()
    sent = [(raw, SIGNATURE) for raw in RAWS[:50]] + [(other, SIGNATURE), (RAWS[60], "0x12")]

    async def work():
        with ReceiptLog.open(path) as log:
            queue = ReceiptQueue(log)
            outcomes = await asyncio.gather(*(queue.append(*item) for item in sent), return_exceptions=True)
            await queue.close()
            return outcomes, len(log)

    outcomes, size = run(work())
    assert size == 50
    assert [entry.index for entry in outcomes[:50]] == list(range(50))
    assert isinstance(outcomes[50], ConflictError)
    assert isinstance(outcomes[51], InvalidError)


def test_a_failing_disk_reaches_every_writer_that_waits(path):
    """Nobody waits for ever and nobody is told that a receipt is stored when it is not."""

    def sync(handle):
        if failing:
            raise OSError(5, "the disk is unwell")

    failing = []

    async def work():
        with ReceiptLog.open(path, sync=sync) as log:
            queue = ReceiptQueue(log, batch_max=10)
            await queue.append(RAWS[0], SIGNATURE)
            failing.append(1)
            outcomes = await asyncio.gather(
                *(queue.append(raw, SIGNATURE) for raw in RAWS[1:40]), return_exceptions=True
            )
            failing.clear()
            await queue.close()
            return outcomes

    assert all(isinstance(outcome, UpstreamError) for outcome in run(work()))
    with ReceiptLog.open(path) as log:
        assert len(log) == 1


def test_writers_are_refused_when_too_many_wait(path):
    """The queue has an end: beyond it a writer is told to slow down instead of filling the memory."""

    async def work():
        with ReceiptLog.open(path) as log:
            queue = ReceiptQueue(log, waiting_max=5)
            outcomes = await asyncio.gather(*(queue.append(raw, SIGNATURE) for raw in RAWS[:9]), return_exceptions=True)
            await queue.close()
            return outcomes

    outcomes = run(work())
    refused = [outcome for outcome in outcomes if isinstance(outcome, HeadwaterError)]
    assert len(refused) == 4
    assert all(isinstance(error, RefusedError) and error.code == "receipts_waiting" for error in refused)


class KernelStandIn:
    """Says that a sync has begun, and later how it went; the way of `KernelSync`, without the kernel."""

    def __init__(self, *, takes=True, errors=()):
        self._read, self._write = os.pipe()
        self.told, self._takes, self._errors = self._read, takes, list(errors)
        self.begun = 0

    def begin(self, handle):
        assert handle >= 0
        if self._takes:
            self.begun += 1
            os.write(self._write, b"1")
        return self._takes

    def ended(self):
        os.read(self._read, 1)
        return self._errors.pop(0) if self._errors else None

    def close(self):
        os.close(self._read)
        os.close(self._write)


def test_the_kernel_syncs_what_the_loop_has_written(path):
    """Entries are in order, a reader of the file finds all of them, and no receipt took the writer's thread."""
    kernel = KernelStandIn()

    async def work():
        with ReceiptLog.open(path) as log:
            queue = ReceiptQueue(log, kernel=lambda: kernel)
            entries = [await queue.append(raw, SIGNATURE) for raw in RAWS[:3]]
            entries += await asyncio.gather(*(queue.append(raw, SIGNATURE) for raw in RAWS[3:100]))
            begun = kernel.begun
            await queue.close()
            return entries, begun

    entries, begun = run(work())
    assert [entry.index for entry in entries] == list(range(100))
    assert begun == 4
    with ReceiptLog.open(path, read_only=True) as log:
        assert [each.raw for each in log] == RAWS[:100]


def test_a_sync_that_fails_in_the_kernel_stores_nothing_and_ends_the_log(path):
    """What was written is taken back, its writer is told, and the log takes no more until it is opened again."""

    async def work():
        with ReceiptLog.open(path) as log:
            queue = ReceiptQueue(log, kernel=lambda: KernelStandIn(errors=[None, OSError(5, "the disk is unwell")]))
            await queue.append(RAWS[0], SIGNATURE)
            outcomes = [await asyncio.gather(queue.append(raw, SIGNATURE), return_exceptions=True) for raw in RAWS[1:4]]
            await queue.close()
            return outcomes, log.broken

    outcomes, broken = run(work())
    assert [outcome.code for (outcome,) in outcomes] == ["log_write_failed", "log_closed", "log_closed"]
    assert broken
    with ReceiptLog.open(path) as log:
        assert [each.raw for each in log] == RAWS[:1]


def test_a_full_disk_in_the_kernel_refuses_the_batch_and_no_later_one(path):
    """Want of room is told to who waited; the next receipt is stored where that one would have stood."""

    async def work():
        with ReceiptLog.open(path) as log:
            queue = ReceiptQueue(log, kernel=lambda: KernelStandIn(errors=[OSError(28, "no space left")]))
            (refused,) = await asyncio.gather(queue.append(RAWS[0], SIGNATURE), return_exceptions=True)
            entry = await queue.append(RAWS[1], SIGNATURE)
            await queue.close()
            return refused.code, entry.index

    assert run(work()) == ("disk_full", 0)


def test_where_the_kernel_takes_no_sync_a_thread_waits_for_the_disk(path):
    """A kernel that has no asynchronous sync, or refuses one, costs nothing but the thread."""

    async def work(kernel):
        with ReceiptLog.open(path) as log:
            queue = ReceiptQueue(log, kernel=kernel)
            before = len(log)
            for raw in RAWS[before : before + 3]:
                await queue.append(raw, SIGNATURE)
            await queue.close()
            return len(log) - before

    assert run(work(lambda: None)) == 3
    assert run(work(lambda: KernelStandIn(takes=False))) == 3


def test_what_the_loop_cannot_write_at_once_goes_to_the_thread(path):
    """A receipt that is stored already, one that is refused, and one while another thread writes get their outcomes."""
    kernel = KernelStandIn()

    async def work():
        with ReceiptLog.open(path) as log:
            queue = ReceiptQueue(log, kernel=lambda: kernel)
            first = await queue.append(RAWS[0], SIGNATURE)
            again = await queue.append(RAWS[0], SIGNATURE)
            (refused,) = await asyncio.gather(queue.append(RAWS[1], "0x12"), return_exceptions=True)
            with log._writing:
                waiting = queue.submit(RAWS[2], SIGNATURE)
                await asyncio.sleep(0.01)
                assert not waiting.done()
            third = await waiting
            begun = kernel.begun
            await queue.close()
            return first, again, refused, third, begun

    first, again, refused, third, begun = run(work())
    assert (first.index, again, third.index, begun) == (0, first, 1, 1)
    assert isinstance(refused, InvalidError)


def test_the_kernel_of_this_machine_syncs_or_says_that_it_does_not(tmp_path):
    """A real sync ends without an error, and one of what is no file is not taken on or ends with its error."""
    kernel = KernelSync.open()
    if kernel is None:
        pytest.skip("no asynchronous sync here")
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"x")
        assert kernel.begin(file.fileno())
        select.select([kernel.told], [], [], 10)
        assert kernel.ended() is None
    read, write = os.pipe()
    assert not kernel.begin(read) or isinstance(kernel.ended(), OSError)
    os.close(read)
    os.close(write)
    kernel.close()
