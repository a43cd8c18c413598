"""A frozen version of a datanet: a signed manifest whose Merkle root covers every contribution in it.

The manifest is small and says what the version is; the entries are its leaves, sorted by contribution, one line each.
Whoever has the entries computes the root, whoever has one entry proves that it is in. Freezing the same contributions
under the same charter gives the same root wherever it is done. Knows nothing of files, databases or trees: the root is
an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from headwater.core.canonical import canonical, digest, parse_canonical
from headwater.core.errors import HeadwaterError, InvalidError
from headwater.core.ids import ContributionId
from headwater.core.instants import format_instant, parse_instant
from headwater.core.keccak import keccak256
from headwater.registry.datanet import DatanetId

SCHEMA: Final = "headwater.datanet-version/1"
_DOMAIN: Final = b"headwater datanet version 1\x00"


@dataclass(frozen=True, slots=True)
class Entry:
    """One contribution of a version."""

    contribution: ContributionId
    content_digest: str  # of the contributor's own bytes, or of a derived row
    record_digest: str  # of its description: owners, licence, instant, source
    size_bytes: int
    lineage: str = ""  # how it was derived and from which bytes; empty for a contributor's own bytes

    def to_bytes(self) -> bytes:
        """The leaf: one line of canonical JSON."""
        return canonical([self.contribution, self.content_digest, self.record_digest, self.size_bytes, self.lineage])


def read_entry(raw: bytes) -> Entry:
    """The entry whose leaf is `raw`.

    Raises:
        InvalidError: ``manifest_invalid``.
    """
    value = parse_canonical(raw)
    shaped = isinstance(value, list) and [type(one) for one in value] == [str, str, str, int, str]
    if not shaped:
        raise _invalid(f"an entry that begins {raw[:60]!r}")
    return Entry(ContributionId(value[0]), *value[1:])


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is."""

    datanet: DatanetId
    version: int  # 1, 2, …
    parent: str | None  # digest of the manifest it follows
    charter_digest: str
    size: int  # entries
    size_bytes: int  # of all contents
    root: str  # 64 hex digits, RFC 6962 tree over the entries
    frozen_at_ns: int
    operator: str  # address of the signer

    def to_bytes(self) -> bytes:
        """The canonical bytes: what is signed."""
        return canonical(
            {
                "schema": SCHEMA,
                "datanet": self.datanet,
                "version": self.version,
                "parent": self.parent,
                "charter_digest": self.charter_digest,
                "size": self.size,
                "size_bytes": str(self.size_bytes),
                "root": self.root,
                "frozen_at": format_instant(self.frozen_at_ns),
                "operator": self.operator,
            }
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest; how others name the version."""
        return digest(self.to_bytes())


def read_manifest(raw: bytes) -> Manifest:
    """The manifest whose canonical bytes are `raw`.

    Raises:
        InvalidError: ``manifest_invalid``.
    """
    try:
        value: Mapping[str, Any] = parse_canonical(raw)
        made = Manifest(
            datanet=DatanetId(value["datanet"]),
            version=value["version"],
            parent=value["parent"],
            charter_digest=value["charter_digest"],
            size=value["size"],
            size_bytes=int(value["size_bytes"]),
            root=value["root"],
            frozen_at_ns=parse_instant(value["frozen_at"]),
            operator=value["operator"],
        )
        if made.to_bytes() != raw:
            raise ValueError("another schema, or fields that a manifest does not have")
        return made
    except (HeadwaterError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _invalid(str(error)) from None


def signing_digest(raw: bytes) -> bytes:
    """The 32 bytes an operator signs for the manifest `raw`."""
    return keccak256(_DOMAIN + raw)


def check_manifest(
    raw: bytes, signature: bytes, entries: Iterable[bytes], *, recover: Callable[[bytes, bytes], str], root_of: Root
) -> Manifest:
    """The manifest, if its operator signed it and its root is that of `entries`.

    Args:
        recover: the address whose key made a signature over a digest.
        root_of: the RFC 6962 root of leaves.

    Raises:
        InvalidError: ``manifest_signature_wrong`` or ``manifest_root_wrong``.
    """
    manifest = read_manifest(raw)
    signer = recover(signing_digest(raw), signature)
    if signer != manifest.operator:
        raise InvalidError(
            f"version {manifest.version} names the operator {manifest.operator}, it is signed by {signer}",
            code="manifest_signature_wrong",
            fix="use manifest and signature as they were written",
        )
    leaves = tuple(entries)
    root = root_of(leaves).hex()
    if (len(leaves), root) != (manifest.size, manifest.root):
        raise InvalidError(
            f"{len(leaves)} entries have the root {root}, the manifest says {manifest.size} and {manifest.root}",
            code="manifest_root_wrong",
            fix="use the entries as they were exported",
        )
    return manifest


Root = Callable[[Iterable[bytes]], bytes]


@dataclass(frozen=True, slots=True)
class Difference:
    """What one version has that another has not, by contribution."""

    added: tuple[ContributionId, ...]
    removed: tuple[ContributionId, ...]
    changed: tuple[ContributionId, ...]  # in both, described differently
    charter_changed: bool


def difference(
    before: Manifest, before_entries: Iterable[Entry], after: Manifest, after_entries: Iterable[Entry]
) -> Difference:
    """From one version to another.

    Raises:
        InvalidError: they are versions of two datanets.
    """
    if before.datanet != after.datanet:
        raise InvalidError(
            f"versions of {before.datanet} and {after.datanet}",
            code="datanets_differ",
            fix="compare two versions of one datanet",
        )
    old = {entry.contribution: entry for entry in before_entries}
    new = {entry.contribution: entry for entry in after_entries}
    return Difference(
        tuple(sorted(new.keys() - old.keys())),
        tuple(sorted(old.keys() - new.keys())),
        tuple(sorted(one for one in old.keys() & new.keys() if old[one] != new[one])),
        before.charter_digest != after.charter_digest,
    )


def _invalid(what: str) -> InvalidError:
    return InvalidError(
        f"not a datanet's manifest: {what}", code="manifest_invalid", fix="use the manifest as it was written"
    )
