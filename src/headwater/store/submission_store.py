"""Submissions on disk: batches that can be gone on with after a crash, their rows, and each row's state.

A batch's rows and how far its source was read are written in one commit, so a batch that was interrupted goes on with
the next row: nothing is taken twice or left out. A row's bytes are kept as they came until it has ended; then they are
the registry's, or gone. Knows nothing of what is checked or who decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headwater.core.canonical import canonical, digest
from headwater.core.errors import MissingError
from headwater.core.ids import ContributionId, ContributorId
from headwater.registry.contribution import Kind, Ownership
from headwater.registry.license import License
from headwater.registry.submission import State, SubmissionId, batch_id, check_step, read_submission_id, submission_id
from headwater.store.database import Row, Sql

_STEPS = (
    """
    CREATE TABLE submission_batches (
      number INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      datanet INTEGER NOT NULL,
      kind TEXT NOT NULL,
      owners TEXT NOT NULL,
      license TEXT NOT NULL,
      source TEXT NOT NULL,
      source_digest TEXT NOT NULL,
      opened_at_ns INTEGER NOT NULL,
      touched_at_ns INTEGER NOT NULL,
      place INTEGER NOT NULL DEFAULT 0,
      total INTEGER NOT NULL,
      rows INTEGER NOT NULL DEFAULT 0,
      unchanged INTEGER NOT NULL DEFAULT 0,
      finished INTEGER NOT NULL DEFAULT 0 CHECK (finished IN (0, 1)),
      draw INTEGER,
      followed INTEGER NOT NULL DEFAULT 0 CHECK (followed IN (0, 1))
    ) STRICT;
    CREATE INDEX submission_batches_open ON submission_batches (followed, number);
    CREATE TABLE submissions (
      number INTEGER PRIMARY KEY,
      datanet INTEGER NOT NULL,
      batch INTEGER NOT NULL REFERENCES submission_batches (number),
      row INTEGER NOT NULL,
      digest BLOB NOT NULL,
      size_bytes INTEGER NOT NULL,
      title TEXT NOT NULL,
      state TEXT NOT NULL,
      decided_by TEXT NOT NULL,
      reasons TEXT NOT NULL,
      due_at_ns INTEGER,
      lineage TEXT NOT NULL,
      contribution_id TEXT,
      UNIQUE (batch, row)
    ) STRICT;
    CREATE INDEX submissions_by_digest ON submissions (datanet, digest);
    CREATE INDEX submissions_due ON submissions (due_at_ns) WHERE due_at_ns IS NOT NULL;
    CREATE TABLE submission_bytes (
      number INTEGER PRIMARY KEY REFERENCES submissions (number),
      bytes BLOB NOT NULL
    ) STRICT;
    CREATE TABLE submission_parents (
      digest TEXT PRIMARY KEY,
      bytes BLOB NOT NULL
    ) STRICT;
    CREATE TABLE submission_sketches (
      number INTEGER PRIMARY KEY REFERENCES submissions (number),
      datanet INTEGER NOT NULL,
      sketch BLOB NOT NULL
    ) STRICT;
    CREATE INDEX submission_sketches_by_datanet ON submission_sketches (datanet, number);
    CREATE TRIGGER submissions_keep_their_end BEFORE UPDATE OF state ON submissions
    WHEN OLD.state IN ('accepted', 'refused', 'withdrawn') AND NEW.state <> OLD.state
    BEGIN SELECT RAISE(ABORT, 'a submission that has ended stays as it is'); END;
    """,
)
_BATCH = (
    "number, id, datanet, kind, owners, license, source, source_digest, opened_at_ns, touched_at_ns, place, total,"
    " rows, unchanged, finished, draw"
)
_ROW = (
    "s.number, b.id, s.row, s.datanet, s.batch, s.digest, s.size_bytes, s.title, s.state, s.decided_by, s.reasons,"
    " s.due_at_ns, s.lineage, s.contribution_id"
)
_FROM = "FROM submissions s JOIN submission_batches b ON b.number = s.batch"


@dataclass(frozen=True, slots=True)
class Offered:
    """What somebody submits to a datanet, as a whole."""

    datanet: int
    kind: Kind
    owners: tuple[Ownership, ...]
    license: License
    source: str  # file or folder, as it was named
    source_digest: str
    total: int  # units that `place` counts up to: bytes, rows or files


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it is kept."""

    number: int
    id: str
    offered: Offered
    opened_at_ns: int  # also when its contributions count as registered
    touched_at_ns: int
    place: int  # how far the source has been read
    rows: int  # rows taken, refused ones among them
    unchanged: int  # rows that the same owners had submitted before
    finished: bool
    draw: int | None


