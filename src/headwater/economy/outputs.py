"""Runs on disk: Parquet (or CSV without pyarrow), a description that can be run again, and clean stops.

Every file is written beside its place and then moved there, so a reader never meets half a file and a killed
process leaves at most one temporary file behind.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from headwater.core.errors import UpstreamError
from headwater.economy.figures import figures, flows
from headwater.economy.simulation import SERIES, Finished


def write_whole(path: Path, raw: bytes) -> None:
    """Write a file so that it is either all there or not at all.

    Raises:
        UpstreamError: the disk is full or cannot be written; nothing half-written is left.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with stopping_cleanly(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.write(raw)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise


def try_folder(folder: Path) -> None:
    """Find out before a long run, not after it, that its results cannot be written.

    Raises:
        UpstreamError: the folder cannot be made or written to.
    """
    probe = folder / ".probe"
    write_whole(probe, b"")
    with suppress(OSError):
        probe.unlink()


@contextmanager
def stopping_cleanly(path: Path) -> Iterator[None]:
    """Turn a failing disk into an error that says what to do; what was finished before stays."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise UpstreamError(
            f"cannot write {path}: {error.strerror or error}",
            code="disk_full" if full else "disk_failed",
            fix="make room and start again with the same folder; finished runs are kept and skipped"
            if full
            else "give a folder that exists or can be made, and that you may write to",
        ) from None


def write_table(folder: Path, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    """Write a table as ``name.parquet``, or as ``name.csv`` where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        path = folder / f"{name}.csv"
        write_whole(path, csv_bytes(columns, rows))
        return path
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    table = pyarrow.table({column: list(cells) for column, cells in zip(columns, values, strict=True)})
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    path = folder / f"{name}.parquet"
    write_whole(path, sink.getvalue())
    return path


def csv_bytes(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """A table as CSV with a header, in UTF-8."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue().encode()


def write_runs(folder: Path, runs: Sequence[Finished], *, cpu_s: float) -> tuple[Path, ...]:
    """Everything about some runs of one scenario: time series, flows, people at the end, attack, description."""
    scenario = runs[0].scenario
    written = [
        write_table(folder, "steps", ("seed", *SERIES), [(r.seed, *row) for r in runs for row in r.series]),
        write_table(
            folder, "flows", ("seed", "from", "to", "nano"), [(r.seed, *row) for r in runs for row in flows(r)]
        ),
        write_table(folder, "agents_final", _PEOPLE, [row for r in runs for row in _people(r)]),
    ]
    results = {r.seed: figures(r) for r in runs}
    written.append(
        write_table(
            folder, "figures", ("seed", "figure", "value"),
            [(seed, name, value) for seed, values in results.items() for name, value in values.items()],
        )
    )  # fmt: skip
    if scenario.attack.kind != "none":
        written.append(
            write_table(
                folder, "attacks", ("seed", "kind", "accounts", "income", "return"),
                [
                    (seed, scenario.attack.kind, scenario.attack.accounts, v["attack_income"], v["attack_return"])
                    for seed, v in results.items()
                ],
            )
        )  # fmt: skip
    description = {
        "schema": "headwater.economy_run/1",
        "version": version("headwater"),
        "scenario": scenario.to_json(),
        "scenario_digest": scenario.digest,
        "policy": scenario.policy.to_json(),
        "policy_digest": scenario.policy.digest,
        "seeds": [r.seed for r in runs],
        "update": "sequential" if scenario.run.sequential else "synchronous",
        "calls": [int(r.tally[0]) for r in runs],
        "cpu_s": round(cpu_s, 3),
    }
    path = folder / "run.json"
    write_whole(path, (json.dumps(description, indent=1) + "\n").encode())
    return (*written, path)


_PEOPLE = ("seed", "row", "phase", "attacker", "enrolled", "earned_nano", "settled_nano", "effort")
_PEOPLE_MAX = 200_000


def _people(run: Finished) -> Iterator[tuple[Any, ...]]:
    """Contributors at the end, the best paid first; at most `_PEOPLE_MAX` of them."""
    c: Mapping[str, Any] = run.state.columns
    order = np.argsort(-c["contributor.accrued"], kind="stable")[:_PEOPLE_MAX]
    names = ("phase", "attacker", "enrolled", "accrued", "settled", "effort")
    columns = [c[f"contributor.{name}"][order].tolist() for name in names]
    for row, cells in zip(order.tolist(), zip(*columns, strict=True), strict=True):
        yield (run.seed, row, *cells)
