import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError
from headwater.receipts import LogTree, Receipt, leaf_hash
from headwater.store.close_rows import PayoutRows
from headwater.store.object_store import LocalStore
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_sealed import pointer_path
from headwater.store.receipt_sealing import Sealer
from headwater.store.receipt_segments import SCHEMA, read_manifest

EXAMPLE = json.loads((Path(__file__).parents[2] / "spec" / "vectors" / "receipt_signed.json").read_text("utf-8"))
RECEIPT = Receipt.from_bytes(EXAMPLE["receipt"].encode())
SIGNATURE = EXAMPLE["signature"]
SMALL = 50


def raw_receipt(number, **changes):
    return replace(RECEIPT, call_id=f"call_{number:032x}", **changes).to_bytes()


RAWS = [raw_receipt(number) for number in range(320)]


def identity(raw):
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "receipts.log"


def append(path, raws):
    with ReceiptLog.open(path) as log:
        log.append_many([(raw, SIGNATURE) for raw in raws])


def sealed(path, count):
    append(path, RAWS[:count])
    sealer = Sealer(path, segment_receipts=SMALL)
    sealer.seal()
    return sealer


def test_segments_hold_what_the_receipts_say(path, tmp_path):
    """DuckDB reads the same ids, sums and payouts out of the columns that the receipts themselves give."""
    sealed(path, 120)
    files = str(tmp_path / "receipts.segments" / "*.parquet")
    rows = duckdb.sql(
        f"SELECT seq, receipt_id, price, payouts, raw FROM read_parquet('{files}') ORDER BY seq"
    ).fetchall()
    assert [row[0] for row in rows] == list(range(120))
    for (_, receipt_id, price, payouts, raw), expected in zip(rows, RAWS, strict=False):
        assert (raw, receipt_id.hex(), price) == (expected, identity(expected), RECEIPT.price)
        assert [(p["account"], p["amount"], p["line"], p["contribution"]) for p in payouts] == [
            (p.account, p.amount, p.line, p.contribution) for p in RECEIPT.payouts
        ]
    sums = duckdb.sql(
        f"SELECT SUM(CAST(p.amount AS DECIMAL(38,0))) FROM (SELECT unnest(payouts) AS p FROM read_parquet('{files}'))"
    ).fetchall()
    assert sums == [(120 * RECEIPT.price,)]


def test_the_manifest_names_every_receipt_once_and_the_logs_root(path):
    """Segments follow one another without a gap; sealing again adds what came since and changes nothing else."""
    sealer = sealed(path, 120)
    first = read_manifest(sealer.store)
    assert [(one.first, one.count) for one in first.segments] == [(0, 50), (50, 50), (100, 20)]
    assert (first.size, first.root) == (120, LogTree(map(leaf_hash, RAWS[:120])).root())
    assert all(one.price_units == one.amount_units == one.count * RECEIPT.price for one in first.segments)
    assert sealer.seal() == first
    append(path, RAWS[120:200])
    again = sealer.seal()
    assert again.segments[:3] == first.segments
    assert (again.size, again.root) == (200, LogTree(map(leaf_hash, RAWS[:200])).root())
    assert all(pq.ParquetFile(sealer.store.folder / one.file).schema_arrow.equals(SCHEMA) for one in again.segments)


def test_dropped_receipts_are_read_from_their_segments(path):
    """Their bytes leave the append file; ids, order, proofs and appends go on as before, also when opened again."""
    sealer = sealed(path, 120)
    before = os.stat(path).st_blocks
    assert sealer.drop() > 0
    assert sealer.drop() == 0
    assert os.stat(path).st_blocks < before
    for _ in range(2):
        with ReceiptLog.open(path) as log:
            assert [item.raw for item in log][:120] == RAWS[:120]
            assert log.root(120) == LogTree(map(leaf_hash, RAWS[:120])).root()
            assert log.get(identity(RAWS[7])).signature == SIGNATURE
            assert log.append(RAWS[7], SIGNATURE).index == 7
            with pytest.raises(ConflictError) as refusal:
                log.append(raw_receipt(7, payer="payer:other"), SIGNATURE)
            assert refusal.value.code == "call_receipted"
            log.append_many([(raw, SIGNATURE) for raw in RAWS[115:130]])
            assert len(log) == 130
    correction = raw_receipt(3, supersedes=identity(RAWS[3]))
    append(path, [correction])
    with ReceiptLog.open(path, read_only=True) as log:
        assert [entry.index for entry in log.by_call("call_" + f"{3:032x}")] == [3, 130]
    assert sealer.seal().size == 131
    sealer.drop()
    with ReceiptLog.open(path) as log:
        assert [item.raw for item in log] == [*RAWS[:130], correction]
        with pytest.raises(ConflictError):
            log.append(raw_receipt(3, supersedes=identity(RAWS[3]), payer="payer:x"), SIGNATURE)


