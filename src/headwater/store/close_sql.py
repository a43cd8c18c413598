"""The close of an epoch as one SQL text that DuckDB and Spark both run, over the same Parquet, to the same bytes.

Nothing but BIGINT and DECIMAL(38,0) is summed, `explode` turns a list into rows (DuckDB is taught the word), and both
engines raise where a sum leaves 38 digits. Tables, each a set of Parquet files:

    receipts      coded payout rows (`close_rows`)
    adjustments   account, amount: what corrections add or take back (`headwater.settlement.disputes`)
    previous      account, units: cumulative amounts of the epoch before

What comes out is checked against the prices before it is believed. Knows nothing of trees, chains or ledgers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headwater.core.errors import InvalidError, InvariantError
from headwater.core.money import AMOUNT_MAX
from headwater.store.close_rows import ROWS, write_table
from headwater.store.database import INT64_MAX

_WINDOW = """
  FROM receipts r
  WHERE r.seq >= {log_from} AND r.seq < {log_size} AND r.currency = '{currency}'
"""

TOTALS = (
    """
SELECT account,
       CAST(SUM(before_units) AS DECIMAL(38,0)) AS before_units,
       CAST(SUM(paid_units) AS DECIMAL(38,0)) AS paid_units,
       CAST(SUM(before_units + paid_units) AS DECIMAL(38,0)) AS cumulative_units
