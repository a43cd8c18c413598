"""Epoch close: rows of payouts per CPU-second, from coded Parquet to totals, split expansion included.

    python bench/close.py [--rows 20000000] [--shares 20] [--accounts 1000000] [--rounds 3] [--folder DIR] [--spark]

Receipts with `--shares` payouts to accounts of a Zipf(1.05) law are made as the columns that the sealer has in memory,
a segment at a time, and coded from there (`close_rows`); then a fresh process closes them, so that its peak memory is
its own. Totals are checked against an integer sum kept while writing. CPU-seconds are those of the whole closing
process with its engine; medians of the rounds. The peer is the bare `GROUP BY` of the same numbers, already expanded
and with no check of anything. `--spark` adds one run on two executor processes (their CPU is not counted: they are no
children of the closing process). The folder is kept when given, and used again when it already holds the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

RECEIPTS_PER_PIECE = 131_072  # as the sealer's segments


def write(folder: Path, rows: int, shares: int, accounts: int) -> None:
    """Make segments and code them, piece by piece; leaves `facts.json` behind."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from headwater.store.close_rows import READ, PayoutRows
    from headwater.store.receipt_segments import PAYOUT, SCHEMA

    rng = np.random.default_rng(7)
    law = np.cumsum(1 / np.arange(1, accounts + 1) ** 1.05)
    law /= law[-1]
    names = pa.array([f"contributor:ctr_{number:032x}" for number in rng.permutation(accounts).tolist()])
    coder, expected = PayoutRows(folder / "rows"), np.zeros(accounts, dtype=object)
    coding = 0.0
    flat = folder / "flat"
    flat.mkdir(exist_ok=True)
    schema = pa.schema([SCHEMA.field(name) for name in READ])
    for first in range(0, rows // shares, RECEIPTS_PER_PIECE):
        count = min(RECEIPTS_PER_PIECE, rows // shares - first)
        picked = np.searchsorted(law, rng.random(count * shares))
        amounts = rng.integers(1, 10**6, count * shares)
        sums = np.bincount(picked, weights=amounts, minlength=accounts)  # exact: far below 2^53
        expected += sums.astype(np.int64)
        lists = pa.ListArray.from_arrays(
            pa.array(np.arange(0, count * shares + 1, shares, dtype=np.int32)),
            pa.StructArray.from_arrays(
                [
                    names.take(pa.array(picked)),
                    pa.array(amounts),
                    pa.array(["contributors"]).take(pa.array(np.zeros(count * shares, dtype=np.int8))),
                    pa.nulls(count * shares, pa.string()),
                ],
                fields=list(PAYOUT),
            ),
            type=schema.field("payouts").type,
        )
        columns = {
            "seq": pa.array(np.arange(first, first + count)),
            "receipt_id": pa.array([rng.bytes(32) for _ in range(count)], pa.binary()),
            "supersedes": pa.nulls(count, pa.binary()),
            "issued_at_ns": pa.array(np.arange(first, first + count)),
            "currency": pa.array(["USD"] * count),
            "price": pa.array(amounts.reshape(count, shares).sum(axis=1)),
            "payouts": lists,
        }
        segment = pa.table([columns[name] for name in READ], schema=schema)
        start = time.process_time()
        coder.add(segment)
        coding += time.process_time() - start
        numbers = pa.array(picked)
        pq.write_table(
            pa.table({"account": numbers, "amount": amounts}), flat / f"{first:012d}.parquet", compression="lz4"
        )
    by_name = {name: int(units) for name, units in zip(names.to_pylist(), expected.tolist(), strict=True) if units}
    sums_by_number = [by_name[name] for name in coder.accounts()]
    check = sum((number + 1) * units for number, units in enumerate(sums_by_number))
    facts = {"rows": rows, "shares": shares, "coding_s": coding, "check": str(check), "total": str(sum(sums_by_number))}
    (folder / "facts.json").write_text(json.dumps(facts))


def close_once(folder: Path, engine_name: str) -> dict[str, Any]:
    """Close in this process; gives seconds and memory."""
    from headwater.store.close_duckdb import DuckEngine
    from headwater.store.close_spark import LOCAL_CLUSTER, SparkEngine
    from headwater.store.close_sql import CloseWindow, close_window

    facts = json.loads((folder / "facts.json").read_text())
    files = sorted((folder / "rows").glob("rows-*.parquet"))
    start, wall = time.process_time(), time.perf_counter()
    if engine_name == "bare":
        import duckdb

        listed = [str(path) for path in sorted((folder / "flat").glob("*.parquet"))]
        connection = duckdb.connect(config={"threads": 1, "memory_limit": "320MiB"})
        text = "SELECT account, CAST(sum(amount) AS DECIMAL(38,0)) AS units FROM read_parquet(?) GROUP BY account"
        found = connection.sql(text, params=[listed]).to_arrow_table()
        assert sum(int(units) for units in found["units"].to_pylist()) == int(facts["total"])
    else:
        with DuckEngine(spill=folder) if engine_name == "duckdb" else SparkEngine(LOCAL_CLUSTER) as engine:
            window = CloseWindow(0, facts["rows"] // facts["shares"], "USD")
            totals = close_window(engine, window, {"receipts": files}, folder / "scratch")
        pairs = zip(totals.accounts.tolist(), totals.units("paid_units"), strict=True)
        assert sum((number + 1) * units for number, units in pairs) == int(facts["check"])
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "cpu_s": time.process_time() - start + spent.ru_utime + spent.ru_stime,
        "wall_s": time.perf_counter() - wall,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--shares", type=int, default=20)
    parser.add_argument("--accounts", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--spark", action="store_true")
    parser.add_argument("--close", choices=["duckdb", "bare", "spark"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.close:
        print(json.dumps(close_once(options.folder, options.close)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "facts.json").exists():
            child = os.fork()
            if child == 0:  # a process of its own, so that its memory is not ours
                write(folder, options.rows, options.shares, options.accounts)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit("the rows could not be written")
        facts = json.loads((folder / "facts.json").read_text())
        seen: dict[str, list[dict[str, Any]]] = {"duckdb": [], "bare": []}
        for _ in range(options.rounds):
            for name, found in seen.items():
                found.append(run(folder, name))
        if options.spark:
            seen["spark"] = [run(folder, "spark")]
    rows, receipts = facts["rows"], facts["rows"] // facts["shares"]
    print(
        f"{rows:,} payouts of {receipts:,} receipts, {options.accounts:,} accounts, medians of {options.rounds} rounds"
    )
    for name, found in seen.items():
        cpu = median(one["cpu_s"] for one in found)
        peak = max(one["peak_mib"] for one in found)
        print(f"{name:8} {rows / cpu / 1e6:6.2f} M rows/CPU-s  {cpu:7.2f} CPU-s  peak {peak:5.0f} MiB")
    cpu = median(one["cpu_s"] for one in seen["duckdb"])
    coding = facts["coding_s"]
    print(f"coding   {rows / coding / 1e6:6.2f} M rows/CPU-s  {coding:7.2f} CPU-s, once per segment, by the sealer")
    a_day = 10**9 / receipts * (cpu + coding)
    print(
        f"per 10^6 receipts: {cpu * 10**6 / receipts:.2f} CPU-s to close, {coding * 10**6 / receipts:.2f} CPU-s to code"
    )
    print(f"a day of 10^9 calls: {a_day:,.0f} CPU-s, {a_day / 3600:.1f} cores for an hour if it spreads evenly")


def run(folder: Path, name: str) -> dict[str, Any]:
    """One close in a fresh process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--close", name]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    return dict(json.loads(answer.splitlines()[-1]))


if __name__ == "__main__":
    main()
