"""Consent on record: who lets their calls be registered, on what terms and since when; and what was withdrawn.

Both tables only grow. A consent is in force until a later entry of the same key says otherwise. A
withdrawn contribution keeps its record and its past receipts; it may no longer be trained on, and
whoever serves sources asks here first. Knows nothing of what a contribution says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headwater.core.errors import InvalidError
from headwater.core.ids import ContributionId
from headwater.registry.license import parse_expression
from headwater.store.database import Database

REASON_CHARS_MAX = 500
_IN_MAX = 500

_STEPS = (
    """
    CREATE TABLE signal_consents (
      number INTEGER PRIMARY KEY,
      key_id TEXT NOT NULL,
      given INTEGER NOT NULL CHECK (given IN (0, 1)),
      license_expression TEXT NOT NULL,
      at_ns INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX signal_consents_by_key ON signal_consents (key_id, number);
    CREATE TABLE withdrawals (
      contribution_id TEXT PRIMARY KEY,
      at_ns INTEGER NOT NULL,
      by_whom TEXT NOT NULL,
      reason TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    "".join(
        f"""
        CREATE TRIGGER {table}_stay_{verb} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, 'consent is only ever added to'); END;
        """
        for table in ("signal_consents", "withdrawals")
        for verb in ("UPDATE", "DELETE")
    ),
)


@dataclass(frozen=True, slots=True)
class Consent:
    """A key's standing word that its calls may be registered as contributions."""

    key_id: str
    license_expression: str
    at_ns: int  # given at


class ConsentStore:
    """Consents and withdrawals in `database`; its tables are made on first use."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.migrate("consent", _STEPS)

    def in_force(self, key_id: str) -> Consent | None:
        """The key's consent, if its last word was yes; nobody's calls are registered by default."""
        rows = self._database.query(
            "SELECT given, license_expression, at_ns FROM signal_consents WHERE key_id = ?"
            " ORDER BY number DESC LIMIT 1",
            (key_id,),
        )
        return Consent(key_id, rows[0][1], rows[0][2]) if rows and rows[0][0] else None

    def give(self, key_id: str, license_expression: str, now_ns: int) -> Consent:
        """Record that a key's calls may be registered under a licence.

        Raises:
            InvalidError: not a licence expression.
        """
        self._say(key_id, True, parse_expression(license_expression), now_ns)
        return Consent(key_id, parse_expression(license_expression), now_ns)

    def end(self, key_id: str, now_ns: int) -> None:
        """Record that from now on a key's calls are not registered; what was stays until it is withdrawn."""
        self._say(key_id, False, "", now_ns)

    def withdraw(self, contribution_id: ContributionId, by_whom: str, reason: str, now_ns: int) -> bool:
        """Record that a contribution was withdrawn; whether it was not before.

        Raises:
            InvalidError: a reason that is too long or cannot be printed.
        """
        if len(reason) > REASON_CHARS_MAX or not reason.isprintable():
            raise InvalidError(
                f"a reason of {len(reason)} characters",
                code="reason_invalid",
                fix=f"use at most {REASON_CHARS_MAX} printable characters",
            )
        return bool(
            self._database.execute(
                "INSERT INTO withdrawals VALUES (?, ?, ?, ?) ON CONFLICT (contribution_id) DO NOTHING",
                (contribution_id, now_ns, by_whom, reason),
            )
        )

    def withdrawn(self, contribution_ids: Sequence[ContributionId]) -> dict[ContributionId, str]:
        """Those of some contributions that were withdrawn, with the reason."""
        found: dict[ContributionId, str] = {}
        for at in range(0, len(contribution_ids), _IN_MAX):
            part = contribution_ids[at : at + _IN_MAX]
            marks = ", ".join("?" * len(part))
            rows = self._database.query(
                f"SELECT contribution_id, reason FROM withdrawals WHERE contribution_id IN ({marks})", tuple(part)
            )
            found |= {ContributionId(row[0]): row[1] or "no reason given" for row in rows}
        return found

    def _say(self, key_id: str, given: bool, license_expression: str, now_ns: int) -> None:
        self._database.execute(
            "INSERT INTO signal_consents (key_id, given, license_expression, at_ns) VALUES (?, ?, ?, ?)",
            (key_id, int(given), license_expression, now_ns),
        )
