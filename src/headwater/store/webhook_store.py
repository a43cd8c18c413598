"""Webhook endpoints of keys, and every message owed to them until it is delivered or given up.

A message and the cursor behind it are written in one commit, so each receipt makes each endpoint's message once,
whatever dies in between; delivery may repeat, and the message id says so. An endpoint belongs to one key and hears of
that key's receipts only.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.instants import SECOND_NS
from headwater.store.database import Row, Sql

ENDPOINTS_MAX: Final = 10
"""Endpoints of one key."""
EVENTS: Final = ("receipt.final", "receipt.superseded")
RETRY_S: Final = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Pauses after each failure, as the Standard Webhooks guide advises; after the last the message is given up."""
GIVEN_UP_MAX: Final = 20
"""Messages given up in a row after which an endpoint is switched off."""
PAGE_MAX: Final = 500
SECRET_PREFIX: Final = "whsec_"

_STEPS = (
    """
    CREATE TABLE webhook_endpoints (
      endpoint_id TEXT PRIMARY KEY,
      key_id TEXT NOT NULL,
      url TEXT NOT NULL,
      events TEXT NOT NULL,
      secret BLOB NOT NULL,
      created_at_ns INTEGER NOT NULL,
      state TEXT NOT NULL DEFAULT 'on' CHECK (state IN ('on', 'off', 'gone')),
      given_up INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX webhook_endpoints_by_key ON webhook_endpoints (key_id);
    CREATE TABLE webhook_messages (
      message_id TEXT PRIMARY KEY,
      endpoint_id TEXT NOT NULL REFERENCES webhook_endpoints (endpoint_id),
      event TEXT NOT NULL,
      body TEXT NOT NULL,
      created_at_ns INTEGER NOT NULL,
      state TEXT NOT NULL DEFAULT 'owed' CHECK (state IN ('owed', 'delivered', 'given_up')),
      tries INTEGER NOT NULL DEFAULT 0,
      due_at_ns INTEGER NOT NULL,
      answer TEXT NOT NULL DEFAULT ''
    ) STRICT;
    CREATE INDEX webhook_messages_due ON webhook_messages (due_at_ns) WHERE state = 'owed';
    CREATE INDEX webhook_messages_of ON webhook_messages (endpoint_id, created_at_ns);
    CREATE TABLE webhook_cursor (only INTEGER PRIMARY KEY CHECK (only = 1), next_index INTEGER NOT NULL);
    """,
)
_ENDPOINT: Final = "endpoint_id, key_id, url, events, secret, created_at_ns, state"
_MESSAGE: Final = "message_id, endpoint_id, event, body, created_at_ns, state, tries, due_at_ns, answer"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a key wants to hear of its receipts."""

    endpoint_id: str
    key_id: str
    url: str
    events: tuple[str, ...]
    secret: bytes  # 32; never shown again
    created_at_ns: int
    state: str  # on, off (switched off after failures) or gone

    @property
    def secret_text(self) -> str:
        """The secret as receivers' libraries want it."""
        return SECRET_PREFIX + base64.b64encode(self.secret).decode()


@dataclass(frozen=True, slots=True)
class Message:
    """One message to one endpoint."""

    message_id: str
    endpoint_id: str
    event: str
    body: str
    created_at_ns: int
    state: str  # owed, delivered or given_up
    tries: int
    due_at_ns: int
    answer: str  # the last status or error code


