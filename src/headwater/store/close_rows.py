"""Payout rows: a sealed segment again, with accounts as numbers, which is what a close sums fast.

A text key of fifty bytes costs a group-by four times what a number costs, so each segment is coded once, by the
sealer while it has the receipts in memory; every close after that reads the coded file. Per receipt: `seq`,
`currency`, `price`, `issued_at_ns`, `supersedes` (the seq of the receipt it corrects) and `payouts`, a list of
(account number, amount). An account has the number of its first appearance in the log, escrow under its owner's
name, so whoever codes the same log gets the same numbers:

    rows-000000000000.parquet       the rows, named after the first seq
    accounts-000000000000.parquet   the accounts that appear there first: number, account

A file that is there is finished (renamed into place) and never changes. Knows nothing of windows or epochs.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headwater.core.errors import InvariantError
from headwater.core.ids import AccountId
from headwater.settlement.epoch import holder

PAYOUT_ROW = pa.struct(
    [pa.field("account", pa.int64(), nullable=False), pa.field("amount", pa.int64(), nullable=False)]
)
ROWS = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("currency", pa.string(), nullable=False),
        pa.field("price", pa.int64(), nullable=False),
        pa.field("issued_at_ns", pa.int64(), nullable=False),
        pa.field("supersedes", pa.int64()),
        pa.field("payouts", pa.list_(pa.field("element", PAYOUT_ROW, nullable=False)), nullable=False),
    ]
)
ACCOUNTS = pa.schema([pa.field("number", pa.int64(), nullable=False), pa.field("account", pa.string(), nullable=False)])
READ = ["seq", "receipt_id", "supersedes", "issued_at_ns", "currency", "price", "payouts"]
"""Columns of a sealed segment that are needed."""

ROW_GROUP_ROWS = 32_768
_READ_ROWS = 65_536
"""Receipts of a file that are coded at a time."""
_COMPRESSION = "zstd"
_ROWS_COMPRESSION = "lz4"
"""Numbers shrink little under any coding, and zstd costs the close more than half as much again."""

Earlier = Callable[[bytes], int | None]


class PayoutRows:
    """The coded rows under `folder`; who holds `alone` codes, any may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._load()

    def _load(self) -> None:
        self._numbers: dict[str, int] = {}  # of holders
        for path in sorted(self.folder.glob("accounts-*.parquet")):
            if (self.folder / path.name.replace("accounts", "rows")).exists():  # else its process died in between
                for number, account in zip(*_columns(pq.read_table(path), "number", "account"), strict=True):
                    self._numbers[account] = number
        self._loaded = self.files()
        self._kept = len(self._numbers)  # those in a file
        self._names: Any = pa.array(self._numbers, pa.string())  # as receipts write them, each once
        self._number_of = np.arange(len(self._numbers))  # of the holder of each name

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process codes here, and know what it coded; nobody else does until the end."""
        lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.files() != self._loaded:
                self._load()
            yield
        finally:
            os.close(lock)

    def accounts(self) -> list[str]:
        """Account names by number."""
        return list(self._numbers)

    def number(self, account: AccountId) -> int:
        """The number of an account's holder; a new one is kept with the next segment that is coded."""
        return self._numbers.setdefault(holder(account), len(self._numbers))

    def files(self) -> tuple[Path, ...]:
        """Coded files, oldest first."""
        return tuple(sorted(self.folder.glob("rows-*.parquet")))

    @property
    def size(self) -> int:
        """Receipts coded; what is at this seq comes next."""
        files = self.files()
        return _first(files[-1]) + pq.read_metadata(files[-1]).num_rows if files else 0

    def code(self, segment: Path, *, earlier: Earlier | None = None) -> Path:
        """Code one sealed segment, the next one in the log; one that is coded already is left as it is.

        Args:
            earlier: the seq of a receipt of an earlier segment by its id, for those that are superseded here.

        Raises:
            InvariantError: it does not start where the last one ended, or names a receipt nobody knows.
        """
        with pq.ParquetFile(segment) as source:
            ids = source.read(columns=["seq", "receipt_id"])
            batches = source.iter_batches(_READ_ROWS, columns=READ)
            return self._write(ids, (pa.Table.from_batches([batch]) for batch in batches), segment.name, earlier)

    def add(self, segment: Any, *, earlier: Earlier | None = None) -> Path:
        """As `code`, of a segment that is in memory: a table with the columns `READ`."""
        return self._write(segment.select(["seq", "receipt_id"]), [segment], "the segment", earlier)

    def _write(self, ids: Any, tables: Iterable[Any], name: str, earlier: Earlier | None) -> Path:
        seqs: list[int] = ids["seq"].to_pylist()
        size = self.size
        if seqs and seqs[0] < size:
            return self._path("rows", seqs[0])
        if not seqs or seqs != list(range(size, size + len(seqs))):
            raise InvariantError(
                f"{name} does not go on at receipt {size}", code="segment_gap", fix="code segments in order"
            )
        where = _Places(ids, earlier or (lambda _: None))
        path = self._path("rows", size)
        draft = path.with_suffix(".new")
        with pq.ParquetWriter(draft, ROWS, compression=_ROWS_COMPRESSION, use_dictionary=["currency"]) as writer:
            for table in tables:
                writer.write_table(self._coded(table.combine_chunks(), where), row_group_size=ROW_GROUP_ROWS)
        names = list(self._numbers)[self._kept :]
        added = pa.table({"number": range(self._kept, self._kept + len(names)), "account": names}, schema=ACCOUNTS)
        _write(self._path("accounts", size), added)
        _settle(draft, path)  # last: a rows file has its accounts
        self._kept += len(names)
        self._loaded = self.files()
        return path

    def _coded(self, table: Any, where: _Places) -> Any:
        """The rows of a table in one piece."""
        payouts = _one(table["payouts"])
        flat = payouts.flatten()
        accounts = self._coded_accounts(pc.struct_field(flat, "account"))
        rows = pa.StructArray.from_arrays([accounts, pc.struct_field(flat, "amount")], fields=list(PAYOUT_ROW))
        offsets = pc.subtract(payouts.offsets, payouts.offsets[0])
        lists = pa.ListArray.from_arrays(offsets, rows, type=ROWS.field("payouts").type)
        supersedes = pa.array([where.seq(one) for one in table["supersedes"].to_pylist()], pa.int64())
        plain = [table[name] for name in ("seq", "currency", "price", "issued_at_ns")]
        return pa.Table.from_arrays([*plain, supersedes, lists], schema=ROWS)

    def _coded_accounts(self, names: Any) -> Any:
        """The number of each name's holder; one pass in Arrow, and a little more for each name never seen before."""
        known = len(self._names)
        encoded = pa.chunked_array([self._names, names]).dictionary_encode()  # known names keep their places
        dictionary = encoded.chunk(encoded.num_chunks - 1).dictionary
        fresh = [self.number(AccountId(name)) for name in dictionary.slice(known).to_pylist()]
        self._names = dictionary
        self._number_of = np.concatenate([self._number_of, np.array(fresh, dtype=np.int64)])
        places = _one(encoded.slice(known)).indices
        return pa.array(self._number_of[places.to_numpy()])

    def _path(self, kind: str, first: int) -> Path:
        return self.folder / f"{kind}-{first:012d}.parquet"


class _Places:
    """Where a superseded receipt stands; the table is only made when one is asked for, which is rare."""

    def __init__(self, ids: Any, earlier: Earlier) -> None:
        self._ids, self._earlier = ids, earlier
        self._here: dict[bytes, int] | None = None

    def seq(self, receipt_id: bytes | None) -> int | None:
        if receipt_id is None:
            return None
        if self._here is None:
            self._here = dict(zip(*_columns(self._ids, "receipt_id", "seq"), strict=True))
        found = self._here[receipt_id] if receipt_id in self._here else self._earlier(receipt_id)
        if found is None:
            raise InvariantError(
                f"no receipt {receipt_id.hex()} comes before the one that supersedes it", code="superseded_missing"
            )
        return found


def write_table(path: Path, table: Any) -> None:
    """Write a small table whole or not at all."""
    _write(path, table)


def _write(path: Path, table: Any) -> None:
    draft = path.with_suffix(".new")
    pq.write_table(table, draft, compression=_COMPRESSION)
    _settle(draft, path)


def _settle(draft: Path, path: Path) -> None:
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)


def _first(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _one(column: Any) -> Any:
    """A column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _columns(table: Any, *names: str) -> Sequence[list[Any]]:
    return [table[name].to_pylist() for name in names]
