"""Disputes on disk: events that are only added to, what is held for whom, and who may be drawn to judge.

Invariants: one open dispute a subject; events of a case are numbered without gaps; a call is noted as held before its
receipt is superseded, so that nothing stays held when a process dies in between. Knows nothing of money.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from headwater.core.canonical import canonical
from headwater.core.errors import ConflictError, InvalidError, MissingError
from headwater.core.ids import AccountId, CallId, ContributorId
from headwater.ledger import Kind, parse_account
from headwater.registry.dispute import Case, Event, EventKind, fold
from headwater.store.database import Sql

_STEPS = (
    """
    CREATE TABLE disputes (
      number INTEGER PRIMARY KEY,
      id TEXT NOT NULL UNIQUE,
      subject TEXT NOT NULL,
      closed INTEGER NOT NULL DEFAULT 0 CHECK (closed IN (0, 1))
    ) STRICT;
    CREATE UNIQUE INDEX disputes_open ON disputes (subject) WHERE closed = 0;
    CREATE TABLE dispute_events (
      dispute TEXT NOT NULL REFERENCES disputes (id),
      number INTEGER NOT NULL,
      kind TEXT NOT NULL,
      at_ns INTEGER NOT NULL,
      detail TEXT NOT NULL,
      PRIMARY KEY (dispute, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE dispute_holds (
      dispute TEXT NOT NULL REFERENCES disputes (id),
      call_id TEXT NOT NULL,
      PRIMARY KEY (dispute, call_id)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE dispute_reviewers (
      contributor_id TEXT PRIMARY KEY,
      account TEXT NOT NULL,
      since_ns INTEGER NOT NULL,
      until_ns INTEGER
    ) STRICT, WITHOUT ROWID;
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'what was said in a dispute is never changed'); END;
        """
        for table in ("dispute_events", "dispute_holds")
        for verb in ("UPDATE", "DELETE")
    ),
)


class DisputeStore:
    """Disputes kept in `database`; its tables are made on first use."""

    def __init__(self, database: Sql) -> None:
        self._database = database
        database.migrate("disputes", _STEPS)

    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside lands or nothing does."""
        return self._database.transaction()

    # Cases

    def begin(self, id: str, subject: str, at_ns: int, detail: Mapping[str, Any]) -> Case:
        """Keep a new case.

        Raises:
            ConflictError: a dispute about this subject is open.
        """
        with self._database.transaction():
            others = self._database.query("SELECT id FROM disputes WHERE subject = ? AND closed = 0", (subject,))
            if others:
                raise ConflictError(
                    f"{others[0][0]} is about {subject} already",
                    code="dispute_open",
                    fix="give evidence there, or wait until it is decided",
                )
            self._database.execute("INSERT INTO disputes (id, subject) VALUES (?, ?)", (id, subject))
            return self.say(id, "opened", at_ns, detail)

    def say(self, id: str, kind: EventKind, at_ns: int, detail: Mapping[str, Any]) -> Case:
        """Add an event to a case, and give what it has become."""
        with self._database.transaction():
            self._database.execute(
                "INSERT INTO dispute_events"
                " VALUES (?, (SELECT count(*) FROM dispute_events WHERE dispute = ?), ?, ?, ?)",
                (id, id, kind, at_ns, canonical(dict(detail)).decode()),
            )
            if kind == "closed":
                self._database.execute("UPDATE disputes SET closed = 1 WHERE id = ?", (id,))
        return self.get(id)

    def get(self, id: str) -> Case:
        """The case with this id.

        Raises:
            MissingError: there is none.
        """
        events = self.events(id)
        if not events:
            raise MissingError(f"no dispute {id[:80]!r}", code="dispute_missing", fix="see `headwater dispute list`")
        return fold(id, events)

    def events(self, id: str) -> tuple[Event, ...]:
        """All that happened in a case, oldest first."""
        rows = self._database.query(
            "SELECT kind, at_ns, detail FROM dispute_events WHERE dispute = ? ORDER BY number", (id,)
        )
        return tuple(Event(kind, at, json.loads(detail)) for kind, at, detail in rows)

    def cases(self, *, open_only: bool = False) -> tuple[Case, ...]:
        """Every case, oldest first; with `open_only` those that are not closed."""
        condition = "WHERE closed = 0" if open_only else ""
        rows = self._database.query(f"SELECT id FROM disputes {condition} ORDER BY number")
        return tuple(self.get(row[0]) for row in rows)

    # Holds

    def hold(self, id: str, calls: Sequence[CallId]) -> None:
        """Note calls whose receipts a case is about to hold something back from; noting again changes nothing."""
        self._database.executemany(
            "INSERT INTO dispute_holds VALUES (?, ?) ON CONFLICT DO NOTHING", [(id, call) for call in calls]
        )

    def held(self, id: str) -> tuple[CallId, ...]:
        """Calls that a case held, or was about to hold, something back from."""
        rows = self._database.query("SELECT call_id FROM dispute_holds WHERE dispute = ? ORDER BY call_id", (id,))
        return tuple(CallId(row[0]) for row in rows)

    # Reviewers

    def add_reviewer(self, contributor: ContributorId, account: AccountId, now_ns: int) -> None:
        """Let somebody be drawn from now on; fees go to `account`, prepaid credit of its own.

        Raises:
            InvalidError: an account that is no payer's.
        """
        if parse_account(account).kind is not Kind.PAYER:
            raise InvalidError(f"fees cannot go to {account}", code="account_invalid", fix="name a payer: account")
        self._database.execute(
            "INSERT INTO dispute_reviewers VALUES (?, ?, ?, NULL) ON CONFLICT (contributor_id)"
            " DO UPDATE SET account = excluded.account, until_ns = NULL",
            (contributor, account, now_ns),
        )

    def remove_reviewer(self, contributor: ContributorId, now_ns: int) -> bool:
        """Draw somebody no more; whether they were there. Panels that sit are not changed."""
        return bool(
            self._database.execute(
                "UPDATE dispute_reviewers SET until_ns = ? WHERE contributor_id = ? AND until_ns IS NULL",
                (now_ns, contributor),
            )
        )

    def reviewers(self) -> tuple[ContributorId, ...]:
        """Who may be drawn, sorted."""
        rows = self._database.query(
            "SELECT contributor_id FROM dispute_reviewers WHERE until_ns IS NULL ORDER BY contributor_id"
        )
        return tuple(ContributorId(row[0]) for row in rows)

    def account_of(self, reviewer: ContributorId) -> AccountId:
        """Where a reviewer's fees go, also after it is drawn no more.

        Raises:
            MissingError: it never was a reviewer.
        """
        rows = self._database.query("SELECT account FROM dispute_reviewers WHERE contributor_id = ?", (reviewer,))
        if not rows:
            raise MissingError(f"{reviewer} is no reviewer", code="reviewer_missing", fix="add the reviewer first")
        return AccountId(rows[0][0])