@dataclass(frozen=True, slots=True)
class Taken:
    """One row as the checks left it."""

    digest: bytes  # 32, of `content`
    content: bytes | None  # None when nothing of it may be kept
    size_bytes: int
    title: str
    state: State
    reasons: tuple[str, ...]  # of the checks: grounds to refuse, or what reviewers should look at
    lineage: str
    sketch: bytes | None
    due_at_ns: int | None


@dataclass(frozen=True, slots=True)
class Submission:
    """A row as it is kept."""

    number: int
    id: SubmissionId
    row: int
    datanet: int
    batch: int
    content_digest: str
    size_bytes: int
    title: str
    state: State
    decided_by: str  # nobody yet, checks, review, sample, appeal, deadline, registry or contributor
    reasons: tuple[str, ...]
    due_at_ns: int | None  # on the deadline clock
    lineage: str
    contribution: ContributionId | None


class SubmissionStore:
    """The submissions in `database`; its tables are made on first use."""

    def __init__(self, database: Sql) -> None:
        self.database = database
        database.migrate("submissions", _STEPS)

    # Batches

    def open(self, offered: Offered, now_ns: int) -> Batch:
        """The batch of these rows, from these owners on these terms: as it was left, or new."""
        owners = json.dumps([[one.contributor_id, one.share_ppb] for one in offered.owners])
        terms = _terms_text(offered.license)
        id = batch_id(str(offered.datanet), offered.kind, owners, terms, offered.source_digest)
        with self.database.transaction():
            self.database.execute(
                "INSERT INTO submission_batches (id, datanet, kind, owners, license, source, source_digest,"
                " opened_at_ns, touched_at_ns, total) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO NOTHING",
                (
                    *(id, offered.datanet, offered.kind, owners, terms, offered.source, offered.source_digest),
                    *(now_ns, now_ns, offered.total),
                ),
            )
            return self.batch(id)

    def batch(self, id: str) -> Batch:
        """A batch by its id.

        Raises:
            MissingError: ``batch_missing``.
        """
        rows = self.database.query(f"SELECT {_BATCH} FROM submission_batches WHERE id = ?", (id,))
        if not rows:
            raise MissingError(f"no batch {id[:60]!r}", code="batch_missing", fix="use the id that submitting gave")
        return _batch(rows[0])

    def batch_by_number(self, number: int) -> Batch:
        """A batch by its number."""
        return _batch(self.database.query(f"SELECT {_BATCH} FROM submission_batches WHERE number = ?", (number,))[0])

    def batches(self, datanet: int) -> tuple[Batch, ...]:
        """The batches of a datanet, oldest first."""
        rows = self.database.query(
            f"SELECT {_BATCH} FROM submission_batches WHERE datanet = ? ORDER BY number", (datanet,)
        )
        return tuple(map(_batch, rows))

    def open_batches(self) -> tuple[Batch, ...]:
        """The batches that have rows which were not decided yet."""
        rows = self.database.query(f"SELECT {_BATCH} FROM submission_batches WHERE followed = 0 ORDER BY number")
        return tuple(map(_batch, rows))

    def add(self, batch: Batch, rows: Sequence[Taken], *, place: int, unchanged: int, now_ns: int) -> Batch:
        """Keep rows and how far the source was read, in one commit."""
        with self.database.transaction():
            [(last,)] = self.database.query("SELECT coalesce(max(number), 0) FROM submissions")
            numbered = list(enumerate(rows, start=last + 1))
            self.database.executemany(
                "INSERT INTO submissions (number, datanet, batch, row, digest, size_bytes, title, state, decided_by,"
                " reasons, due_at_ns, lineage) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(number, batch.offered.datanet, batch.number, batch.rows + place_in_chunk),
                        *(one.digest, one.size_bytes, one.title, one.state, "" if one.state == "waiting" else "checks"),
                        *(" ".join(one.reasons), one.due_at_ns, one.lineage),
                    )
                    for place_in_chunk, (number, one) in enumerate(numbered)
                ],
            )
            self.database.executemany(
                "INSERT INTO submission_bytes VALUES (?, ?)",
                [(number, one.content) for number, one in numbered if one.content is not None],
            )
            self.database.executemany(
                "INSERT INTO submission_sketches VALUES (?, ?, ?)",
                [(number, batch.offered.datanet, one.sketch) for number, one in numbered if one.sketch is not None],
            )
            self.database.execute(
                "UPDATE submission_batches SET place = ?, rows = rows + ?, unchanged = unchanged + ?,"
                " touched_at_ns = ? WHERE number = ?",
                (place, len(rows), unchanged, now_ns, batch.number),
            )
            return self.batch_by_number(batch.number)

    def keep_parent(self, content: bytes) -> str:
        """Keep the bytes that derived rows are made of; gives their digest."""
        name = digest(content)
        self.database.execute("INSERT INTO submission_parents VALUES (?, ?) ON CONFLICT DO NOTHING", (name, content))
        return name

    def parent(self, name: str) -> bytes:
        """The bytes that derived rows were made of.

        Raises:
            MissingError: ``parent_missing``.
        """
        rows = self.database.query("SELECT bytes FROM submission_parents WHERE digest = ?", (name,))
        if not rows:
            raise MissingError(f"no bytes of {name} are kept", code="parent_missing", fix="ask their contributor")
        return bytes(rows[0][0])

    def finish(self, batch: Batch) -> None:
        """Say that a batch's source has been read to its end."""
        self.database.execute("UPDATE submission_batches SET finished = 1 WHERE number = ?", (batch.number,))

    # Rows

    def get(self, id: str) -> Submission:
        """A submission by its id.

        Raises:
            MissingError: ``submission_missing``.
        """
        batch, row = read_submission_id(id)
        rows = self.database.query(f"SELECT {_ROW} {_FROM} WHERE b.id = ? AND s.row = ?", (batch, row))
        if not rows:
            raise MissingError(f"no submission {id}", code="submission_missing", fix="use the id that submitting gave")
        return _submission(rows[0])

    def by_numbers(self, numbers: Sequence[int]) -> dict[int, Submission]:
        """Submissions by their numbers."""
        rows = self.database.query_in(f"SELECT {_ROW} {_FROM} WHERE s.number IN ({{}})", numbers)
        return {row[0]: _submission(row) for row in rows}

    def select(
        self, datanet: int, *, state: State | None = None, batch: int | None = None, after: int = 0, limit: int = 100
    ) -> tuple[Submission, ...]:
        """Submissions to a datanet in the order they came."""
        conditions: dict[str, object] = {"s.datanet = ?": datanet, "s.number > ?": after}
        conditions |= {"s.state = ?": state} if state is not None else {}
        conditions |= {"s.batch = ?": batch} if batch is not None else {}
        rows = self.database.query(
            f"SELECT {_ROW} {_FROM} WHERE {' AND '.join(conditions)} ORDER BY s.number LIMIT ?",
            (*conditions.values(), limit),
        )
        return tuple(map(_submission, rows))

    def counts(self, datanet: int) -> dict[str, int]:
        """How many submissions are in each state that occurs."""
        return dict(
            self.database.query("SELECT state, count(*) FROM submissions WHERE datanet = ? GROUP BY state", (datanet,))
        )

    def content(self, number: int) -> bytes | None:
        """A row's bytes while they are kept here."""
        rows = self.database.query("SELECT bytes FROM submission_bytes WHERE number = ?", (number,))
        return bytes(rows[0][0]) if rows else None

    def owners(self, batch: int) -> tuple[Ownership, ...]:
        """Whose a batch's rows are."""
        return self.batch_by_number(batch).offered.owners

    def step(
        self, submissions: Iterable[Submission], to: State, *, by: str, due_at_ns: int | None = None, reasons: str = ""
    ) -> None:
        """Bring submissions into another state, all or none.

        Raises:
            ConflictError: ``submission_state``, a step that may not be taken.
        """
        rows: list[tuple[Any, ...]] = []
        for one in submissions:
            check_step(one.id, one.state, to)
            rows.append((to, by, due_at_ns, reasons, reasons, one.number, one.state))
        with self.database.transaction():
            changed = self.database.executemany(
                "UPDATE submissions SET state = ?, decided_by = ?, due_at_ns = ?,"
                " reasons = CASE WHEN ? = '' THEN reasons ELSE ? END WHERE number = ? AND state = ?",
                rows,
            )
            if changed != len(rows):  # another process was faster: what it decided is read again
                for one in self.by_numbers([row[5] for row in rows]).values():
                    check_step(one.id, one.state, to)

    def waiting(self, batch: int) -> tuple[int, ...]:
        """Numbers of a batch's rows that wait for a decision, in order."""
        rows = self.database.query(
            "SELECT number FROM submissions WHERE batch = ? AND state = 'waiting' ORDER BY row", (batch,)
        )
        return tuple(row[0] for row in rows)

    def reviewed(self, batch: int) -> tuple[int, int, int]:
        """Of a batch's rows that were given to reviewers: accepted first, refused first, and still open."""
        [(accepted, refused, open_)] = self.database.query(
            "SELECT count(*) FILTER (WHERE t.outcome = 'accept'), count(*) FILTER (WHERE t.outcome = 'refuse'),"
            " count(*) FILTER (WHERE t.outcome IS NULL) FROM review_tasks t"
            " JOIN submissions s ON s.number = t.submission WHERE s.batch = ? AND t.appeal = 0",
            (batch,),
        )
        return accepted, refused, open_

    def step_waiting(self, batch: int, to: State, *, by: str, reasons: str, due_at_ns: int) -> int:
        """Bring all rows of a batch that still wait into a decided state; gives how many."""
        check_step(f"batch {batch}", "waiting", to)
        return self.database.execute(
            "UPDATE submissions SET state = ?1, decided_by = ?2, due_at_ns = ?3,"
            " reasons = CASE WHEN ?4 = '' THEN reasons ELSE ?4 END WHERE batch = ?5 AND state = 'waiting'",
            (to, by, due_at_ns, reasons, batch),
        )

    def set_draw(self, batch: Batch, draw: int) -> None:
        """Say by which draw a batch is reviewed."""
        self.database.execute("UPDATE submission_batches SET draw = ? WHERE number = ?", (draw, batch.number))

    def set_followed(self, batch: Batch) -> None:
        """Say that all rows of a batch are decided."""
        self.database.execute("UPDATE submission_batches SET followed = 1 WHERE number = ?", (batch.number,))

    def forget_bytes(self, numbers: Sequence[int]) -> None:
        """Drop the bytes of rows that have ended."""
        self.database.executemany("DELETE FROM submission_bytes WHERE number = ?", [(number,) for number in numbers])

    def set_contributions(self, pairs: Iterable[tuple[int, ContributionId]]) -> None:
        """Say which contributions accepted rows became."""
        self.database.executemany(
            "UPDATE submissions SET contribution_id = ? WHERE number = ?", [(name, number) for number, name in pairs]
        )

    def due(self, at_ns: int, limit: int) -> tuple[Submission, ...]:
        """Submissions whose deadline has passed, oldest deadline first."""
        rows = self.database.query(
            f"SELECT {_ROW} {_FROM} WHERE s.due_at_ns <= ? ORDER BY s.due_at_ns, s.number LIMIT ?", (at_ns, limit)
        )
        return tuple(map(_submission, rows))

    def same_bytes(self, datanet: int, digests: Sequence[bytes]) -> dict[bytes, Submission]:
        """By digest, submissions to a datanet of the same bytes that were not refused or withdrawn."""
        rows = self.database.query_in(
            f"SELECT {_ROW} {_FROM} WHERE s.datanet = ? AND s.state NOT IN ('refused', 'refusing', 'withdrawn')"
            " AND s.digest IN ({})",
            digests,
            datanet,
        )
        found: dict[bytes, Submission] = {}
        for row in sorted(set(rows), key=lambda row: row[0]):
            found.setdefault(bytes(row[5]), _submission(row))
        return found

    def refused_by_people(self, datanet: int, digests: Sequence[bytes]) -> dict[bytes, list[Submission]]:
        """By digest, submissions of the same bytes that reviewers refused, directly or by a sample."""
        found: dict[bytes, list[Submission]] = {}
        for row in set(
            self.database.query_in(
                f"SELECT {_ROW} {_FROM} WHERE s.datanet = ? AND s.state IN ('refused', 'refusing')"
                " AND s.decided_by IN ('review', 'appeal', 'sample') AND s.digest IN ({})",
                digests,
                datanet,
            )
        ):
            found.setdefault(bytes(row[5]), []).append(_submission(row))
        return found

    def sketches(self, datanet: int, after: int) -> Iterator[tuple[int, bytes]]:
        """(number, sketch) of a datanet's rows after one."""
        part = 50_000
        while rows := self.database.query(
            "SELECT number, sketch FROM submission_sketches WHERE datanet = ? AND number > ? ORDER BY number LIMIT ?",
            (datanet, after, part),
        ):
            yield from rows
            after = rows[-1][0]


