"""Postings per second: the ledger beside bare SQLite inserts, in one run on one disk.

    python bench/ledger.py [--batch 8000] [--per-key 8] [--batches 20] [--rounds 3] [--no-postgres]

The ledger checks accounts and limits, keeps balances and idempotency keys, and syncs every commit. The bare
side inserts the same rows into a table with a unique key and updates nothing: what no ledger can be faster than.
Payees follow a Pareto law over 100,000 accounts. Rounds alternate; medians of CPU-seconds. Where `initdb`, `pg_ctl`
and `postgres` are on PATH the same batches go to a private PostgreSQL cluster (fsync on), counted with the CPU of
the server's processes. Every key is remembered for ever: the last commit is sent twice, inside the measured time.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from headwater.ledger import deposit, payouts
from headwater.store.database import Database
from headwater.store.ledger_store import Batch, Ledger

ACCOUNTS = 100_000
ASSET = "USD"


def batches(count: int, size: int, per_key: int, seed: int) -> list[list[Batch]]:
    """`count` commits of `size` postings, `per_key` under one idempotency key."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        commit = []
        for _ in range(size // per_key):
            receipt = f"{rng.getrandbits(256):064x}"
            pairs = [
                (f"contributor:ctr_{min(ACCOUNTS - 1, int(rng.paretovariate(0.6)) - 1):032x}", rng.randrange(1, 10**6))
                for _ in range(per_key)
            ]
            commit.append(Batch(f"receipt:{receipt}", payouts(pairs, asset=ASSET, receipt_id=receipt)))
        made.append(commit)
    return made


def run_ledger(folder: Path, work: list[list[Batch]]) -> None:
    """Post through the ledger on SQLite."""
    with Database(folder / "ledger.db") as db:
        post_all(Ledger(db), work)


def post_all(ledger: Ledger, work: list[list[Batch]]) -> None:
    """Fund the clearing account, post everything, and post the last commit once more."""
    ledger.post([deposit("payer:key_1", 10**18, asset=ASSET, cause="start")], key="start", at_ns=0)
    reserved = ledger.reserve("payer:key_1", 10**17, key="reserve", asset=ASSET, cause="call_1", at_ns=1)
    ledger.charge(reserved, 10**17, key="charge", at_ns=2)
    for number, commit in enumerate(work):
        ledger.post_each(commit, at_ns=number)
    assert all(posted.replayed for posted in ledger.post_each(work[-1], at_ns=0))


def run_postgres(folder: Path, work: list[list[Batch]]) -> float:
    """Post through the ledger on a private cluster; gives postings' CPU-seconds of client and server."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests/store"))
    from postgres import cluster

    from headwater.store.postgres import PostgresDatabase

    with cluster(durable=True) as server, PostgresDatabase(server.url()) as db:
        ledger = Ledger(db)
        backend = db.query("SELECT pg_backend_pid()")[0][0]
        before = server_cpu_s(server.data) + time.process_time()
        wall = time.perf_counter()
        post_all(ledger, work)
        Path(folder / "wall").write_text(str(time.perf_counter() - wall))
        assert backend == db.query("SELECT pg_backend_pid()")[0][0]  # its CPU was counted to the end
        return server_cpu_s(server.data) + time.process_time() - before


def server_cpu_s(data: Path) -> float:
    """CPU-seconds so far of a cluster's processes that are alive."""
    leader = (data / "postmaster.pid").read_text().splitlines()[0]
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended between listing and reading
        if stat.parent.name == leader or fields[1] == leader:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def run_bare(folder: Path, work: list[list[Batch]]) -> None:
    """Insert the same rows without checking anything."""
    connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
    connection.executescript("PRAGMA journal_mode = wal; PRAGMA synchronous = FULL;")
    connection.execute(
        "CREATE TABLE transfers (key TEXT, place INTEGER, debit TEXT, credit TEXT, amount INTEGER, UNIQUE (key, place))"
    )
    for commit in work:
        rows = [
            (batch.key, place, draft.debit_account, draft.credit_account, draft.amount_units)
            for batch in commit
            for place, draft in enumerate(batch.drafts)
        ]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO transfers VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("COMMIT")
    connection.close()


def rate(
    run: Callable[[Path, list[list[Batch]]], float | None], work: list[list[Batch]], postings: int
) -> tuple[float, float]:
    """Postings per CPU-second and per wall second."""
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = time.process_time(), time.perf_counter()
        counted = run(Path(folder), work)
        if counted is not None:  # a server took part: its start is not counted, its CPU is
            return postings / counted, postings / float((Path(folder) / "wall").read_text())
        return postings / (time.process_time() - cpu), postings / (time.perf_counter() - wall)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8_000, help="postings in one commit")
    parser.add_argument("--per-key", type=int, default=8, help="postings under one idempotency key")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--postgres", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    engines: dict[str, Callable[[Path, list[list[Batch]]], float | None]] = {
        "SQLite": run_ledger,
        "bare inserts": run_bare,
    }
    if options.postgres and all(shutil.which(name) for name in ("initdb", "pg_ctl", "postgres")):
        engines["PostgreSQL"] = run_postgres
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for number in range(options.rounds):
        work = batches(options.batches, options.batch, options.per_key, seed=number)
        for name, run in engines.items():
            seen[name].append(rate(run, work, options.batch * options.batches))
    print(f"{options.batch} postings a commit, {options.per_key} a key, medians of {options.rounds} rounds")
    for name, rates in seen.items():
        print(f"{name:14} {median(r[0] for r in rates):>10,.0f}/CPU-s {median(r[1] for r in rates):>10,.0f}/s wall")


if __name__ == "__main__":
    main()
