"""Who changed what, and when: an append-only trail of the operator's acts, each entry chained to the one before.

An act is written in the same transaction as its effect where both are in one database, so neither exists
without the other. The chain shows whether an entry was changed or taken out of the middle; it cannot show that
the newest ones were cut off, which the published head does. Entries hold no secrets and no text of callers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.core.canonical import canonical
from headwater.core.errors import InvalidError, Problem
from headwater.core.instants import format_instant
from headwater.store.database import Row, Sql

NAME_CHARS_MAX: Final = 200
DETAIL_BYTES_MAX: Final = 16_384
PAGE_MAX: Final = 1_000
_DOMAIN: Final = b"headwater audit entry\x00"
_COLUMNS: Final = "number, at_ns, actor, action, subject, detail, digest"

_STEPS = (
    f"""
    CREATE TABLE audit_entries (
      number INTEGER PRIMARY KEY,
      at_ns INTEGER NOT NULL,
      actor TEXT NOT NULL,
      action TEXT NOT NULL,
      subject TEXT NOT NULL,
      detail TEXT NOT NULL CHECK (length(detail) <= {DETAIL_BYTES_MAX}),
      digest BLOB NOT NULL
    ) STRICT;
    CREATE INDEX audit_entries_by_subject ON audit_entries (subject, number);
    """,
    "".join(
        f"""
        CREATE TRIGGER audit_entries_stay_{verb} BEFORE {verb} ON audit_entries
        BEGIN SELECT RAISE(ABORT, 'the audit trail is only ever added to'); END;
        """
        for verb in ("UPDATE", "DELETE")
    ),
)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One act."""

    number: int  # from 1, without gaps
    at_ns: int
    actor: str  # key id, account id or `cli:USER`
    action: str  # noun.verb, such as key.create
    subject: str  # what was acted on
    detail: Mapping[str, Any]  # what changed, JSON
    digest: bytes  # SHA-256 over the digest before and this entry's canonical bytes

    def to_json(self) -> dict[str, Any]:
        """As it is shown."""
        return {
            "number": self.number,
            "at": format_instant(self.at_ns),
            "actor": self.actor,
            "action": self.action,
            "subject": self.subject,
            "detail": dict(self.detail),
            "digest": self.digest.hex(),
        }


class AuditTrail:
    """The trail in `db`; its table is made on first use."""

    def __init__(self, db: Sql) -> None:
        self.db = db
        db.migrate("audit_trail", _STEPS)

    def record(
        self, now_ns: int, actor: str, action: str, subject: str, detail: Mapping[str, Any] | None = None
    ) -> AuditEntry:
        """Write an act down. Inside a transaction of `db` it stands or falls with the rest.

        Raises:
            InvalidError: ``audit_entry_invalid``, a name that is empty, too long or cannot be printed, or too much
                detail.
        """
        for what, name in (("actor", actor), ("action", action), ("subject", subject)):
            if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
                raise _invalid(f"{what} {name[:80]!r}", f"use 1 to {NAME_CHARS_MAX} printable characters")
        text = canonical(dict(detail or {})).decode()
        if len(text) > DETAIL_BYTES_MAX:
            raise _invalid(f"{len(text)} bytes of detail", f"record at most {DETAIL_BYTES_MAX}")
        with self.db.transaction():
            rows = self.db.query("SELECT number, digest FROM audit_entries ORDER BY number DESC LIMIT 1")
            number, before = (rows[0][0] + 1, rows[0][1]) if rows else (1, b"")
            digest = _digest(before, number, now_ns, actor, action, subject, text)
            self.db.execute(
                f"INSERT INTO audit_entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, now_ns, actor, action, subject, text, digest),
            )
        return AuditEntry(number, now_ns, actor, action, subject, msgspec.json.decode(text), digest)

    def entries(
        self, *, before: int | None = None, limit: int = 100, subject: str | None = None
    ) -> tuple[AuditEntry, ...]:
        """The newest entries first.

        Args:
            before: only those with a smaller number; the last number of a page gives the next page.
            limit: 1 to 1,000.
            subject: only acts on it.
        """
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidError(f"limit {limit}", code="page_invalid", fix=f"use 1 to {PAGE_MAX}")
        where = " AND subject = ?" if subject is not None else ""
        params: tuple[Any, ...] = (2**62 if before is None else before, *(() if subject is None else (subject,)), limit)
        rows = self.db.query(
            f"SELECT {_COLUMNS} FROM audit_entries WHERE number < ?{where} ORDER BY number DESC LIMIT ?", params
        )
        return tuple(_entry(row) for row in rows)

    def head(self) -> tuple[int, bytes]:
        """(number of entries, digest of the newest); publish it, and nothing can be cut off unseen."""
        rows = self.db.query("SELECT number, digest FROM audit_entries ORDER BY number DESC LIMIT 1")
        return (rows[0][0], rows[0][1]) if rows else (0, b"")

    def check(self) -> tuple[Problem, ...]:
        """Entries that were changed, or are missing."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[Problem]:
        before, expected = b"", 1
        for number, at_ns, actor, action, subject, text, digest in self.db.query(
            f"SELECT {_COLUMNS} FROM audit_entries ORDER BY number"
        ):
            if number != expected:
                yield _problem(number, "audit_entry_missing", f"entries {expected} to {number - 1} are missing")
            elif digest != _digest(before, number, at_ns, actor, action, subject, text):
                yield _problem(number, "audit_entry_changed", f"entry {number} is not the one that was written")
            before, expected = digest, number + 1


def _digest(before: bytes, number: int, at_ns: int, actor: str, action: str, subject: str, text: str) -> bytes:
    body = canonical({"n": str(number), "at": str(at_ns), "by": actor, "act": action, "on": subject, "what": text})
    return hashlib.sha256(_DOMAIN + before + body).digest()


def _entry(row: Row) -> AuditEntry:
    number, at_ns, actor, action, subject, text, digest = row
    return AuditEntry(number, at_ns, actor, action, subject, msgspec.json.decode(text), digest)


def _problem(number: int, code: str, message: str) -> Problem:
    return Problem(f"audit entry {number}", code, message, "restore the database from a backup and compare")


def _invalid(message: str, fix: str) -> InvalidError:
    return InvalidError(message, code="audit_entry_invalid", fix=fix)