FROM (
  SELECT account, CAST(units AS DECIMAL(38,0)) AS before_units, CAST(0 AS DECIMAL(38,0)) AS paid_units
  FROM previous
  UNION ALL
  SELECT account, CAST(0 AS DECIMAL(38,0)), CAST(amount AS DECIMAL(38,0))
  FROM adjustments
  UNION ALL
  SELECT account, CAST(0 AS DECIMAL(38,0)), CAST(units AS DECIMAL(38,0))
  FROM (
    SELECT p.account AS account, {sum} AS units
    FROM (SELECT explode(r.payouts) AS p"""
    + _WINDOW
    + """) AS expanded
    GROUP BY p.account
  ) AS paid
) AS moved
GROUP BY account
ORDER BY account
"""
)
"""Per account: what it had, what this window paid it, and the sum."""

WIDE_SUM = "SUM(CAST(p.amount AS DECIMAL(38,0)))"
NARROW_SUM = "SUM(p.amount)"
"""A fifth faster, and taken when all prices of the window together fit 63 bits: then no part of them can overflow."""

FACTS = (
    "SELECT CAST(COUNT(*) AS BIGINT) AS receipts,"
    " CAST(COALESCE(SUM(CAST(r.price AS DECIMAL(38,0))), 0) AS DECIMAL(38,0)) AS price_units" + _WINDOW
)
"""What the totals are held against: the prices of the receipts."""

CORRECTIONS = "SELECT r.seq, r.supersedes FROM receipts r WHERE r.supersedes IS NOT NULL ORDER BY r.seq"
"""Every correction there is; few."""

TOTALS_SCHEMA = pa.schema(
    [
        pa.field("account", pa.int64(), nullable=False),
        pa.field("before_units", pa.decimal128(38, 0), nullable=False),
        pa.field("paid_units", pa.decimal128(38, 0), nullable=False),
        pa.field("cumulative_units", pa.decimal128(38, 0), nullable=False),
    ]
)
TABLES: Mapping[str, Any] = {
    "receipts": ROWS,
    "adjustments": pa.schema(
        [pa.field("account", pa.int64(), nullable=False), pa.field("amount", pa.int64(), nullable=False)]
    ),
    "previous": pa.schema(
        [pa.field("account", pa.int64(), nullable=False), pa.field("units", pa.decimal128(38, 0), nullable=False)]
    ),
}
"""The columns of every table the texts read."""

Tables = Mapping[str, Sequence[Path]]


class Engine(Protocol):
    """Runs one text over Parquet files."""

    def run(self, sql: str, tables: Tables) -> Any:
        """The rows of `sql` as an Arrow table; every name in `TABLES` is given at least one file.

        Raises:
            InvalidError: ``amount_out_of_range`` when a sum leaves 38 digits.
        """
        ...


@dataclass(frozen=True, slots=True)
class CloseWindow:
    """Which receipts of which currency are added up."""

    log_from: int
    log_size: int
    currency: str

    def fill(self, sql: str, *, wide: bool = True) -> str:
        """The text for this window."""
        if not self.currency.replace("_", "").replace("-", "").replace(".", "").replace(":", "").isalnum():
            raise InvalidError(f"asset {self.currency[:80]!r}", code="asset_invalid", fix="name the currency like USD")
        return sql.format(
            log_from=int(self.log_from),
            log_size=int(self.log_size),
            currency=self.currency,
            sum=WIDE_SUM if wide else NARROW_SUM,
        )


@dataclass(frozen=True, slots=True)
class Totals:
    """The outcome of a close."""

    table: Any  # Arrow, `TOTALS_SCHEMA`, ascending by account
    receipts_count: int  # receipts of the window
    price_units: int  # their prices

    @property
    def accounts(self) -> NDArray[np.int64]:
        """(n,) account numbers, ascending."""
        return np.asarray(self.table["account"].to_numpy())

    def units(self, column: str) -> list[int]:
        """(n,) exact nano units of one column."""
        return decimal_units(self.table[column])


def close_window(engine: Engine, window: CloseWindow, tables: Tables, scratch: Path) -> Totals:
    """Add up a window on `engine`.

    Args:
        tables: files of `receipts`, and of the others as far as they hold anything.
        scratch: folder for an empty file of each table that has none.

    Raises:
        InvariantError: the totals are not what the receipts cost and what was there before.
        InvalidError: a sum leaves 38 digits.
    """
    given = {name: tuple(tables.get(name, ())) or (_empty(name, scratch),) for name in TABLES}
    facts = engine.run(window.fill(FACTS), given).to_pylist()[0]
    wide = int(facts["price_units"]) > INT64_MAX
    found = engine.run(window.fill(TOTALS, wide=wide), given).cast(TOTALS_SCHEMA)
    totals = Totals(found.combine_chunks(), int(facts["receipts"]), int(facts["price_units"]))
    added = _file_sum(given["adjustments"], "amount")
    before = _file_sum(given["previous"], "units")
    paid, cumulative = sum(totals.units("paid_units")), sum(totals.units("cumulative_units"))
    if paid != totals.price_units + added or cumulative != before + paid or cumulative > AMOUNT_MAX:
        raise InvariantError(
            f"the window paid {paid} nano, its receipts cost {totals.price_units} and corrections add {added};"
            f" {cumulative} in all after {before}",
            code="epoch_not_exact",
            fix="keep the segments as evidence and recompute them from the log",
        )
    return totals


def decimal_units(column: Any) -> list[int]:
    """The integers of a DECIMAL(38,0) column, without a detour through `Decimal`."""
    values: list[int] = []
    for chunk in getattr(column, "chunks", [column]):
        words = np.frombuffer(chunk.buffers()[1], dtype=np.uint64)[2 * chunk.offset : 2 * (chunk.offset + len(chunk))]
        low, high = words[::2], words[1::2].view(np.int64)
        if high.any():
            values += [(top << 64) + bottom for top, bottom in zip(high.tolist(), low.tolist(), strict=True)]
        else:
            values += low.tolist()
    return values


def as_previous(totals: Totals, path: Path) -> Path:
    """Keep cumulative amounts as the next close's `previous`."""
    table = pa.Table.from_arrays([totals.table["account"], totals.table["cumulative_units"]], schema=TABLES["previous"])
    write_table(path, table)
    return path


def _empty(name: str, scratch: Path) -> Path:
    path = scratch / f"empty-{name}.parquet"
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        write_table(path, TABLES[name].empty_table())
    return path


def _file_sum(files: Sequence[Path], column: str) -> int:
    import pyarrow.parquet as pq

    total = 0
    for path in files:
        values = pq.read_table(path, columns=[column])[column]
        total += sum(decimal_units(values)) if pa.types.is_decimal(values.type) else sum(values.to_pylist())
    return total
