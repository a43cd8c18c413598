"""Sealed receipts as Parquet: the columns that an epoch close sums, beside the bytes that were signed.

One row per receipt, in log order. Amounts are BIGINT: what the log admits is bounded by one ledger
transfer (2^62 nano units), so sums belong in DECIMAL(38,0) and no column needs more than 64 bits. The
columns are a copy for engines; `raw` is the record, and whoever distrusts a column recomputes it from there.
Knows nothing of how a close sums or of the live log.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, islice
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from headwater.core.canonical import canonical, parse_canonical
from headwater.core.errors import InvalidError, MissingError
from headwater.core.instants import parse_instant
from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.receipts import EMPTY_ROOT, fields
from headwater.store.object_store import ObjectStore

MANIFEST_SCHEMA: Final = "headwater.segments/1"
MANIFEST_NAME: Final = "manifest.json"
SEGMENT_RECEIPTS_MAX: Final = 131_072
ROW_GROUP_RECEIPTS: Final = 16_384

PAYOUT: Final = pa.struct(
    [
        pa.field("account", pa.string(), nullable=False),
        pa.field("amount", pa.int64(), nullable=False),  # nano units of the receipt's currency, 0..2^62
        pa.field("line", pa.string(), nullable=False),
        pa.field("contribution", pa.string()),
    ]
)
SHARE: Final = pa.struct(
    [
        pa.field("contribution", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("channel", pa.string(), nullable=False),
        pa.field("weight_ppb", pa.int64(), nullable=False),
        pa.field("microbits", pa.int64(), nullable=False),
    ]
)

SCHEMA: Final = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),  # index in the log, from 0
        pa.field("receipt_id", pa.binary(), nullable=False),  # 32 bytes: SHA-256 of `raw`
        pa.field("leaf_hash", pa.binary(), nullable=False),  # 32 bytes: SHA-256 of 0x00 and `raw`
        pa.field("call_id", pa.binary(), nullable=False),  # 16 bytes: what follows call_
        pa.field("supersedes", pa.binary()),  # receipt_id that this one corrects, of the same call
        pa.field("issued_at_ns", pa.int64(), nullable=False),
        pa.field("operator", pa.string(), nullable=False),
        pa.field("payer", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("currency", pa.string(), nullable=False),
        pa.field("price", pa.int64(), nullable=False),  # nano units, the sum of the payouts' amounts
        pa.field("policy_digest", pa.string(), nullable=False),
        pa.field("registry_digest", pa.string(), nullable=False),
        pa.field("index_digest", pa.string()),
        pa.field("estimator", pa.string(), nullable=False),
        pa.field("grade", pa.string(), nullable=False),
        pa.field("residual_ppb", pa.int64(), nullable=False),
        pa.field("payouts", pa.list_(pa.field("element", PAYOUT, nullable=False)), nullable=False),
        pa.field("shares", pa.list_(pa.field("element", SHARE, nullable=False)), nullable=False),
        pa.field("signature", pa.binary(), nullable=False),  # 65 bytes: r, s, v
        pa.field("raw", pa.binary(), nullable=False),  # canonical bytes of the receipt
    ],
    metadata={b"headwater": MANIFEST_SCHEMA.encode()},
)
"""The columns of a segment."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One sealed file, as the manifest names it."""

    file: str
    first: int  # seq of its first receipt
    count: int
    size_bytes: int
    sha256: str  # 64 hex digits, of the file
    log_end: int  # bytes of the append log up to and with its last receipt
    log_check: int  # check of that receipt's frame
    issued_from_ns: int  # least and greatest issued_at_ns
    issued_to_ns: int
    price_units: int  # sum of prices, nano units over all currencies
    payouts: int  # rows of payouts
    amount_units: int  # sum of their amounts; equals price_units


