"""The folder an auditor needs to recompute an epoch, and how it is written: nothing private is in it.

    export.json              epoch, operator, the log's public key, what the folder holds
    epochs/<n>.json          the manifests of this epoch and of all before
    receipts/                segments of the epoch's window, with their manifest
    related.json             receipts outside the window that corrections in it refer to
    tile/ checkpoint         hashes of the log, up to what the epoch's window had seen
    policies/<digest>.toml   every policy the receipts name
    registry.json            id and record digest of every contribution when the epoch was closed

Receipts hold digests of requests and answers, never text. Writing again over an earlier export gives the same bytes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from headwater.core.canonical import canonical
from headwater.receipts import Receipt, TreeHead, leaf_hash
from headwater.receipts.checkpoint import NoteSigner
from headwater.receipts.tiles import tiles_of
from headwater.settlement.epoch import read_manifest
from headwater.store.epoch_store import EpochRecord
from headwater.store.log_tiles import CHECKPOINT
from headwater.store.object_store import ObjectStore
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_segments import (
    MANIFEST_NAME,
    SEGMENT_RECEIPTS_MAX,
    SealedRow,
    SegmentManifest,
    encode_segment,
)

SCHEMA: Final = "headwater.export/1"
EXPORT: Final = "export.json"


class Folder:
    """A store's subfolder, as a store."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name
        self.location = f"{store.location}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of a name."""
        return self._store.read(f"{self._name}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Keep `data` under `name`."""
        self._store.write(f"{self._name}/{name}", data)

    def exists(self, name: str) -> bool:
        """Whether something has that name."""
        return self._store.exists(f"{self._name}/{name}")

    def remove(self, name: str) -> None:
        """Take a name away."""
        self._store.remove(f"{self._name}/{name}")


def write_export(
    store: ObjectStore,
    log: ReceiptLog,
    record: EpochRecord,
    before: Sequence[EpochRecord],
    *,
    operator: str,
    currency: str,
    signer: NoteSigner,
    policies: Mapping[str, str],
    registry: Iterable[tuple[str, str]],
    progress: Callable[[int, int], None] | None = None,
) -> SegmentManifest:
    """Write the export of an epoch.

    Args:
        before: all earlier epochs, oldest first.
        policies: TOML text by digest, ``sha256:…``.
        registry: (contribution id, record digest) of every contribution when the epoch was closed.
    """
    first = before[-1].log_size if before else 0
    seen = max(record.log_size, int(read_manifest(record.manifest).get("log_seen", 0)))
    segments = _write_segments(Folder(store, "receipts"), log, first, record.log_size, progress)
    head = log.head(seen)
    for tile in tiles_of(seen):
        if tile.level is not None:
            store.write(tile.path, log.nodes(8 * tile.level, tile.first, tile.width))
    store.write(CHECKPOINT, signer.checkpoint(head).to_bytes())
    for one in (*before, record):
        store.write(f"epochs/{one.epoch}.json", one.manifest)
    store.write("related.json", canonical(_related(log, first, record.log_size, seen)))
    for digest, text in policies.items():
        store.write(f"policies/{digest.removeprefix('sha256:')}.toml", text.encode())
    store.write("registry.json", canonical([list(row) for row in sorted(registry)]))
    store.write(EXPORT, canonical(_description(record, operator, currency, signer, head, policies)))
    return segments


def _description(
    record: EpochRecord,
    operator: str,
    currency: str,
    signer: NoteSigner,
    head: TreeHead,
    policies: Mapping[str, str],
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "epoch": record.epoch,
        "operator": operator,
        "currency": currency,
        "log_key": signer.key.text,
        "log_size": head.size,
        "policies": sorted(policies),
    }


def _related(log: ReceiptLog, first: int, size: int, seen: int) -> list[list[object]]:
    """(seq, receipt) of the calls that have a receipt in [first, size) and others below `seen` outside of it."""
    found: dict[int, bytes] = {}
    for index in range(first, seen):
        raw = log.at(index).raw
        call = Receipt.from_bytes(raw).call_id if index >= size or b'"supersedes":"' in raw else None
        if call is None:
            continue
        chain = [entry.index for entry in log.by_call(call) if entry.index < seen]
        if any(first <= place < size for place in chain):
            found.update({place: log.at(place).raw for place in chain if not first <= place < size})
    return [[place, base64.b64encode(raw).decode("ascii")] for place, raw in sorted(found.items())]


def _write_segments(
    store: ObjectStore, log: ReceiptLog, first: int, end: int, progress: Callable[[int, int], None] | None
) -> SegmentManifest:
    segments = []
    for start in range(first, end, SEGMENT_RECEIPTS_MAX):
        stop = min(end, start + SEGMENT_RECEIPTS_MAX)
        rows = (
            SealedRow(bytes.fromhex(one.entry.id), leaf_hash(one.raw), bytes.fromhex(one.signature[2:]), one.raw)
            for one in (log.at(index) for index in range(start, stop))
        )
        # A place in the append file means nothing outside it.
        segment, data = encode_segment(start, rows, log_end=1, log_check=0)
        store.write(segment.file, data)
        segments.append(segment)
        if progress is not None:
            progress(stop - first, end - first)
    manifest = SegmentManifest(tuple(segments), end, log.root(end))
    store.write(MANIFEST_NAME, manifest.to_bytes())
    return manifest
