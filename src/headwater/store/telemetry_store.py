"""Content Telemetry that others reported: each event kept once, by whom it was reported, for a bounded time.

An event with an id is the same event however often it is sent; one without is known by its bytes and its session.
Knows nothing of what an event means.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.core.errors import InvalidError
from headwater.receipts.content_telemetry import Document
from headwater.store.database import Sql

PAGE_MAX: Final = 1_000

_STEPS = (
    """
    CREATE TABLE telemetry_events (
      number INTEGER PRIMARY KEY,
      reporter TEXT NOT NULL,
      event_key TEXT NOT NULL,
      received_at_ns INTEGER NOT NULL,
      session_id TEXT NOT NULL,
      type TEXT NOT NULL,
      content TEXT NOT NULL,
      event TEXT NOT NULL,
      UNIQUE (reporter, event_key)
    ) STRICT;
    CREATE INDEX telemetry_events_by_content ON telemetry_events (content, number);
    CREATE INDEX telemetry_events_by_age ON telemetry_events (received_at_ns);
    """,
)


@dataclass(frozen=True, slots=True)
class ReportedEvent:
    """An event as it was reported."""

    number: int
    reporter: str
    received_at_ns: int
    session_id: str  # empty where the reporter knows of none
    event: dict[str, Any]


class TelemetryStore:
    """Reported events in `db`; its table is made on first use."""

    def __init__(self, db: Sql) -> None:
        self.db = db
        db.migrate("telemetry", _STEPS)

    def take(self, document: Document, reporter: str, now_ns: int) -> tuple[int, int]:
        """Keep a document's events; (how many are new, how many were known)."""
        session = document.session_id or document.ctx_token or ""
        rows = []
        for event in document.events:
            raw = msgspec.json.encode(event)
            own = raw if msgspec.UNSET is event.id else str(event.id).encode()
            key = hashlib.sha256(session.encode() + b"\x00" + own).hexdigest()
            named = next((n for n in (event.content_id, event.content_url) if isinstance(n, str)), "")
            rows.append((reporter, key, now_ns, session, event.type, named[:500], raw.decode()))
        new = 0
        with self.db.transaction():
            for row in rows:
                new += self.db.execute(
                    "INSERT INTO telemetry_events"
                    " (reporter, event_key, received_at_ns, session_id, type, content, event)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (reporter, event_key) DO NOTHING",
                    row,
                )
        return new, len(rows) - new

    def events(
        self, *, after: int = 0, limit: int = 100, reporter: str | None = None, content: str | None = None
    ) -> tuple[ReportedEvent, ...]:
        """Events in the order they came, those with a number above `after`.

        Args:
            limit: 1 to 1,000.
            reporter: only what this one reported.
            content: only events about this content id or URL.
        """
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidError(f"limit {limit}", code="page_invalid", fix=f"use 1 to {PAGE_MAX}")
        where, params = ["number > ?"], [after]
        for column, value in (("reporter", reporter), ("content", content)):
            if value is not None:
                where.append(f"{column} = ?")
                params.append(value)  # type: ignore[arg-type]
        rows = self.db.query(
            "SELECT number, reporter, received_at_ns, session_id, event FROM telemetry_events"
            f" WHERE {' AND '.join(where)} ORDER BY number LIMIT ?",
            (*params, limit),
        )
        return tuple(ReportedEvent(n, who, at, session, msgspec.json.decode(raw)) for n, who, at, session, raw in rows)

    def counts(self, content: str) -> dict[str, int]:
        """How many events of each type were reported of a content."""
        rows = self.db.query(
            "SELECT type, count(*) FROM telemetry_events WHERE content = ? GROUP BY type ORDER BY type", (content,)
        )
        return {row[0]: row[1] for row in rows}

    def forget(self, before_ns: int) -> int:
        """Drop what came before an instant; how many."""
        return self.db.execute("DELETE FROM telemetry_events WHERE received_at_ns < ?", (before_ns,))