def _terms_text(license: License) -> str:
    return canonical(
        {
            "expression": license.expression,
            "uses": sorted(license.uses),
            "price_floor_units": str(license.price_floor_units),
            "expires_at_ns": None if license.expires_at_ns is None else str(license.expires_at_ns),
            "terms": license.terms,
        }
    ).decode()


def _batch(row: Row) -> Batch:
    owners = tuple(Ownership(ContributorId(name), share) for name, share in json.loads(row[4]))
    terms = json.loads(row[5])
    license = License(
        terms["expression"],
        frozenset(terms["uses"]),
        int(terms["price_floor_units"]),
        None if terms["expires_at_ns"] is None else int(terms["expires_at_ns"]),
        terms["terms"],
    )
    offered = Offered(row[2], row[3], owners, license, row[6], row[7], row[11])
    return Batch(row[0], row[1], offered, row[8], row[9], row[10], row[12], row[13], bool(row[14]), row[15])


def _submission(row: Row) -> Submission:
    return Submission(
        number=row[0],
        id=submission_id(row[1], row[2]),
        row=row[2],
        datanet=row[3],
        batch=row[4],
        content_digest="sha256:" + bytes(row[5]).hex(),
        size_bytes=row[6],
        title=row[7],
        state=row[8],
        decided_by=row[9],
        reasons=tuple(row[10].split()),
        due_at_ns=row[11],
        lineage=row[12],
        contribution=None if row[13] is None else ContributionId(row[13]),
    )
