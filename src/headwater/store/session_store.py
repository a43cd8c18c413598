"""Who has signed in to the pages: the digest of a cookie's token, a role, whose it is, and until when.

The token itself is never stored, so a copy of the database signs nobody in. One-time words (a magic link's, a nonce
that a wallet signs) are kept here too, so that each works once, whatever process is asked. Knows nothing of
passwords, wallets or HTTP.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from headwater.core.errors import RefusedError
from headwater.store.database import Sql

_STEPS = (
    """
    CREATE TABLE page_sessions (
      token_digest BLOB PRIMARY KEY,
      role TEXT NOT NULL CHECK (role IN ('operator', 'contributor', 'payer')),
      subject TEXT NOT NULL,
      begun_at_ns INTEGER NOT NULL,
      seen_at_ns INTEGER NOT NULL,
      ends_at_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX page_sessions_by_subject ON page_sessions (role, subject);
    CREATE TABLE page_words (
      word_digest BLOB PRIMARY KEY,
      purpose TEXT NOT NULL,
      subject TEXT NOT NULL,
      ends_at_ns INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
)


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """Somebody who has signed in."""

    role: str  # operator, contributor or payer
    subject: str  # contributor id, key id, or the operator's name
    begun_at_ns: int
    seen_at_ns: int
    ends_at_ns: int


class SessionStore:
    """Sessions and one-time words in `database`; what has ended is deleted when something new begins."""

    def __init__(self, database: Sql) -> None:
        self._database = database
        database.migrate("page_sessions", _STEPS)

    def begin(self, token: bytes, role: str, subject: str, *, now_ns: int, lasts_ns: int) -> None:
        """Somebody signed in; `token` is what their cookie proves."""
        with self._database.transaction():
            self._database.execute("DELETE FROM page_sessions WHERE ends_at_ns <= ?", (now_ns,))
            self._database.execute(
                "INSERT INTO page_sessions VALUES (?, ?, ?, ?, ?, ?)",
                (_digest(token), role, subject, now_ns, now_ns, now_ns + lasts_ns),
            )

    def get(self, token: bytes, *, now_ns: int, idle_ns: int) -> SessionRecord | None:
        """Whose session it is; None when it has ended, or was not used for `idle_ns`."""
        rows = self._database.query(
            "SELECT role, subject, begun_at_ns, seen_at_ns, ends_at_ns FROM page_sessions WHERE token_digest = ?",
            (_digest(token),),
        )
        if not rows:
            return None
        found = SessionRecord(*rows[0])
        return found if now_ns < min(found.ends_at_ns, found.seen_at_ns + idle_ns) else None

    def seen(self, token: bytes, now_ns: int) -> None:
        """The session is in use."""
        self._database.execute(
            "UPDATE page_sessions SET seen_at_ns = ? WHERE token_digest = ?", (now_ns, _digest(token))
        )

    def end(self, token: bytes) -> None:
        """Sign out; ending it again changes nothing."""
        self._database.execute("DELETE FROM page_sessions WHERE token_digest = ?", (_digest(token),))

    def end_all(self, role: str, subject: str) -> int:
        """End every session of somebody; gives how many there were."""
        return self._database.execute("DELETE FROM page_sessions WHERE role = ? AND subject = ?", (role, subject))

    def keep_word(self, word: bytes, purpose: str, subject: str, *, now_ns: int, lasts_ns: int) -> None:
        """Keep the digest of a one-time word."""
        with self._database.transaction():
            self._database.execute("DELETE FROM page_words WHERE ends_at_ns <= ?", (now_ns,))
            self._database.execute(
                "INSERT INTO page_words VALUES (?, ?, ?, ?)", (_digest(word), purpose, subject, now_ns + lasts_ns)
            )

    def take_word(self, word: bytes, purpose: str, *, now_ns: int) -> str:
        """Use a one-time word up; gives whom it was for.

        Raises:
            RefusedError: ``word_not_in_force``: unknown, used or too old.
        """
        with self._database.transaction():
            rows = self._database.query(
                "SELECT subject, ends_at_ns FROM page_words WHERE word_digest = ? AND purpose = ?",
                (_digest(word), purpose),
            )
            self._database.execute(
                "DELETE FROM page_words WHERE word_digest = ? AND purpose = ?", (_digest(word), purpose)
            )
        if not rows or rows[0][1] <= now_ns:
            raise RefusedError(
                "this link or signature was used before, or is too old",
                code="word_not_in_force",
                fix="ask for a new one",
            )
        return str(rows[0][0])


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(b"headwater page session\x00" + token).digest()
