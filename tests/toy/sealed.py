"""Sealed segments for tests: receipts as rows of the real schema, with what a close reads and blanks elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.store.receipt_segments import SCHEMA


@dataclass(frozen=True)
class Row:
    """A receipt as far as a close sees it."""

    payouts: tuple[tuple[str, int], ...]
    supersedes: int | None = None  # seq
    currency: str = "USD"


def receipt_id(seq: int) -> bytes:
    """An id for the receipt at `seq`."""
    return sha256(b"receipt %d" % seq).digest()


def seal(folder: Path, rows: Sequence[Row], *, per_segment: int = 10**9) -> list[Path]:
    """Write `rows` as segments; their order is the log's."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for first in range(0, len(rows), per_segment):
        table = []
        for seq, row in enumerate(rows[first : first + per_segment], first):
            blanks = {
                field.name: "" if pa.types.is_string(field.type) else b"" if pa.types.is_binary(field.type) else 0
                for field in SCHEMA
            }
            table.append(
                {
                    **blanks,
                    "seq": seq,
                    "receipt_id": receipt_id(seq),
                    "supersedes": None if row.supersedes is None else receipt_id(row.supersedes),
                    "issued_at_ns": seq,
                    "currency": row.currency,
                    "price": sum(amount for _, amount in row.payouts),
                    "payouts": [
                        {"account": account, "amount": amount, "line": "contributors", "contribution": None}
                        for account, amount in row.payouts
                    ],
                    "shares": [],
                }
            )
        path = folder / f"segment-{first:012d}.parquet"
        pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), path, row_group_size=1_000)
        paths.append(path)
    return paths


def random_rows(count: int, *, seed: int, accounts: int = 500, largest: int = 10**9) -> list[Row]:
    """Receipts that pay one to twenty accounts of a skewed law, some of them in escrow."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        picked = rng.zipf(1.3, int(rng.integers(1, 20))) % accounts
        names = [f"{'escrow' if n % 7 == 0 else 'contributor'}:ctr_{n:032x}" for n in picked.tolist()]
        rows.append(Row(tuple(zip(names, rng.integers(0, largest, len(names)).tolist(), strict=True))))
    return rows


def added_up(rows: Sequence[Row], currency: str = "USD") -> Counter[str]:
    """The sums by holder, with plain integers."""
    sums: Counter[str] = Counter()
    for row in rows:
        if row.currency == currency:
            for account, amount in row.payouts:
                sums[account.replace("escrow:", "contributor:")] += amount
    return sums