class WebhookStore:
    """Endpoints and messages in `db`; its tables are made on first use."""

    def __init__(self, db: Sql) -> None:
        self.db = db
        db.migrate("webhooks", _STEPS)

    def add(
        self, key_id: str, url: str, events: Sequence[str], random_bytes: bytes, now_ns: int, *, start: int
    ) -> Endpoint:
        """Add an endpoint; it hears of receipts from now on.

        Args:
            random_bytes: 48 bytes nobody can guess: 32 of secret, 16 of id.
            start: size of the receipt log now; where listening begins if nobody listened before.

        Raises:
            InvalidError: ``webhook_invalid``: no event, or one that does not exist.
            RefusedError: ``webhooks_too_many``.
        """
        chosen = tuple(dict.fromkeys(events)) or EVENTS
        if any(event not in EVENTS for event in chosen):
            raise InvalidError(f"events {list(chosen)[:5]}", code="webhook_invalid", fix=f"use {', '.join(EVENTS)}")
        endpoint_id = "whe_" + random_bytes[32:48].hex()
        with self.db.transaction():
            if len(self.of(key_id)) >= ENDPOINTS_MAX:
                raise RefusedError(
                    f"{key_id} has {ENDPOINTS_MAX} endpoints", code="webhooks_too_many", fix="delete one first"
                )
            if not self.db.query("SELECT 1 FROM webhook_endpoints WHERE state = 'on' LIMIT 1"):
                self.db.execute(
                    'INSERT INTO webhook_cursor ("only", next_index) VALUES (1, ?)'
                    ' ON CONFLICT ("only") DO UPDATE SET next_index = excluded.next_index',
                    (start,),
                )
            self.db.execute(
                f"INSERT INTO webhook_endpoints ({_ENDPOINT}) VALUES (?, ?, ?, ?, ?, ?, 'on')",
                (endpoint_id, key_id, url, " ".join(chosen), random_bytes[:32], now_ns),
            )
        return self.get(endpoint_id, key_id)

    def get(self, endpoint_id: str, key_id: str) -> Endpoint:
        """A key's endpoint.

        Raises:
            MissingError: ``webhook_unknown``: there is none, or it is another key's.
        """
        rows = self.db.query(
            f"SELECT {_ENDPOINT} FROM webhook_endpoints WHERE endpoint_id = ? AND key_id = ? AND state <> 'gone'",
            (endpoint_id, key_id),
        )
        if not rows:
            raise MissingError(f"no webhook {endpoint_id[:80]!r}", code="webhook_unknown", fix="see GET /v1/webhooks")
        return _endpoint(rows[0])

    def of(self, key_id: str) -> tuple[Endpoint, ...]:
        """The endpoints of a key, oldest first."""
        rows = self.db.query(
            f"SELECT {_ENDPOINT} FROM webhook_endpoints WHERE key_id = ? AND state <> 'gone'"
            " ORDER BY created_at_ns, endpoint_id",
            (key_id,),
        )
        return tuple(map(_endpoint, rows))

    def switch(self, endpoint_id: str, key_id: str, state: str) -> None:
        """Switch a key's endpoint on or off, or delete it (``gone``): then what was owed to it is given up.

        Raises:
            MissingError: ``webhook_unknown``.
        """
        with self.db.transaction():
            self.get(endpoint_id, key_id)
            self.db.execute(
                "UPDATE webhook_endpoints SET state = ?, given_up = 0 WHERE endpoint_id = ?", (state, endpoint_id)
            )
            if state == "gone":
                self.db.execute(
                    "UPDATE webhook_messages SET state = 'given_up' WHERE endpoint_id = ? AND state = 'owed'",
                    (endpoint_id,),
                )

    # What is owed

    def cursor(self) -> int | None:
        """Index of the next receipt to tell of; None while nobody listens."""
        if not self.db.query("SELECT 1 FROM webhook_endpoints WHERE state = 'on' LIMIT 1"):
            return None
        rows = self.db.query("SELECT next_index FROM webhook_cursor")
        return int(rows[0][0]) if rows else 0

    def owe(self, index: int, key_id: str, event: str, body: str, now_ns: int) -> int:
        """Write down the messages of the receipt at `index` and move the cursor behind it; how many there are."""
        made = 0
        with self.db.transaction():
            if self.cursor() != index:
                return 0  # another process was here
            for endpoint in self.of(key_id):
                if endpoint.state == "on" and event in endpoint.events:
                    name = hashlib.sha256(f"{endpoint.endpoint_id}/{index}/{event}".encode()).hexdigest()[:32]
                    made += self.db.execute(
                        f"INSERT INTO webhook_messages ({_MESSAGE}) VALUES (?, ?, ?, ?, ?, 'owed', 0, ?, '')",
                        ("msg_" + name, endpoint.endpoint_id, event, body, now_ns, now_ns),
                    )
            self.db.execute("UPDATE webhook_cursor SET next_index = ?", (index + 1,))
        return made

    def due(self, now_ns: int, limit: int = 100) -> tuple[tuple[Message, Endpoint], ...]:
        """Messages to deliver now, those that wait longest first."""
        columns = ", ".join(f"m.{name}" for name in _MESSAGE.split(", "))
        others = ", ".join(f"e.{name}" for name in _ENDPOINT.split(", "))
        rows = self.db.query(
            f"SELECT {columns}, {others} FROM webhook_messages m JOIN webhook_endpoints e USING (endpoint_id)"
            " WHERE m.state = 'owed' AND m.due_at_ns <= ? AND e.state = 'on' ORDER BY m.due_at_ns LIMIT ?",
            (now_ns, limit),
        )
        return tuple((Message(*row[:9]), _endpoint(row[9:])) for row in rows)

    def delivered(self, message_id: str, answer: str) -> None:
        """It arrived."""
        with self.db.transaction():
            self.db.execute(
                "UPDATE webhook_messages SET state = 'delivered', tries = tries + 1, answer = ? WHERE message_id = ?",
                (answer, message_id),
            )
            self.db.execute(
                "UPDATE webhook_endpoints SET given_up = 0 WHERE endpoint_id ="
                " (SELECT endpoint_id FROM webhook_messages WHERE message_id = ?)",
                (message_id,),
            )

    def failed(self, message: Message, answer: str, now_ns: int, *, gone: bool = False) -> None:
        """It did not arrive: it is owed again later, or given up after the last try.

        Args:
            gone: the receiver said that it wants no more; the endpoint is switched off.
        """
        last = gone or message.tries >= len(RETRY_S)
        due_ns = message.due_at_ns if last else now_ns + RETRY_S[message.tries] * SECOND_NS
        with self.db.transaction():
            self.db.execute(
                "UPDATE webhook_messages SET state = ?, tries = tries + 1, due_at_ns = ?, answer = ?"
                " WHERE message_id = ?",
                ("given_up" if last else "owed", due_ns, answer, message.message_id),
            )
            if last:
                self.db.execute(
                    "UPDATE webhook_endpoints SET given_up = given_up + 1,"
                    " state = CASE WHEN given_up + 1 >= ? THEN 'off' ELSE state END WHERE endpoint_id = ?",
                    (0 if gone else GIVEN_UP_MAX, message.endpoint_id),
                )

    def messages(self, endpoint_id: str, *, limit: int = 100) -> tuple[Message, ...]:
        """The newest messages of an endpoint."""
        if not 1 <= limit <= PAGE_MAX:
            raise InvalidError(f"limit {limit}", code="page_invalid", fix=f"use 1 to {PAGE_MAX}")
        rows = self.db.query(
            f"SELECT {_MESSAGE} FROM webhook_messages WHERE endpoint_id = ?"
            " ORDER BY created_at_ns DESC, message_id LIMIT ?",
            (endpoint_id, limit),
        )
        return tuple(Message(*row) for row in rows)

    def replay(self, endpoint_id: str, message_id: str, now_ns: int) -> Message:
        """Owe a message again, with the same id.

        Raises:
            MissingError: ``webhook_message_unknown``.
        """
        with self.db.transaction():
            self.db.execute(
                "UPDATE webhook_messages SET state = 'owed', tries = 0, due_at_ns = ?"
                " WHERE message_id = ? AND endpoint_id = ?",
                (now_ns, message_id, endpoint_id),
            )
            rows = self.db.query(
                f"SELECT {_MESSAGE} FROM webhook_messages WHERE message_id = ? AND endpoint_id = ?",
                (message_id, endpoint_id),
            )
        if not rows:
            raise MissingError(
                f"no message {message_id[:80]!r}", code="webhook_message_unknown", fix="see the endpoint's messages"
            )
        return Message(*rows[0])


def _endpoint(row: Row) -> Endpoint:
    endpoint_id, key_id, url, events, secret, created_at_ns, state = row
    return Endpoint(endpoint_id, key_id, url, tuple(events.split(" ")), secret, created_at_ns, state)
