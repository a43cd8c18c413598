"""Durable receipts per second: the receipt log beside SQLite (WAL, synchronous FULL), in one run on one disk.

Both get the same ready-made bytes, refuse a second receipt for an id, and answer after the sync. The
log also keeps a Merkle tree and one chain per call; SQLite keeps a unique id and a unique call. Rounds alternate.
Prints receipts per CPU-second (all threads), per wall second, and the latency of a commit.

Then the queue that an event loop's writers share, one receipt each at a time, and threads that do the same.

    python bench/receipts.py [--folder DIR] [--receipts 20000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from headwater.core.ids import receipt_id
from headwater.receipts import KeySigner, LogTree, Receipt, ReceiptAttribution, issue, leaf_hash, recover
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_queue import ReceiptQueue

VECTOR = Path(__file__).parents[1] / "spec" / "vectors" / "receipt_signed.json"
Commit = Callable[[Sequence[tuple[bytes, str]]], object]


def main() -> None:
    """Run all of it and print a table per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--receipts", type=int, default=20_000, help="receipts per cell for batches of 1,000")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    vector = json.loads(VECTOR.read_text("utf-8"))
    full = Receipt.from_bytes(vector["receipt"].encode())
    signer = KeySigner(bytes.fromhex(vector["secret"]))
    stages(full, signer)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name, make in (
            ("280 bytes of JSON, as the stores of the research page were given", small),
            ("receipt without shares", lambda call: replace(bare(full), call_id=call).to_bytes()),
            ("receipt with 3 shares", lambda call: replace(full, call_id=call).to_bytes()),
        ):
            run(Path(folder), name, make, vector["signature"], arguments.receipts, arguments.rounds)


def bare(receipt: Receipt) -> Receipt:
    """The smallest receipt: a generic answer that nobody registered supplied, so the residual is everything."""
    account: ReceiptAttribution = replace(
        receipt.attribution,
        shares=(),
        total_microbits=receipt.attribution.base_microbits,
        residual_ppb=10**9,
        parameters=(),
    )
    commons = replace(receipt.payouts[-1], amount=receipt.price)
    return replace(receipt, attribution=account, payouts=(commons,))


def stages(receipt: Receipt, signer: KeySigner) -> None:
    """Microseconds of CPU per receipt, stage by stage."""
    raw, signed = receipt.to_bytes(), issue(receipt, signer)
    tree = LogTree(leaf_hash(bytes([i % 256])) for i in range(100_000))
    print(f"stages, receipt of {len(raw)} bytes: CPU us each")
    works: dict[str, Callable[[], object]] = {
        "to_bytes": receipt.to_bytes,
        "from_bytes": lambda: Receipt.from_bytes(raw),
        "issue (bytes, id, signature)": lambda: issue(receipt, signer),
        "sign alone": lambda: signer.sign(bytes(range(32))),
        "recover": lambda: recover(receipt, raw, signed.signature),
        "inclusion proof, 100k leaves": lambda: tree.prove_inclusion(77_777),
    }
    for name, work in works.items():
        count = 500
        start = time.process_time_ns()
        for _ in range(count):
            work()
        print(f"  {name:32} {(time.process_time_ns() - start) / count / 1000:8.1f}")


def small(call_id: str) -> bytes:
    """The least the log takes: not a receipt, but a payload of the size other stores were measured with."""
    return json.dumps({"a": "x" * 200, "call_id": call_id, "supersedes": None}, separators=(",", ":")).encode()


