"""The registry on disk: contributors, contributions, owners and bytes, in the home folder's database.

Invariants: a batch lands whole or not at all; bytes are kept once per digest and read back only if they
still have it; a contribution is never changed or removed, but its owners may be by a later entry that names its
cause, and its bytes by an erasure that is on record. Knows nothing of what earned how much: when a contributor
enrols, what waits in escrow is the ledger's to release.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from headwater.core.canonical import digest, digest_of
from headwater.core.errors import ConflictError, InvariantError, MissingError
from headwater.core.ids import ContributionId, ContributorId
from headwater.registry.contribution import (
    Contribution,
    Kind,
    Ownership,
    check_owners,
    describe,
    registry_digest,
)
from headwater.registry.contributor import Contributor, checksum_address
from headwater.registry.intake import Admitted, Candidate, Intake, Known, admit, content_digest
from headwater.registry.license import License, Use
from headwater.store.database import Row, Sql

_STEPS = (
    """
    CREATE TABLE contributors (
      id TEXT PRIMARY KEY,
      namespace TEXT NOT NULL,
      name TEXT NOT NULL,
      payout_address TEXT
    ) STRICT;
    CREATE TABLE contents (
      digest TEXT PRIMARY KEY,
      bytes BLOB NOT NULL
    ) STRICT;
    CREATE TABLE contributions (
      number INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      kind TEXT NOT NULL,
      title TEXT NOT NULL,
      content_digest TEXT NOT NULL REFERENCES contents (digest),
      size_bytes INTEGER NOT NULL CHECK (size_bytes > 0),
      license_expression TEXT NOT NULL,
      uses TEXT NOT NULL,
      price_floor_units TEXT NOT NULL,
      expires_at_ns INTEGER,
      terms TEXT NOT NULL,
      registered_at_ns INTEGER NOT NULL,
      source TEXT NOT NULL,
      record_digest TEXT NOT NULL
    ) STRICT;
    CREATE INDEX contributions_by_kind ON contributions (kind, number);
    CREATE INDEX contributions_by_content ON contributions (content_digest);
    CREATE TABLE owners (
      contribution_id TEXT NOT NULL REFERENCES contributions (id),
      position INTEGER NOT NULL,
      contributor_id TEXT NOT NULL REFERENCES contributors (id),
      share_ppb INTEGER NOT NULL CHECK (share_ppb BETWEEN 1 AND 1000000000),
      PRIMARY KEY (contribution_id, position),
      UNIQUE (contribution_id, contributor_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX owners_by_contributor ON owners (contributor_id);
    CREATE TABLE contribution_metadata (
      contribution_id TEXT NOT NULL REFERENCES contributions (id),
      key TEXT NOT NULL,
      value TEXT NOT NULL,
      PRIMARY KEY (contribution_id, key)
    ) STRICT, WITHOUT ROWID;
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'what is registered is never changed or removed'); END;
        """
        for table in ("contents", "contributions", "owners", "contribution_metadata")
        for verb in ("UPDATE", "DELETE")
    ),
    # Bytes may be emptied once their erasure is on record; owners may change, by an entry that names its cause.
    """
    CREATE TABLE emptied_contents (
      digest TEXT PRIMARY KEY REFERENCES contents (digest),
      at_ns INTEGER NOT NULL
    ) STRICT;
    DROP TRIGGER contents_stay_UPDATE;
    CREATE TRIGGER contents_stay_UPDATE BEFORE UPDATE ON contents
    WHEN NEW.digest <> OLD.digest OR length(NEW.bytes) > 0
      OR NOT EXISTS (SELECT 1 FROM emptied_contents WHERE digest = OLD.digest)
    BEGIN SELECT RAISE(ABORT, 'what is registered is never changed or removed'); END;
    CREATE TABLE owner_changes (
      number INTEGER PRIMARY KEY,
      contribution_id TEXT NOT NULL REFERENCES contributions (id),
      cause TEXT NOT NULL UNIQUE,
      at_ns INTEGER NOT NULL,
      record_digest TEXT NOT NULL
    ) STRICT;
    CREATE INDEX owner_changes_by_contribution ON owner_changes (contribution_id, number);
    CREATE TABLE changed_owners (
      change INTEGER NOT NULL REFERENCES owner_changes (number),
      position INTEGER NOT NULL,
      contributor_id TEXT NOT NULL REFERENCES contributors (id),
      share_ppb INTEGER NOT NULL CHECK (share_ppb BETWEEN 1 AND 1000000000),
      PRIMARY KEY (change, position),
      UNIQUE (change, contributor_id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX changed_owners_by_contributor ON changed_owners (contributor_id);
    CREATE VIEW present_owners AS
      SELECT contribution_id, position, contributor_id, share_ppb FROM owners
      WHERE contribution_id NOT IN (SELECT contribution_id FROM owner_changes)
      UNION ALL
      SELECT c.contribution_id, o.position, o.contributor_id, o.share_ppb FROM owner_changes c
      JOIN changed_owners o ON o.change = c.number
      WHERE c.number = (SELECT max(number) FROM owner_changes l WHERE l.contribution_id = c.contribution_id);
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'what was decided is never edited'); END;
        """
        for table in ("emptied_contents", "owner_changes", "changed_owners")
        for verb in ("UPDATE", "DELETE")
    ),
    """
    CREATE TABLE registry_marks (
      digest TEXT PRIMARY KEY,
      contributions INTEGER NOT NULL,
      owner_changes INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    # The same rows, asked of the index for each contribution: no question reads every change there ever was.
    """
    DROP VIEW present_owners;
    CREATE VIEW present_owners AS
      SELECT contribution_id, position, contributor_id, share_ppb FROM owners
      WHERE NOT EXISTS (SELECT 1 FROM owner_changes c WHERE c.contribution_id = owners.contribution_id)
      UNION ALL
      SELECT c.contribution_id, o.position, o.contributor_id, o.share_ppb FROM owner_changes c
      JOIN changed_owners o ON o.change = c.number
      WHERE NOT EXISTS (
        SELECT 1 FROM owner_changes l WHERE l.contribution_id = c.contribution_id AND l.number > c.number
      );
    """,
)

_COLUMNS = (
    "id, kind, title, content_digest, size_bytes, license_expression, uses, price_floor_units, "
    "expires_at_ns, terms, registered_at_ns, source"
)


class RegistryStore:
    """The registry kept in `database`; its tables are made on first use."""

    def __init__(self, database: Sql) -> None:
        self._database = database
        database.migrate("registry", _STEPS)
        self._digested: tuple[Row, str] = (
            (),
            "",
        )  # (numbers of the last contribution and change of owners, digest then)

    # Contributors

    def add_contributor(self, contributor: Contributor) -> None:
        """Record a contributor; one that is already here stays as it is.

        Raises:
            ConflictError: it is offered with a payout address that is not the recorded one.
        """
        self.add_contributors([contributor])

    def add_contributors(self, contributors: Iterable[Contributor]) -> None:
        """Record contributors, all or none; those already here stay as they are.

        Raises:
            ConflictError: one is offered with a payout address that is not the recorded one.
        """
        with self._database.transaction():
            for offered in contributors:
                self._database.execute(
                    "INSERT INTO contributors VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                    (offered.id, offered.namespace, offered.name, offered.payout_address),
                )
                recorded = self.contributor(offered.id)
                if offered.enrolled and offered.payout_address != recorded.payout_address:
                    raise ConflictError(
                        f"contributor {recorded.name!r} is recorded with address {recorded.payout_address}",
                        code="contributor_differs",
                        fix="enrol the contributor to give an address",
                    )

    def enroll(self, contributor_id: ContributorId, payout_address: str) -> Contributor:
        """Give a contributor a payout address; only that changes. Doing it again is safe.

        Raises:
            MissingError: no such contributor.
            InvalidError: not an address.
            ConflictError: enrolled already, with another address.
        """
        address = checksum_address(payout_address)
        with self._database.transaction():
            recorded = self.contributor(contributor_id)
            if recorded.payout_address not in (None, address):
                raise ConflictError(
                    f"contributor {recorded.name!r} is enrolled with address {recorded.payout_address}",
                    code="already_enrolled",
                    fix="keep using that address",
                )
            self._database.execute("UPDATE contributors SET payout_address = ? WHERE id = ?", (address, contributor_id))
        return self.contributor(contributor_id)

    def contributor(self, contributor_id: ContributorId) -> Contributor:
        """The contributor with this id.

        Raises:
            MissingError: there is none.
        """
        rows = self._database.query(
            "SELECT id, name, namespace, payout_address FROM contributors WHERE id = ?", (contributor_id,)
        )
        if not rows:
            raise MissingError(
                f"no contributor {contributor_id}", code="contributor_missing", fix="add the contributor first"
            )
        return _contributor(rows[0])

    def contributors(self) -> tuple[Contributor, ...]:
        """Every contributor, by namespace and name."""
        rows = self._database.query(
            "SELECT id, name, namespace, payout_address FROM contributors ORDER BY namespace, name, id"
        )
        return tuple(_contributor(row) for row in rows)

    # Contributions

    def admit(self, candidates: Sequence[Candidate], contributors: Sequence[Contributor] = ()) -> Intake:
        """Check a batch against the registry and record what is good of it, in one transaction.

        Args:
            candidates: what is offered.
            contributors: owners that may be new; those who own something that is accepted are recorded.
        """
        with self._database.transaction():
            known = self.known(candidates)
            offered: dict[ContributorId, Contributor] = {}
            for contributor in contributors:
                offered.setdefault(contributor.id, contributor)  # of two spellings the first stands
            intake = admit(candidates, Known(known.contributors | offered.keys(), known.contributions))
            owning = dict.fromkeys(o.contributor_id for a in intake.accepted for o in a.contribution.owners)
            self.add_contributors(offered[owner] for owner in owning if owner in offered)
            self.register(intake.accepted)
        return intake

    def known(self, candidates: Iterable[Candidate]) -> Known:
        """What the registry holds, as far as checking `candidates` needs it."""
        batch = tuple(candidates)
        wanted_owners = sorted({owner.contributor_id for c in batch for owner in c.owners})
        owners = self._database.query_in("SELECT id FROM contributors WHERE id IN ({})", wanted_owners)
        digests = sorted({content_digest(candidate) for candidate in batch})
        return Known(frozenset(ContributorId(row[0]) for row in owners), self.by_content(digests))

    def by_content(self, digests: Sequence[str]) -> dict[str, tuple[Contribution, ...]]:
        """What is registered of each of these contents, for those that something is registered of."""
        by_digest: dict[str, tuple[Contribution, ...]] = {}
        rows = self._database.query_in(
            f"SELECT {_COLUMNS} FROM contributions WHERE content_digest IN ({{}}) ORDER BY number", digests
        )
        for contribution in self._built(tuple(rows)):
            same = by_digest.get(contribution.content_digest, ())
            by_digest[contribution.content_digest] = (*same, contribution)
        return by_digest

    def register(self, batch: Iterable[Admitted]) -> None:
        """Record contributions and their bytes, all or none.

        Raises:
            ConflictError: one of them is recorded already, or an owner is not a contributor.
            InvariantError: bytes that do not have the digest they are registered under.
        """
        with self._database.transaction():
            for admitted in batch:
                self._insert(admitted.contribution, admitted.content)

    def _insert(self, contribution: Contribution, content: bytes) -> None:
        if digest(content) != contribution.content_digest:
            raise InvariantError(f"bytes of {contribution.id} do not have its digest", code="content_digest_wrong")
        terms = contribution.license
        self._database.execute(
            "INSERT INTO contents VALUES (?, ?) ON CONFLICT (digest) DO NOTHING", (contribution.content_digest, content)
        )
        self._database.execute(
            f"INSERT INTO contributions ({_COLUMNS}, record_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                contribution.id,
                contribution.kind,
                contribution.title,
                contribution.content_digest,
                contribution.size_bytes,
                terms.expression,
                " ".join(sorted(terms.uses)),
                str(terms.price_floor_units),
                terms.expires_at_ns,
                terms.terms,
                contribution.registered_at_ns,
                contribution.source,
                digest_of(describe(contribution)),
            ),
        )
        self._database.executemany(
            "INSERT INTO owners VALUES (?, ?, ?, ?)",
            [(contribution.id, i, o.contributor_id, o.share_ppb) for i, o in enumerate(contribution.owners)],
        )
        self._database.executemany(
            "INSERT INTO contribution_metadata VALUES (?, ?, ?)",
            [(contribution.id, key, value) for key, value in contribution.metadata],
        )

    def get(self, contribution_id: ContributionId) -> Contribution:
        """The contribution with this id.

        Raises:
            MissingError: there is none.
        """
        found = self.get_many([contribution_id])
        if not found:
            raise MissingError(
                f"no contribution {contribution_id}", code="contribution_missing", fix="list what is registered"
            )
        return found[0]

    def get_many(self, contribution_ids: Sequence[ContributionId]) -> tuple[Contribution, ...]:
        """Those of the contributions that exist, in the order asked for, each once."""
        rows = self._database.query_in(
            f"SELECT {_COLUMNS} FROM contributions WHERE id IN ({{}})", list(dict.fromkeys(contribution_ids))
        )
        found = {contribution.id: contribution for contribution in self._built(tuple(rows))}
        return tuple(found[i] for i in dict.fromkeys(contribution_ids) if i in found)

    def content(self, contribution_id: ContributionId) -> bytes:
        """The bytes of a contribution, checked against their digest.

        Raises:
            MissingError: no such contribution, or its bytes were erased.
            InvariantError: the stored bytes were altered.
        """
        rows = self._database.query(
            "SELECT bytes, digest FROM contents JOIN contributions ON content_digest = digest WHERE id = ?",
            (contribution_id,),
        )
        if not rows:
            raise MissingError(
                f"no contribution {contribution_id}", code="contribution_missing", fix="list what is registered"
            )
        content = bytes(rows[0][0])
        if not content:  # nothing empty is ever admitted
            raise MissingError(
                f"the bytes of {contribution_id} were erased",
                code="content_erased",
                fix="its digest stays, and receipts that name it verify",
            )
        if digest(content) != rows[0][1]:
            raise InvariantError(f"stored bytes of {contribution_id} were altered", code="content_altered")
        return content

    def text(self, contribution_id: ContributionId) -> str:
        """The content of a contribution as text; content is UTF-8 by admission."""
        return self.content(contribution_id).decode("utf-8")

    def contributions(
        self, *, kind: Kind | None = None, owner: ContributorId | None = None
    ) -> tuple[Contribution, ...]:
        """Contributions in the order they were recorded, of one kind or one owner if given."""
        owned = "id IN (SELECT contribution_id FROM present_owners WHERE contributor_id = ?)"
        conditions = {text: value for text, value in (("kind = ?", kind), (owned, owner)) if value is not None}
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = self._database.query(
            f"SELECT {_COLUMNS} FROM contributions{where} ORDER BY number", tuple(conditions.values())
        )
        return self._built(rows)

    def counts(self) -> dict[str, int]:
        """How many contributions there are of each kind that occurs, and how many contributors."""
        kinds = self._database.query("SELECT kind, count(*) FROM contributions GROUP BY kind ORDER BY kind")
        [(people,)] = self._database.query("SELECT count(*) FROM contributors")
        return {**dict(kinds), "contributors": people}

    def digest(self) -> str:
        """Digest of all contributions, their owners and terms; see `registry.registry_digest`."""
        # The numbers of the last rows tell whether the digest still holds.
        with self._database.snapshot():
            last = self._extent()
            if self._digested[0] != last:
                self._digested = (last, registry_digest(self._records(*last)))
        return self._digested[1]

    def mark(self) -> str:
        """The digest as of now, and a note of what it covers, so that `records` can give that later."""
        with self._database.transaction():
            found = self.digest()
            last = self._digested[0]
            self._database.execute("INSERT INTO registry_marks VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (found, *last))
        return found

    def records(self, digest: str) -> tuple[tuple[ContributionId, str], ...]:
        """(contribution id, record digest) of the registry when it had a digest that was marked.

        Of one that was never marked it gives the registry of now, whose digest says whether it is the same.
        """
        with self._database.snapshot():
            marks = self._database.query(
                "SELECT contributions, owner_changes FROM registry_marks WHERE digest = ?", (digest,)
            )
            return self._records(*(marks[0] if marks else self._extent()))

    def _extent(self) -> Row:
        """Numbers of the last contribution and of the last change of owners; both tables only grow."""
        [last] = self._database.query(
            "SELECT (SELECT coalesce(max(number), 0) FROM contributions),"
            " (SELECT coalesce(max(number), 0) FROM owner_changes)"
        )
        return last

    def _records(self, contributions: int, owner_changes: int) -> tuple[tuple[ContributionId, str], ...]:
        """What the registry held up to these numbers; owners as the last change up to there left them."""
        records: dict[str, str] = dict(
            self._database.query(
                "SELECT id, record_digest FROM contributions WHERE number <= ? ORDER BY number", (contributions,)
            )
        )
        records |= dict(
            self._database.query(
                "SELECT contribution_id, record_digest FROM owner_changes WHERE number <= ? ORDER BY number",
                (owner_changes,),
            )
        )
        return tuple((ContributionId(i), one) for i, one in records.items())

    # What comes later

    def change_owners(
        self, contribution_id: ContributionId, owners: Sequence[Ownership], *, cause: str, now_ns: int
    ) -> Contribution:
        """Record that from now on `owners` own a contribution; receipts issued before stay as they are.

        Args:
            cause: the dispute or agreement that decided it; the same cause again changes nothing.

        Raises:
            MissingError: no such contribution, or an owner that is not a contributor.
            InvalidError: shares that do not sum to the whole.
            ConflictError: `cause` made other owners of it, or changed another contribution.
        """
        check_owners(owners)
        with self._database.transaction():
            before = self._database.query("SELECT number, contribution_id FROM owner_changes WHERE cause = ?", (cause,))
            if before:
                made = self._database.query(
                    "SELECT contributor_id, share_ppb FROM changed_owners WHERE change = ? ORDER BY position",
                    (before[0][0],),
                )
                wanted = [(owner.contributor_id, owner.share_ppb) for owner in owners]
                if before[0][1] != contribution_id or made != wanted:
                    raise ConflictError(
                        f"{cause} has changed owners of {before[0][1]} before, to others",
                        code="cause_used",
                        fix="a dispute or agreement decides once",
                    )
                return self.get(contribution_id)
            for owner in owners:
                self.contributor(owner.contributor_id)
            changed = replace(self.get(contribution_id), owners=tuple(owners))
            [(number,)] = self._database.query(
                "INSERT INTO owner_changes (contribution_id, cause, at_ns, record_digest) VALUES (?, ?, ?, ?)"
                " RETURNING number",
                (contribution_id, cause, now_ns, digest_of(describe(changed))),
            )
            self._database.executemany(
                "INSERT INTO changed_owners VALUES (?, ?, ?, ?)",
                [(number, place, owner.contributor_id, owner.share_ppb) for place, owner in enumerate(owners)],
            )
        return changed

    def owner_history(self, contribution_id: ContributionId) -> tuple[tuple[str, int, tuple[Ownership, ...]], ...]:
        """Who owned a contribution over time, oldest first: (cause, since when, owners). The first cause is empty."""
        first = self._database.query(
            "SELECT contributor_id, share_ppb FROM owners WHERE contribution_id = ? ORDER BY position",
            (contribution_id,),
        )
        found = [("", self.get(contribution_id).registered_at_ns, tuple(Ownership(*row) for row in first))]
        for number, cause, at in self._database.query(
            "SELECT number, cause, at_ns FROM owner_changes WHERE contribution_id = ? ORDER BY number",
            (contribution_id,),
        ):
            rows = self._database.query(
                "SELECT contributor_id, share_ppb FROM changed_owners WHERE change = ? ORDER BY position", (number,)
            )
            found.append((cause, at, tuple(Ownership(*row) for row in rows)))
        return tuple(found)

    def empty(self, contribution_id: ContributionId, now_ns: int) -> tuple[ContributionId, ...]:
        """Take the bytes of a contribution away for good, and record it; gives all contributions that had the same.

        Raises:
            MissingError: no such contribution.
        """
        content = self.get(contribution_id).content_digest
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO emptied_contents VALUES (?, ?) ON CONFLICT DO NOTHING", (content, now_ns)
            )
            self._database.execute(
                "UPDATE contents SET bytes = ? WHERE digest = ? AND length(bytes) > 0", (b"", content)
            )
            rows = self._database.query(
                "SELECT id FROM contributions WHERE content_digest = ? ORDER BY number", (content,)
            )
        return tuple(ContributionId(row[0]) for row in rows)

    def _built(self, rows: Sequence[Row]) -> tuple[Contribution, ...]:
        ids = [row[0] for row in rows]
        owners: dict[str, list[Ownership]] = {}
        selected = self._database.query_in(
            "SELECT contribution_id, contributor_id, share_ppb, position FROM present_owners"
            " WHERE contribution_id IN ({})",
            ids,
        )
        for contribution_id, contributor, share, _ in sorted(selected, key=lambda row: (row[0], row[3])):
            owners.setdefault(contribution_id, []).append(Ownership(ContributorId(contributor), share))
        metadata: dict[str, list[tuple[str, str]]] = {}
        pairs = self._database.query_in(
            "SELECT contribution_id, key, value FROM contribution_metadata WHERE contribution_id IN ({})", ids
        )
        for contribution_id, key, value in sorted(pairs):
            metadata.setdefault(contribution_id, []).append((key, value))
        return tuple(_contribution(row, owners[row[0]], metadata.get(row[0], [])) for row in rows)


def _contributor(row: Row) -> Contributor:
    return Contributor(ContributorId(row[0]), row[1], row[2], row[3] is not None, row[3])


def _contribution(row: Row, owners: Sequence[Ownership], metadata: Sequence[tuple[str, str]]) -> Contribution:
    uses = cast("frozenset[Use]", frozenset(row[6].split()))
    return Contribution(
        id=ContributionId(row[0]),
        kind=row[1],
        title=row[2],
        content_digest=row[3],
        size_bytes=row[4],
        owners=tuple(owners),
        license=License(row[5], uses, int(row[7]), row[8], row[9]),
        registered_at_ns=row[10],
        source=row[11],
        metadata=tuple(metadata),
    )