def test_logs_that_were_open_before_find_dropped_receipts(path):
    """A writer at work and a reader that opened earlier read on, and the writer appends on."""
    append(path, RAWS[:100])
    sealer = Sealer(path, segment_receipts=SMALL)
    with ReceiptLog.open(path) as writer, ReceiptLog.open(path, read_only=True) as reader:
        sealer.seal()
        sealer.drop()
        assert writer.at(5).raw == reader.at(5).raw == RAWS[5]
        writer.append(RAWS[100], SIGNATURE)
        reader.refresh()
        assert [item.raw for item in reader] == RAWS[:101]


def test_only_promised_receipts_are_sealed(path):
    """A sealer waits for a write that is under way, and does not seal what its writer took back."""
    holding, go = threading.Event(), threading.Event()
    failing = []

    def sync(handle):
        if failing:
            holding.set()
            assert go.wait(10)
            raise OSError(28, failing.pop())

    with ReceiptLog.open(path, sync=sync) as log:
        log.append_many([(raw, SIGNATURE) for raw in RAWS[:10]])
        failing.append("no room")

        def write():
            with pytest.raises(HeadwaterError):
                log.append_many([(raw, SIGNATURE) for raw in RAWS[10:20]])

        writer = threading.Thread(target=write)
        writer.start()
        assert holding.wait(10)
        sizes = []
        sealing = threading.Thread(target=lambda: sizes.append(Sealer(path).seal().size))
        sealing.start()
        sealing.join(0.2)
        assert sealing.is_alive()
        go.set()
        writer.join()
        sealing.join(10)
    assert sizes == [10]


def test_a_segment_that_cannot_be_read_back_keeps_the_log_whole(path):
    """Nothing is dropped when a file is not what the manifest says, and a lost one is named on reading."""
    sealer = sealed(path, 120)
    victim = sealer.store.folder / read_manifest(sealer.store).segments[1].file
    good = victim.read_bytes()
    for bad in (good[:-1], good[:900] + bytes([good[900] ^ 4]) + good[901:]):
        victim.write_bytes(bad)
        with pytest.raises(InvalidError) as refusal:
            sealer.drop()
        assert refusal.value.code == "segment_differs"
        assert not pointer_path(path).exists()
    victim.write_bytes(good)
    sealer.drop()
    victim.unlink()
    with pytest.raises(HeadwaterError) as missing:
        ReceiptLog.open(path)
    assert victim.name in str(missing.value)


def test_segments_of_another_log_are_not_continued(path, tmp_path):
    """A folder belongs to one log; another one is refused before anything is written."""
    sealer = sealed(path, 60)
    other = tmp_path / "other.log"
    append(other, RAWS[100:180])
    before = {file: (sealer.store.folder / file).read_bytes() for file in os.listdir(sealer.store.folder)}
    with pytest.raises(ConflictError) as refusal:
        Sealer(other, str(sealer.store.folder)).seal()
    assert refusal.value.code == "log_differs"
    assert before == {file: (sealer.store.folder / file).read_bytes() for file in os.listdir(sealer.store.folder)}


def test_names_stay_inside_a_store(tmp_path):
    """No name leads out of its folder."""
    store = LocalStore(tmp_path / "store")
    for name in ("../x", "a/../../x", "/etc/passwd", "a//b", "", ".", "a/..", "x\x00"):
        with pytest.raises(InvalidError):
            store.write(name, b"x")
    assert list(tmp_path.iterdir()) == []


def same_rows(sealer, folder, again):
    """The rows in `folder`, completed as the close completes them, are those that the segments alone give."""
    coder, fresh = PayoutRows(folder), PayoutRows(again)
    with ReceiptLog.open(sealer.log, read_only=True) as log:
        for segment in read_manifest(sealer.store).segments:
            for one in (coder, fresh):
                with one.alone():
                    one.code(sealer.store.folder / segment.file, earlier=log.place)
    assert [path.name for path in coder.files()] == [path.name for path in fresh.files()]
    for mine, other in zip(coder.files(), fresh.files(), strict=True):
        assert pq.read_table(mine).equals(pq.read_table(other))
    assert coder.accounts() == fresh.accounts()
    assert PayoutRows(folder).accounts() == fresh.accounts()


