"""The manifest: which files make up an index, what was removed, who is a near-duplicate of whom.

It is replaced as a whole, so a reader sees the index before a change or after it. Its own SHA-256 is
inside. `Registered` sums up what is registered, independent of how it is cut into segments.

Source of the sum: Bellare and Micciancio, "A new paradigm for collision-free hashing", 1997 (LtHash,
1,024 words of 16 bits), so documents can be added, taken away and joined over shards in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from headwater.attribution.spans.segments import SegmentFile, write_durably
from headwater.core.canonical import digest, digest_of
from headwater.core.errors import InvalidError, MissingError

MANIFEST_FILE = "MANIFEST.json"
_FORMAT = "headwater-spans-2"
_SUM_BYTES = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Registered:
    """A sum over all registered documents, equal for equal sets of documents."""

    count: int = 0
    words: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(_SUM_BYTES // 2, dtype=np.uint16))

    def plus(self, record: bytes) -> Registered:
        """With one document more."""
        return Registered(self.count + 1, self.words + _expand(record))

    def minus(self, record: bytes) -> Registered:
        """With one document less."""
        return Registered(self.count - 1, self.words - _expand(record))

    def joined(self, other: Registered) -> Registered:
        """Of two disjoint sets of documents."""
        return Registered(self.count + other.count, self.words + other.words)

    @property
    def digest(self) -> str:
        """Short form of the sum."""
        return digest_of({"count": self.count, "sum": hashlib.sha256(self.words.astype("<u2").tobytes()).hexdigest()})


def document_record(document_id: str, owner: str | None, registered_at: int, text_sha256: bytes) -> bytes:
    """The bytes that stand for a document in the sum."""
    # A list of strings and null: its JSON is unambiguous, and RFC 8785 would cost ten times as much.
    return msgspec.json.encode([document_id, owner, str(registered_at), text_sha256.hex()])


def state_digest(
    registered: Registered, clusters: Mapping[str, str], *, gram_tokens: int, reference: str, tokeniser: str
) -> str:
    """Digest of all that decides what a trace says; a receipt carries it."""
    return digest_of(
        {
            "clusters": digest(msgspec.json.encode(sorted(clusters.items()))),
            "documents": registered.digest,
            "gram_tokens": gram_tokens,
            "reference": reference,
            "tokeniser": tokeniser,
        }
    )


@dataclass(frozen=True, slots=True)
class Manifest:
    """One state of an index on disk."""

    gram_tokens: int
    tokeniser: str
    reference: str
    segments: tuple[SegmentFile, ...] = ()
    journal: str = "journal-1.log"
    next_number: int = 2  # for the next file's name
    removed: frozenset[tuple[str, int]] = frozenset()  # file and number of documents that are still in a segment
    clusters: Mapping[str, str] = field(default_factory=dict)  # document -> earliest near-duplicate
    registered: Registered = field(default_factory=Registered)  # documents in segments, without the removed

    def write(self, folder: Path) -> None:
        """Put this manifest in force, durably.

        Raises:
            UpstreamError: the disk failed; the manifest before is in force.
        """
        value = {
            "clusters": sorted(self.clusters.items()),
            "format": _FORMAT,
            "gram_tokens": self.gram_tokens,
            "journal": self.journal,
            "next_number": self.next_number,
            "reference": self.reference,
            "registered": [self.registered.count, self.registered.words.astype("<u2").tobytes().hex()],
            "removed": sorted(list(item) for item in self.removed),
            "segments": [[s.file, s.sha256, s.size_bytes, s.documents, s.tokens] for s in self.segments],
            "tokeniser": self.tokeniser,
        }
        # Not RFC 8785, which is slow for many clusters: these bytes are signed for by their own SHA-256 alone.
        raw = msgspec.json.encode(value)
        write_durably(folder / MANIFEST_FILE, hashlib.sha256(raw).hexdigest().encode() + b"\n" + raw)


def read_manifest(folder: Path) -> Manifest:
    """The manifest in force.

    Raises:
        MissingError: there is no index in `folder`.
        InvalidError: the manifest is damaged, or of another version.
    """
    try:
        whole = (folder / MANIFEST_FILE).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            f"there is no span index in {folder.name!r}",
            code="index_missing",
            fix="create one with `headwater index build`",
        ) from None
    claimed, _, raw = whole.partition(b"\n")
    try:
        if hashlib.sha256(raw).hexdigest().encode() != claimed:
            raise ValueError("its SHA-256 does not fit")
        value = msgspec.json.decode(raw)
        if value["format"] != _FORMAT:
            raise InvalidError(
                f"the index has format {value['format']!r}, this version reads {_FORMAT!r}",
                code="index_format",
                fix="build the index again from the registered texts",
            )
        count, words = value["registered"]
        return Manifest(
            gram_tokens=int(value["gram_tokens"]),
            tokeniser=value["tokeniser"],
            reference=value["reference"],
            segments=tuple(SegmentFile(*segment) for segment in value["segments"]),
            journal=value["journal"],
            next_number=int(value["next_number"]),
            removed=frozenset((str(file), int(number)) for file, number in value["removed"]),
            clusters=dict(value["clusters"]),
            registered=Registered(int(count), np.frombuffer(bytes.fromhex(words), dtype="<u2").copy()),
        )
    except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise InvalidError(
            f"{MANIFEST_FILE} is damaged: {error}",
            code="manifest_damaged",
            fix="restore the file from a copy of the index",
        ) from None


def _expand(record: bytes) -> NDArray[np.uint16]:
    return np.frombuffer(hashlib.shake_128(record).digest(_SUM_BYTES), dtype="<u2")
