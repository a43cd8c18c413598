"""Datanets on disk: charters as they were revised, members, and frozen versions.

Invariants: a charter, a version and what was in it are never changed; a version's entries are kept as the span of
versions that each is in, so freezing again costs only what changed. What was withdrawn, or whose licence has ended,
is left out of the next version. Knows nothing of how something became a member.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.ids import ContributionId
from headwater.receipts import Signer
from headwater.receipts.log import LogTree, leaf_hash
from headwater.registry.datanet import Card, Datanet, DatanetId, Rules, read_datanet
from headwater.registry.datanet_manifest import Entry, Manifest, read_entry, read_manifest, signing_digest
from headwater.store.consent_store import ConsentStore
from headwater.store.database import Row, Sql

_STEPS = (
    """
    CREATE TABLE datanets (
      number INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      name TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE datanet_charters (
      number INTEGER PRIMARY KEY,
      datanet INTEGER NOT NULL REFERENCES datanets (number),
      digest TEXT NOT NULL,
      charter BLOB NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX datanet_charters_by_datanet ON datanet_charters (datanet, number);
    CREATE TABLE datanet_members (
      datanet INTEGER NOT NULL REFERENCES datanets (number),
      contribution_id TEXT NOT NULL,
      lineage TEXT NOT NULL,
      at_ns INTEGER NOT NULL,
      PRIMARY KEY (datanet, contribution_id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE datanet_versions (
      datanet INTEGER NOT NULL REFERENCES datanets (number),
      version INTEGER NOT NULL CHECK (version > 0),
      manifest BLOB NOT NULL,
      signature TEXT NOT NULL,
      PRIMARY KEY (datanet, version)
    ) STRICT;
    CREATE TABLE datanet_entries (
      datanet INTEGER NOT NULL REFERENCES datanets (number),
      contribution_id TEXT NOT NULL,
      first_version INTEGER NOT NULL,
      last_version INTEGER,
      leaf BLOB NOT NULL,
      PRIMARY KEY (datanet, contribution_id, first_version)
    ) STRICT, WITHOUT ROWID;
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'charters and versions are never changed'); END;
        """
        for table in ("datanets", "datanet_charters", "datanet_versions")
        for verb in ("UPDATE", "DELETE")
    ),
)
_MEMBERS_PART = 2_000


@dataclass(frozen=True, slots=True)
class Kept:
    """A datanet as it is kept here."""

    number: int
    datanet: Datanet  # with the newest charter
    members: int
    version: int  # the newest frozen one; 0 before the first


@dataclass(frozen=True, slots=True)
class Version:
    """A frozen version as it is kept."""

    manifest: Manifest
    raw: bytes
    signature: str  # 0x and 130 hex digits


class DatanetStore:
    """The datanets in `database`; its tables are made on first use."""

    def __init__(self, database: Sql) -> None:
        self.database = database
        database.migrate("datanets", _STEPS)

    # Charters

    def create(self, datanet: Datanet, now_ns: int) -> Kept:
        """Keep a new datanet; keeping the same one again changes nothing.

        Raises:
            ConflictError: ``datanet_name_taken``, by another datanet of this home.
        """
        with self.database.transaction():
            known = self.database.query("SELECT id FROM datanets WHERE name = ?", (datanet.name,))
            if known and known[0][0] != datanet.id:
                raise ConflictError(
                    f"there is a datanet {datanet.name!r} here, {known[0][0]}",
                    code="datanet_name_taken",
                    fix="give another name; a datanet of that name from elsewhere needs a home of its own",
                )
            if not known:
                self.database.execute("INSERT INTO datanets (id, name) VALUES (?, ?)", (datanet.id, datanet.name))
                self._keep_charter(datanet, now_ns)
        return self.get(datanet.id)

    def revise(self, name: str, card: Card, rules: Rules, now_ns: int) -> Kept:
        """Give a datanet another card or other rules; what was frozen stays as it was."""
        with self.database.transaction():
            kept = self.get(name)
            revised = kept.datanet.revised(card, rules)
            if revised.digest != kept.datanet.digest:
                self._keep_charter(revised, now_ns)
        return self.get(name)

    def get(self, name: str) -> Kept:
        """A datanet by its name or id.

        Raises:
            MissingError: ``datanet_missing``.
        """
        rows = self.database.query("SELECT number FROM datanets WHERE name = ?1 OR id = ?1", (name,))
        if not rows:
            raise MissingError(
                f"no datanet {name[:80]!r}", code="datanet_missing", fix="see `headwater datanet list`, or create it"
            )
        return self.by_number(rows[0][0])

    def by_number(self, number: int) -> Kept:
        """A datanet by the number that this home gave it."""
        [(charter,)] = self.database.query(
            "SELECT charter FROM datanet_charters WHERE datanet = ? ORDER BY number DESC LIMIT 1", (number,)
        )
        [(members,)] = self.database.query("SELECT count(*) FROM datanet_members WHERE datanet = ?", (number,))
        [(version,)] = self.database.query(
            "SELECT coalesce(max(version), 0) FROM datanet_versions WHERE datanet = ?", (number,)
        )
        return Kept(number, read_datanet(bytes(charter)), members, version)

    def all(self) -> tuple[Kept, ...]:
        """All datanets, by name."""
        rows = self.database.query("SELECT number FROM datanets ORDER BY name")
        return tuple(self.by_number(number) for (number,) in rows)

    def charter(self, kept: Kept, digest: str) -> bytes:
        """The charter with this digest, which a version names.

        Raises:
            MissingError: ``charter_missing``.
        """
        rows = self.database.query(
            "SELECT charter FROM datanet_charters WHERE datanet = ? AND digest = ? LIMIT 1", (kept.number, digest)
        )
        if not rows:
            raise MissingError(f"{kept.datanet.name} has no charter {digest}", code="charter_missing", fix="see `show`")
        return bytes(rows[0][0])

    def keep_charter(self, kept: Kept, datanet: Datanet, now_ns: int) -> None:
        """Keep a charter that came with a version from elsewhere, as the newest."""
        known = self.database.query(
            "SELECT 1 FROM datanet_charters WHERE datanet = ? AND digest = ?", (kept.number, datanet.digest)
        )
        if not known:
            self._keep_charter(datanet, now_ns)

    # Members

    def add_members(self, kept: Kept, members: Iterable[tuple[ContributionId, str]], now_ns: int) -> int:
        """Let contributions be part of the datanet; gives how many were not before.

        Args:
            members: (contribution, its lineage or nothing).
        """
        return self.database.executemany(
            "INSERT INTO datanet_members VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [(kept.number, contribution, lineage, now_ns) for contribution, lineage in members],
        )

    def members(self, kept: Kept) -> tuple[ContributionId, ...]:
        """The members now, sorted; frozen or not, withdrawn or not."""
        rows = self.database.query(
            "SELECT contribution_id FROM datanet_members WHERE datanet = ? ORDER BY contribution_id", (kept.number,)
        )
        return tuple(ContributionId(row[0]) for row in rows)

    # Versions

    def freeze(self, name: str, signer: Signer, now_ns: int) -> Version:
        """Freeze the members as the next version; when nothing has changed, the newest version is given again.

        Raises:
            InvalidError: ``datanet_empty``.
        """
        with self.database.transaction():
            kept = self.get(name)
            entries = self._standing(kept, now_ns)
            if not entries:
                raise InvalidError(
                    f"{kept.datanet.name} has no member that may be used",
                    code="datanet_empty",
                    fix="submit something and review it first",
                )
            root = root_of(entry.to_bytes() for entry in entries)
            last = self.version(kept, kept.version) if kept.version else None
            same = last and (last.manifest.root, last.manifest.charter_digest) == (root.hex(), kept.datanet.digest)
            if last is not None and same:
                return last
            manifest = Manifest(
                datanet=kept.datanet.id,
                version=kept.version + 1,
                parent=last.manifest.digest if last else None,
                charter_digest=kept.datanet.digest,
                size=len(entries),
                size_bytes=sum(entry.size_bytes for entry in entries),
                root=root.hex(),
                frozen_at_ns=now_ns,
                operator=signer.address,
            )
            raw = manifest.to_bytes()
            signature = "0x" + signer.sign(signing_digest(raw)).hex()
            self.keep_version(kept, Version(manifest, raw, signature), entries)
        return self.version(kept, manifest.version)

    def keep_version(self, kept: Kept, version: Version, entries: Sequence[Entry]) -> None:
        """Keep a version and what is in it, after the newest one.

        Raises:
            ConflictError: ``version_not_newer``.
        """
        number = version.manifest.version
        if number <= kept.version:
            raise ConflictError(
                f"version {number} of {kept.datanet.name} cannot follow version {kept.version}",
                code="version_not_newer",
                fix="import versions in their order; a pool that grew in two homes is two pools from there on",
            )
        before = {entry.contribution: entry for entry in self.entries(kept, kept.version)}
        after = {entry.contribution: entry for entry in entries}
        gone = [one for one, entry in before.items() if after.get(one) != entry]
        fresh = [entry for one, entry in after.items() if before.get(one) != entry]
        with self.database.transaction():
            self.database.executemany(
                "UPDATE datanet_entries SET last_version = ? WHERE datanet = ? AND contribution_id = ?"
                " AND last_version IS NULL",
                [(kept.version, kept.number, one) for one in gone],
            )
            self.database.executemany(
                "INSERT INTO datanet_entries VALUES (?, ?, ?, NULL, ?)",
                [(kept.number, entry.contribution, number, entry.to_bytes()) for entry in fresh],
            )
            self.database.execute(
                "INSERT INTO datanet_versions VALUES (?, ?, ?, ?)",
                (kept.number, number, version.raw, version.signature),
            )

    def version(self, kept: Kept, number: int) -> Version:
        """A frozen version.

        Raises:
            MissingError: ``version_missing``.
        """
        rows = self.database.query(
            "SELECT manifest, signature FROM datanet_versions WHERE datanet = ? AND version = ?", (kept.number, number)
        )
        if not rows:
            raise MissingError(
                f"{kept.datanet.name} has no version {number}",
                code="version_missing",
                fix=f"the newest is {kept.version}" if kept.version else "freeze one with `headwater datanet freeze`",
            )
        return _version(rows[0])

    def versions(self, kept: Kept) -> tuple[Version, ...]:
        """All frozen versions, oldest first."""
        rows = self.database.query(
            "SELECT manifest, signature FROM datanet_versions WHERE datanet = ? ORDER BY version", (kept.number,)
        )
        return tuple(map(_version, rows))

    def entries(self, kept: Kept, number: int) -> Iterator[Entry]:
        """What is in a version, sorted by contribution."""
        for (leaf,) in self.database.query(
            "SELECT leaf FROM datanet_entries WHERE datanet = ?1 AND first_version <= ?2"
            " AND (last_version IS NULL OR last_version >= ?2) ORDER BY contribution_id",
            (kept.number, number),
        ):
            yield read_entry(bytes(leaf))

    def _keep_charter(self, datanet: Datanet, now_ns: int) -> None:
        self.database.execute(
            "INSERT INTO datanet_charters (datanet, digest, charter, at_ns)"
            " VALUES ((SELECT number FROM datanets WHERE id = ?), ?, ?, ?)",
            (datanet.id, datanet.digest, datanet.to_bytes(), now_ns),
        )

    def _standing(self, kept: Kept, now_ns: int) -> tuple[Entry, ...]:
        """Entries of the members that may be used now, sorted."""
        gone = ConsentStore(self.database).all_stopped(now_ns)
        rows = self.database.query(
            "SELECT m.contribution_id, content_digest, record_digest, size_bytes, lineage FROM datanet_members m"
            " JOIN contributions c ON c.id = m.contribution_id"
            " WHERE m.datanet = ? AND (c.expires_at_ns IS NULL OR c.expires_at_ns > ?) ORDER BY m.contribution_id",
            (kept.number, now_ns),
        )
        return tuple(Entry(ContributionId(row[0]), *row[1:]) for row in rows if row[0] not in gone)


def parse_reference(text: str) -> tuple[str, int | None]:
    """The datanet and version that ``NAME@VERSION`` names; the version may be left out.

    Raises:
        InvalidError: ``datanet_reference_invalid``.
    """
    name, mark, version = text.partition("@")
    if not name or (mark and not (version.isascii() and version.isdigit() and len(version) < 10)):
        raise InvalidError(
            f"{text[:80]!r} names no version of a datanet", code="datanet_reference_invalid", fix="write NAME@VERSION"
        )
    return name, int(version) if mark else None


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The RFC 6962 root of leaves, 32 bytes."""
    return LogTree(leaf_hash(leaf) for leaf in leaves).root()


def _version(row: Row) -> Version:
    return Version(read_manifest(bytes(row[0])), bytes(row[0]), row[1])


__all__ = ["DatanetId", "DatanetStore", "Kept", "Version", "parse_reference", "root_of"]
