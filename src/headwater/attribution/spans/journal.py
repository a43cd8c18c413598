"""The journal: what was acknowledged and is not yet in a segment, one synced record after another.

A record is a head (length, CRC-32 of the payload, CRC-32 of those) and its payload. A record cut short
at the end was never acknowledged and is dropped; one that is whole and wrong means damage.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import msgspec

from headwater.attribution.spans.segments import disk_error, sync_folder
from headwater.attribution.spans.values import Document
from headwater.core.errors import InvalidError

_HEAD_BYTES = 16


class Added(msgspec.Struct, frozen=True, tag="add", array_like=True):
    """Documents that were added together."""

    documents: list[tuple[str, str | None, int, bytes]]

    def values(self) -> tuple[Document, ...]:
        """The documents."""
        return tuple(Document(*row) for row in self.documents)


class Removed(msgspec.Struct, frozen=True, tag="remove", array_like=True):
    """A document that was removed."""

    document_id: str


class Clustered(msgspec.Struct, frozen=True, tag="cluster", array_like=True):
    """Near-duplicates: document, earliest near-duplicate."""

    pairs: list[tuple[str, str]]


Record = Added | Removed | Clustered

_decoder = msgspec.msgpack.Decoder(list[Record])
_encoder = msgspec.msgpack.Encoder()


def append_records(path: Path, records: list[Record]) -> None:
    """Add records that belong together, durably.

    Raises:
        UpstreamError: the disk failed; the journal is as it was.
    """
    payload = _encoder.encode(records)
    head = len(payload).to_bytes(8, "little") + zlib.crc32(payload).to_bytes(4, "little")
    raw = head + zlib.crc32(head).to_bytes(4, "little") + payload
    fresh = not path.exists()
    try:
        with path.open("ab", buffering=0) as out:
            before = out.tell()
            try:
                view = memoryview(raw)
                while view:
                    view = view[out.write(view) :]
                os.fsync(out.fileno())
            except OSError:
                os.ftruncate(out.fileno(), before)
                raise
        if fresh:
            sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error


def read_records(path: Path, *, salvage: bool = False) -> tuple[list[Record], int]:
    """All records, and how many bytes of the file hold them.

    Raises:
        InvalidError: a record is damaged (with `salvage`, it and those behind it are left out).
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    records: list[Record] = []
    at = 0
    while at + _HEAD_BYTES <= len(raw):
        head = raw[at : at + _HEAD_BYTES]
        end = at + _HEAD_BYTES + int.from_bytes(head[:8], "little")
        sound = zlib.crc32(head[:12]) == int.from_bytes(head[12:], "little")
        if sound and end > len(raw):
            break  # cut short: never acknowledged
        payload = raw[at + _HEAD_BYTES : end]
        if not sound or zlib.crc32(payload) != int.from_bytes(head[8:12], "little"):
            if salvage:
                break
            raise InvalidError(
                f"{path.name} is damaged at byte {at}",
                code="journal_damaged",
                fix="restore the file, or open with --salvage to go on without the records from there",
            )
        records.extend(_decoder.decode(payload))
        at = end
    return records, at
