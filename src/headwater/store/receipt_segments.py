"""Sealed receipts as Parquet: the columns that an epoch close sums, beside the bytes that were signed.

One row per receipt, in log order. Amounts are BIGINT: what the log admits is bounded by one ledger
transfer (2^62 nano units), so sums belong in DECIMAL(38,0) and no column needs more than 64 bits. The
columns are a copy for engines; `raw` is the record, and whoever distrusts a column recomputes it from there.
Knows nothing of how a close sums or of the live log.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

MANIFEST_SCHEMA: Final = "headwater.segments/1"
MANIFEST_NAME: Final = "manifest.json"

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