def run(folder: Path, name: str, make: Callable[[str], bytes], signature: str, count: int, rounds: int) -> None:
    """All batch sizes and stores for one kind of payload."""
    total = rounds * (count + count // 4 + 400) + 1_000
    items = [(make(f"call_{secrets.token_hex(16)}"), signature) for _ in range(total)]
    size = len(items[0][0])
    print(f"\nappended one by one caller, {size} bytes each ({name}); worst and best of {rounds} rounds")
    print(f"  {'store':22} {'batch':>6} {'per CPU-s':>20} {'per wall-s':>20} {'commit p50 ms':>14} {'worst ms':>9}")
    log = ReceiptLog.open(folder / f"{size}.log")
    database = open_sqlite(folder / f"{size}.db")
    stores: dict[str, Commit] = {
        "receipt log": log.append_many,
        "SQLite WAL FULL": lambda batch: insert(database, batch),
    }
    at = 0
    for batch, each in ((1, 400), (100, count // 4), (1_000, count)):
        seen: dict[str, list[tuple[float, float]]] = {store: [] for store in stores}
        commits: dict[str, list[float]] = {store: [] for store in stores}
        for _ in range(rounds):
            part = items[at : at + each]
            at += each
            for store, commit in stores.items():
                seen[store].append(measure(commit, part, batch, commits[store]))
        for store, figures in seen.items():
            per_cpu, per_wall = [f"{min(column):,.0f} to {max(column):,.0f}" for column in zip(*figures, strict=True)]
            middle, worst = statistics.median(commits[store]), max(commits[store])
            print(f"  {store:22} {batch:>6} {per_cpu:>20} {per_wall:>20} {middle:>14.2f} {worst:>9.1f}")
    stored = at
    many_writers(log, items[at : at + 1_000])
    queued = [(make(f"call_{secrets.token_hex(16)}"), signature) for _ in range(30_000)]
    for writers, part in ((64, queued[:10_000]), (256, queued[10_000:20_000]), (1_000, queued[20_000:])):
        asyncio.run(many_coroutines(log, part, writers))
    log.close()
    start, wall = time.process_time(), time.perf_counter()
    with ReceiptLog.open(folder / f"{size}.log") as log:
        took, took_wall = time.process_time() - start, time.perf_counter() - wall
        print(
            f"  opening {len(log):,} receipts: {len(log) / took:,.0f} per CPU-s, {len(log) / took_wall:,.0f} per wall-s"
        )
        assert len(log) == stored + 31_000
    assert database.execute("SELECT count(*) FROM receipts").fetchone() == (stored,)
    database.close()


def many_writers(log: ReceiptLog, items: Sequence[tuple[bytes, str]]) -> None:
    """64 threads, one receipt at a time: how well they share syncs."""
    latencies: list[float] = []

    def work(part: Sequence[tuple[bytes, str]]) -> None:
        for raw, signature in part:
            start = time.perf_counter()
            log.append(raw, signature)
            latencies.append((time.perf_counter() - start) * 1000)

    threads = [threading.Thread(target=work, args=(items[i::64],)) for i in range(64)]
    cpu, wall = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took, took_wall = time.process_time() - cpu, time.perf_counter() - wall
    latencies.sort()
    print(
        f"  64 threads, one each:  {len(items) / took:,.0f} per CPU-s, {len(items) / took_wall:,.0f} per wall-s, "
        f"p50 {latencies[len(latencies) // 2]:.1f} ms, p99 {latencies[len(latencies) * 99 // 100]:.1f} ms"
    )


async def many_coroutines(log: ReceiptLog, items: Sequence[tuple[bytes, str]], writers: int) -> None:
    """Writers of one event loop, each waiting for the disk before its next receipt."""
    queue, latencies = ReceiptQueue(log), list[float]()

    async def work(part: Sequence[tuple[bytes, str]]) -> None:
        for raw, signature in part:
            start = time.perf_counter()
            await queue.append(raw, signature)
            latencies.append((time.perf_counter() - start) * 1000)

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work(items[at::writers]) for at in range(writers)))
    took, took_wall = time.process_time() - cpu, time.perf_counter() - wall
    await queue.close()
    latencies.sort()
    print(
        f"  {writers} in a queue:  {len(items) / took:,.0f} per CPU-s, {len(items) / took_wall:,.0f} per wall-s, "
        f"p50 {latencies[len(latencies) // 2]:.1f} ms, p99 {latencies[len(latencies) * 99 // 100]:.1f} ms"
    )


def measure(
    commit: Commit, items: Sequence[tuple[bytes, str]], batch: int, commits: list[float]
) -> tuple[float, float]:
    """(receipts per CPU-second, per wall second); each commit's milliseconds are added to `commits`."""
    cpu, wall = time.process_time(), time.perf_counter()
    for at in range(0, len(items), batch):
        start = time.perf_counter()
        commit(items[at : at + batch])
        commits.append((time.perf_counter() - start) * 1000)
    return len(items) / (time.process_time() - cpu), len(items) / (time.perf_counter() - wall)


def open_sqlite(path: Path) -> sqlite3.Connection:
    """A database that promises what the log promises about ids and calls."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = wal")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE receipts"
        " (position INTEGER PRIMARY KEY, id BLOB UNIQUE, call TEXT UNIQUE, signature TEXT, raw BLOB)"
    )
    return database


def insert(database: sqlite3.Connection, batch: Sequence[tuple[bytes, str]]) -> None:
    """One transaction; the call is cut out of the bytes, which is cheaper than parsing them."""
    rows = []
    for raw, signature in batch:
        at = raw.index(b',"call_id":"') + 12
        rows.append((bytes.fromhex(receipt_id(raw)), raw[at : at + 37].decode(), signature, raw))
    database.execute("BEGIN IMMEDIATE")
    database.executemany("INSERT OR IGNORE INTO receipts (id, call, signature, raw) VALUES (?, ?, ?, ?)", rows)
    database.execute("COMMIT")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
