import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, RefusedError, UpstreamError
from headwater.receipts import Receipt
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