def test_the_sealer_writes_the_rows_that_a_close_reads(path, tmp_path):
    """Rows written from memory are those the segments give, account names and a correction's place included."""
    first = [replace(RECEIPT, call_id=f"call_{9_000 + n:032x}") for n in range(60)]
    moved = (replace(RECEIPT.payouts[0], account="escrow:ctr_" + "9" * 32), *RECEIPT.payouts[1:])
    later = replace(first[3], supersedes=identity(first[3].to_bytes()), payouts=moved)
    append(path, [*(one.to_bytes() for one in first), later.to_bytes()])
    sealer = Sealer(path, segment_receipts=SMALL, rows=tmp_path / "rows")
    sealer.seal()
    coder = PayoutRows(tmp_path / "rows")
    assert coder.size == 61
    rows = [row for file in coder.files() for row in pq.read_table(file).to_pylist()]
    assert [row["supersedes"] for row in rows] == [None] * 60 + [3]
    names = coder.accounts()
    assert [[(names[p["account"]], p["amount"]) for p in row["payouts"]] for row in rows] == [
        [(p.account.replace("escrow:", "contributor:"), p.amount) for p in one.payouts] for one in (*first, later)
    ]
    same_rows(sealer, tmp_path / "rows", tmp_path / "again")


def test_rows_that_the_sealer_did_not_write_are_made_up_for(path, tmp_path):
    """Segments sealed without rows, as by a process that died before them, are coded later, and sealing goes on."""
    sealed(path, 60)
    append(path, RAWS[:120])
    sealer = Sealer(path, segment_receipts=SMALL, rows=tmp_path / "rows")
    sealer.seal()
    assert PayoutRows(tmp_path / "rows").size == 0
    same_rows(sealer, tmp_path / "rows", tmp_path / "again")
    append(path, RAWS[:130])
    sealer.seal()
    assert PayoutRows(tmp_path / "rows").size == 130
    same_rows(sealer, tmp_path / "rows", tmp_path / "once more")


KILLED = """
import os, sys
from pathlib import Path
from headwater.store.receipt_sealing import Sealer
for line in sys.stdin:  # everything is imported once; each line is answered by a process of its own
    child = os.fork()
    if child == 0:
        path = Path(line.strip())
        sealer = Sealer(path, segment_receipts=8, rows=path.with_name("rows"))
        sealer.seal()
        sealer.drop()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def kill_sealing(path, rounds, seed):
    """Kill a sealer `rounds` times at random moments while the log grows; every receipt is there each time, once."""
    rng = random.Random(seed)
    stored = killed = 0
    source = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        for _ in range(rounds):
            with ReceiptLog.open(path) as log:
                assert [item.raw for item in log] == RAWS[:stored]
                fresh = RAWS[stored : stored + rng.randrange(1, max(2, len(RAWS) // rounds))]
                log.append_many([(raw, SIGNATURE) for raw in fresh])
                stored += len(fresh)
                assert log.append(RAWS[rng.randrange(stored)], SIGNATURE).index < stored
            source.stdin.write(f"{path}\n")
            child = int(source.stdout.readline())
            timer = threading.Timer(rng.uniform(0.0, 0.1), kill, [child])
            timer.start()
            killed += int(source.stdout.readline()) == -signal.SIGKILL
            timer.cancel()
            timer.join()
    finally:
        source.kill()
        source.communicate()
    sealer = Sealer(path, segment_receipts=8, rows=path.with_name("rows"))
    sealer.seal()
    sealer.drop()
    with ReceiptLog.open(path) as log:
        assert [item.raw for item in log] == RAWS[:stored]
        assert log.root() == LogTree(map(leaf_hash, RAWS[:stored])).root()
    same_rows(sealer, path.with_name("rows"), path.with_name("rows again"))
    return killed


def kill(child):
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def test_kill_9_while_sealing_loses_and_doubles_nothing(path):
    """Six kills of a real sealer at random moments."""
    kill_sealing(path, 6, 7)


@pytest.mark.slow
def test_200_kills_while_sealing_lose_and_double_nothing(path):
    """The same, two hundred times."""
    assert kill_sealing(path, 200, 8) > 50