@dataclass(frozen=True, slots=True)
class SegmentManifest:
    """All that is sealed, oldest first, and the log's head at that size."""

    segments: tuple[Segment, ...] = ()
    size: int = 0
    root: bytes = EMPTY_ROOT  # 32

    def to_bytes(self) -> bytes:
        """The manifest as a canonical JSON file."""
        rows = [
            {name: str(value) if name in _AS_TEXT else value for name, value in asdict(one).items()}
            for one in self.segments
        ]
        return canonical({"schema": MANIFEST_SCHEMA, "segments": rows, "size": self.size, "root": self.root.hex()})

    @classmethod
    def from_bytes(cls, raw: bytes) -> SegmentManifest:
        """Read a manifest.

        Raises:
            InvalidError: not canonical, a field of another form, or segments with a gap.
        """
        value = parse_canonical(raw)
        _MANIFEST(value, "$")
        rows: list[dict[str, Any]] = value["segments"]
        for row in rows:
            row.update({name: int(row[name]) for name in _AS_TEXT})
        segments = tuple(Segment(**row) for row in rows)
        at = segments[0].first if segments else value["size"]  # an export begins where its epoch does
        for number, one in enumerate(segments):
            if one.first != at:
                raise InvalidError(
                    f"segment {number} begins at {one.first}, the one before ends at {at}",
                    code="segments_gap",
                    fix="restore the manifest as it was written",
                )
            at += one.count
        if at != value["size"]:
            raise InvalidError(
                f"segments end at {at}, the manifest says {value['size']}",
                code="segments_gap",
                fix="restore the manifest as it was written",
            )
        return cls(segments, value["size"], bytes.fromhex(value["root"]))


def read_manifest(store: ObjectStore) -> SegmentManifest:
    """The manifest in a store; the empty one before anything was sealed."""
    try:
        return SegmentManifest.from_bytes(store.read(MANIFEST_NAME))
    except MissingError:
        return SegmentManifest()


class SealedRow(NamedTuple):
    """A receipt on its way into a segment."""

    receipt_id: bytes
    leaf_hash: bytes
    signature: bytes
    raw: bytes


def encode_segment(
    first: int,
    rows: Iterable[SealedRow],
    *,
    log_end: int,
    log_check: int,
    see: Callable[[pa.Table], None] | None = None,
) -> tuple[Segment, bytes]:
    """A segment's file and its line of the manifest; the same rows always give the same columns.

    Args:
        see: is shown each row group, for who needs its columns too.

    Raises:
        InvalidError: a receipt that cannot be read, or an amount beyond 2^62.
    """
    sink = io.BytesIO()
    count = prices = payouts = amounts = 0
    issued: list[int] = []
    remaining = iter(rows)
    with pq.ParquetWriter(
        sink, SCHEMA, compression="zstd", compression_level=3, use_dictionary=_DICTIONARY, write_page_index=True
    ) as writer:
        while chunk := list(islice(remaining, ROW_GROUP_RECEIPTS)):
            columns = columns_of(first + count, chunk)
            table = pa.table(columns, schema=SCHEMA)
            writer.write_table(table)
            if see is not None:
                see(table)
            count += len(chunk)
            prices += sum(columns["price"])
            payouts += len(columns["payouts"].values)
            amounts += sum(columns["payouts"].values.field("amount").to_pylist())
            issued += (min(columns["issued_at_ns"]), max(columns["issued_at_ns"]))
    data = sink.getvalue()
    segment = Segment(
        file=f"receipts-{first:012d}-{count:06d}.parquet",
        first=first,
        count=count,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        log_end=log_end,
        log_check=log_check,
        issued_from_ns=min(issued),
        issued_to_ns=max(issued),
        price_units=prices,
        payouts=payouts,
        amount_units=amounts,
    )
    return segment, data


def columns_of(first: int, rows: Sequence[SealedRow]) -> dict[str, Any]:
    """The columns of `SCHEMA` as the receipts' own bytes give them: what a segment must hold.

    Lists, and for `payouts` an Arrow list array.

    Raises:
        InvalidError: bytes that are no receipt, or an amount beyond 2^62.
    """
    try:
        read = [_read(row.raw) for row in rows]
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidError(
            f"receipts from {first} on: {error}", code="not_a_receipt", fix="use the bytes as they were issued"
        ) from None
    return {
        "seq": list(range(first, first + len(rows))),
        "receipt_id": [row.receipt_id for row in rows],
        "leaf_hash": [row.leaf_hash for row in rows],
        "call_id": [bytes.fromhex(one.call_id[5:]) for one in read],
        "supersedes": [None if one.supersedes is None else bytes.fromhex(one.supersedes) for one in read],
        "issued_at_ns": [parse_instant(one.issued_at) for one in read],
        "operator": [one.operator for one in read],
        "payer": [one.payer for one in read],
        "model": [one.model.name for one in read],
        "currency": [one.currency for one in read],
        "price": [_units(one.price) for one in read],
        "policy_digest": [one.policy_digest for one in read],
        "registry_digest": [one.registry_digest for one in read],
        "index_digest": [one.attribution.index_digest for one in read],
        "estimator": [one.attribution.estimator for one in read],
        "grade": [one.attribution.grade for one in read],
        "residual_ppb": [one.attribution.residual_ppb for one in read],
        "payouts": _payouts(read),
        "shares": [
            [
                {
                    "contribution": s.contribution,
                    "kind": s.kind,
                    "channel": s.channel,
                    "weight_ppb": s.weight_ppb,
                    "microbits": s.microbits,
                }
                for s in one.attribution.shares
            ]
            for one in read
        ],
        "signature": [row.signature for row in rows],
        "raw": [row.raw for row in rows],
    }


