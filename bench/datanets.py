"""Submissions per hour with every check on, and a submission that is killed and gone on with.

    python bench/datanets.py [--rows 1000000] [--kill-at 0.4] [--copies 0.05] [--keep FOLDER]

Writes a JSONL of that many rows (about 60 words each; some are exact copies of earlier rows, some near-copies with
every twelfth word changed), submits it with the command line, kills the process (SIGKILL) when that part of it has been
taken, and submits it again. Says rows an hour by wall clock and by CPU time, what the second run went on from, and
whether the copies were found. Duplicates, near-duplicates and personal data are checked; language is not (about 50 us a
row more).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = 60
VOCABULARY = 20_000
CHANGED_EVERY = 12


def write_rows(path: Path, rows: int, copies: float, seed: int) -> tuple[int, int]:
    """A file of rows; gives how many are exact copies and near-copies of earlier ones."""
    rng = random.Random(seed)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "er", "an", "ing")]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(VOCABULARY)]
    kept: list[list[str]] = []
    exact = near = 0
    with path.open("w") as file:
        for _ in range(rows):
            chance = rng.random()
            if kept and chance < copies:
                text = list(rng.choice(kept))
                if chance < copies / 2:
                    exact += 1
                else:
                    near += 1
                    for at in range(rng.randrange(CHANGED_EVERY), WORDS, CHANGED_EVERY):
                        text[at] = rng.choice(words)
            else:
                text = rng.choices(words, k=WORDS)
                if len(kept) < 50_000:
                    kept.append(text)
            file.write(json.dumps({"text": " ".join(text)}) + "\n")
    return exact, near


def headwater(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command line, started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "headwater", *arguments, "--home", str(home)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def taken(home: Path) -> int:
    """Bytes of the source that have been taken so far."""
    try:
        with sqlite3.connect(f"file:{home}/headwater.db?mode=ro", uri=True) as database:
            return int(database.execute("SELECT coalesce(max(place), 0) FROM submission_batches").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def run(folder: Path, rows: int, kill_at: float, copies: float) -> None:
    """Write, submit, kill, submit again and print what was seen."""
    source, home = folder / "rows.jsonl", folder / "home"
    exact, near = write_rows(source, rows, copies, seed=11)
    size = source.stat().st_size
    create = ("datanet", "create", "bench", "--owner", "O", "--title", "Bench", "--license", "CC0-1.0")
    headwater(home, *create, "--rule", "personal_data=flag").communicate()
    submit = ("datanet", "submit", "bench", str(source), "--owner", "A", "--json")
    begin, cpu = time.perf_counter(), _children_cpu()
    first = headwater(home, *submit)
    while first.poll() is None and taken(home) < kill_at * size:
        time.sleep(1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    reached = taken(home)
    second, _ = headwater(home, *submit).communicate()
    wall, spent = time.perf_counter() - begin, _children_cpu() - cpu
    [batch] = json.loads(second)["batches"]
    with sqlite3.connect(f"file:{home}/headwater.db?mode=ro", uri=True) as database:
        found = dict(database.execute("SELECT reasons, count(*) FROM submissions GROUP BY reasons").fetchall())
        numbers = database.execute("SELECT count(*), count(DISTINCT row), max(row) + 1 FROM submissions").fetchone()
    print(f"{rows:,} rows, {size / 2**20:.0f} MiB; killed at {reached:,} bytes, went on at {batch['resumed_at']:,}")
    print(
        f"rows kept {numbers[0]:,}, each once {numbers[0] == numbers[1] == numbers[2]},"
        f" unchanged {batch['unchanged']:,}"
    )
    print(
        f"exact copies {exact:,}, found {batch['unchanged']:,};"
        f" near-copies {near:,}, found {found.get('near_duplicate', 0):,}"
    )
    print(f"{rows * 3600 / wall:,.0f} rows an hour by wall clock, {rows * 3600 / spent:,.0f} an hour of CPU time")
    print(f"{spent:.0f} CPU-s, {spent / rows * 1e6:.0f} us a row; peak memory {_children_peak():.0f} MiB")


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _children_peak() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kill-at", type=float, default=0.4)
    parser.add_argument("--copies", type=float, default=0.05)
    parser.add_argument("--keep", type=Path, help="keep file and home here")
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        run(options.keep, options.rows, options.kill_at, options.copies)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), options.rows, options.kill_at, options.copies)


if __name__ == "__main__":
    main()