def read_tables(store: ObjectStore, segment: Segment, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """A segment, one row group at a time.

    Args:
        columns: those that are wanted; all by default.

    Raises:
        InvalidError: the file is not the one the manifest names, or has other columns.
    """
    data = store.read(segment.file)
    if hashlib.sha256(data).hexdigest() != segment.sha256:
        raise InvalidError(
            f"{segment.file} in {store.location} hashes to {hashlib.sha256(data).hexdigest()}, "
            f"the manifest says {segment.sha256}",
            code="segment_differs",
            fix="restore the file from another copy",
        )
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if not file.schema_arrow.equals(SCHEMA):
            raise InvalidError(
                f"{segment.file} has other columns than version 1", code="segment_invalid", fix="restore the file"
            )
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise InvalidError(
            f"{segment.file} cannot be read: {error}", code="segment_invalid", fix="restore the file"
        ) from None


def _payouts(read: Sequence[_Receipt]) -> pa.ListArray:
    """The payouts as one list array: a quarter of the cost of a dictionary for each."""
    flat = [payout for one in read for payout in one.payouts]
    rows = pa.StructArray.from_arrays(
        [
            pa.array([p.account for p in flat], pa.string()),
            pa.array([_units(p.amount) for p in flat], pa.int64()),
            pa.array([p.line for p in flat], pa.string()),
            pa.array([p.contribution for p in flat], pa.string()),
        ],
        fields=list(PAYOUT),
    )
    offsets = [0, *accumulate(len(one.payouts) for one in read)]
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows, type=SCHEMA.field("payouts").type)


def _units(text: str) -> int:
    units = int(text)
    if not 0 <= units <= TRANSFER_UNITS_MAX:
        raise InvalidError(
            f"an amount of {text[:50]} nano units, a transfer holds at most {TRANSFER_UNITS_MAX}",
            code="amount_too_large",
            fix="such a receipt cannot be booked; supersede it",
        )
    return units


class _Model(msgspec.Struct, gc=False):
    name: str


class _Share(msgspec.Struct, gc=False):
    contribution: str
    kind: str
    channel: str
    weight_ppb: int
    microbits: int


class _Payout(msgspec.Struct, gc=False):
    account: str
    amount: str
    line: str
    contribution: str | None


class _Attribution(msgspec.Struct, gc=False):
    estimator: str
    grade: str
    index_digest: str | None
    residual_ppb: int
    shares: list[_Share]


class _Receipt(msgspec.Struct, gc=False):
    """What of a receipt has a column of its own."""

    call_id: str
    supersedes: str | None
    issued_at: str
    operator: str
    payer: str
    model: _Model
    currency: str
    price: str
    policy_digest: str
    registry_digest: str
    attribution: _Attribution
    payouts: list[_Payout]


_read = msgspec.json.Decoder(_Receipt).decode

_AS_TEXT: Final = ("price_units", "amount_units", "issued_from_ns", "issued_to_ns")
"""Fields beyond 2^53, which canonical JSON holds as decimal strings."""

_DICTIONARY: Final = [
    *(
        "operator",
        "payer",
        "model",
        "currency",
        "policy_digest",
        "registry_digest",
        "index_digest",
        "estimator",
        "grade",
    ),
    *(f"payouts.list.element.{name}" for name in ("account", "line", "contribution")),
    *(f"shares.list.element.{name}" for name in ("contribution", "kind", "channel")),
]

_MANIFEST: Final = fields.record(
    {
        "schema": fields.one_of(MANIFEST_SCHEMA),
        "segments": fields.rows(
            fields.record(
                {
                    "file": fields.matching(r"receipts-[0-9]{12}-[0-9]{6}\.parquet", "a segment's file name"),
                    "first": fields.integer(0),
                    "count": fields.integer(1),
                    "size_bytes": fields.integer(1),
                    "sha256": fields.hash32,
                    "log_end": fields.integer(1),
                    "log_check": fields.integer(0, 2**32 - 1),
                    "issued_from_ns": fields.amount,
                    "issued_to_ns": fields.amount,
                    "price_units": fields.amount,
                    "payouts": fields.integer(0),
                    "amount_units": fields.amount,
                }
            ),
            0,
            1_000_000,
        ),
        "size": fields.integer(0),
        "root": fields.hash32,
    }
)
