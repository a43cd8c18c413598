"""API keys: a secret shown once, its digest kept, its credit in the ledger under `payer:<key id>`.

Invariants: the secret is never stored, logged or put into an error; it holds 32 random bytes, so a plain
SHA-256 of it cannot be searched; digests are compared in constant time; a revoked key stays on record and
never works again. A key with a budget never commits more than that to calls, however much credit it has.

Knows nothing of balances: deposits are the ledger's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from typing import Literal

from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.ids import AccountId
from headwater.core.limits import KEY_LABEL_CHARS_MAX, TRANSFER_UNITS_MAX
from headwater.store.database import Database, Row

Mode = Literal["test", "live"]

_STEPS = (
    f"""
    CREATE TABLE api_keys (
      key_id TEXT PRIMARY KEY,
      secret_digest BLOB NOT NULL UNIQUE,
      label TEXT NOT NULL,
      mode TEXT NOT NULL CHECK (mode IN ('test', 'live')),
      created_at_ns INTEGER NOT NULL,
      revoked_at_ns INTEGER,
      budget_units INTEGER CHECK (budget_units BETWEEN 0 AND {TRANSFER_UNITS_MAX}),
      committed_units INTEGER NOT NULL DEFAULT 0 CHECK (committed_units BETWEEN 0 AND {TRANSFER_UNITS_MAX})
    )
    """,
)
_COLUMNS = "key_id, label, mode, created_at_ns, revoked_at_ns, budget_units, committed_units"
_SECRET = re.compile(r"hw_(test|live)_[A-Za-z0-9_-]{43}")
_RANDOM_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of an API key."""

    key_id: str  # key_ and 32 hex digits; safe to show and to log
    label: str
    mode: Mode
    created_at_ns: int
    revoked_at_ns: int | None
    budget_units: int | None  # most that calls may commit over the life of the key; None for no such limit
    committed_units: int  # prices of answered calls and ceilings of those at work

    @property
    def account(self) -> AccountId:
        """The ledger account that holds its credit."""
        return AccountId(f"payer:{self.key_id}")

    @property
    def revoked(self) -> bool:
        """Whether it was withdrawn."""
        return self.revoked_at_ns is not None


class KeyStore:
    """The API keys in `db`."""

    def __init__(self, db: Database) -> None:
        self.db = db
        db.migrate("api_keys", _STEPS)

    def create(
        self, label: str, random_bytes: bytes, now_ns: int, *, mode: Mode = "test", budget_units: int | None = None
    ) -> tuple[str, KeyRecord]:
        """Make a key. The secret is given here and nowhere else.

        Args:
            label: for people, 1 to 100 printable characters.
            random_bytes: 32 bytes nobody can guess, used once.
            budget_units: most that its calls may cost in all, nano units.

        Raises:
            InvalidError: a bad label, budget or too little randomness.
        """
        if not 0 < len(label) <= KEY_LABEL_CHARS_MAX or not label.isprintable():
            raise InvalidError(
                f"label {label[:80]!r}",
                code="label_invalid",
                fix=f"use 1 to {KEY_LABEL_CHARS_MAX} printable characters",
            )
        if len(random_bytes) != _RANDOM_BYTES:
            raise InvalidError(
                f"{len(random_bytes)} random bytes", code="randomness_invalid", fix=f"give {_RANDOM_BYTES} random bytes"
            )
        if budget_units is not None and not 0 <= budget_units <= TRANSFER_UNITS_MAX:
            raise InvalidError(
                f"budget of {budget_units} nano",
                code="amount_out_of_range",
                fix="use 0 or more nano units, or no budget",
            )
        secret = f"hw_{mode}_{urlsafe_b64encode(random_bytes).decode().rstrip('=')}"
        key_id = "key_" + hashlib.sha256(b"headwater key id\x00" + secret.encode()).hexdigest()[:32]
        self.db.execute(
            "INSERT INTO api_keys (key_id, secret_digest, label, mode, created_at_ns, budget_units)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (key_id, _digest(secret), label, mode, now_ns, budget_units),
        )
        return secret, self.get(key_id)

    def authenticate(self, secret: str) -> KeyRecord:
        """The key whose secret this is.

        Raises:
            RefusedError: ``invalid_api_key`` for anything but the secret of a key in force.
        """
        digest = _digest(secret) if _SECRET.fullmatch(secret) else b""
        # The index narrows it to one row by a digest that tells nothing of the secret; the compare is the proof.
        for kept, *columns in self.db.query(
            f"SELECT secret_digest, {_COLUMNS} FROM api_keys WHERE secret_digest = ?", (digest,)
        ):
            key = KeyRecord(*columns)
            if hmac.compare_digest(kept, digest) and not key.revoked:
                return key
        raise RefusedError(
            "this API key is not in force",
            code="invalid_api_key",
            fix="send a key from `headwater key create` as Authorization: Bearer hw_…",
        )

    def get(self, key_id: str) -> KeyRecord:
        """The record of a key.

        Raises:
            MissingError: no such key.
        """
        rows = self.db.query(f"SELECT {_COLUMNS} FROM api_keys WHERE key_id = ?", (key_id,))
        if not rows:
            raise MissingError(f"no key {key_id[:80]!r}", code="key_unknown", fix="see `headwater key list`")
        return _record(rows[0])

    def list(self) -> tuple[KeyRecord, ...]:
        """Every key, oldest first, revoked ones too."""
        return tuple(
            _record(row) for row in self.db.query(f"SELECT {_COLUMNS} FROM api_keys ORDER BY created_at_ns, key_id")
        )

    def revoke(self, key_id: str, now_ns: int) -> KeyRecord:
        """Withdraw a key for good; doing it again changes nothing. Its credit stays where it is."""
        with self.db.transaction():
            self.db.execute(
                "UPDATE api_keys SET revoked_at_ns = ? WHERE key_id = ? AND revoked_at_ns IS NULL", (now_ns, key_id)
            )
            return self.get(key_id)

    def commit_units(self, key_id: str, units: int) -> None:
        """Count `units` (negative to give back) towards what a key's calls have committed.

        A payer that is no key, such as one who pays per request, has no budget and is not counted.

        Raises:
            RefusedError: ``budget_exceeded``.
        """
        with self.db.transaction():
            for budget, committed in self.db.query(
                "SELECT budget_units, committed_units FROM api_keys WHERE key_id = ?", (key_id,)
            ):
                if units > 0 and budget is not None and committed + units > budget:
                    raise RefusedError(
                        f"{key_id} has committed {committed} of its budget of {budget} nano; this needs {units}",
                        code="budget_exceeded",
                        fix="use a key with a larger budget, or ask for less",
                    )
                self.db.execute("UPDATE api_keys SET committed_units = ? WHERE key_id = ?", (committed + units, key_id))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(b"headwater api key\x00" + secret.encode()).digest()


def _record(row: Row) -> KeyRecord:
    return KeyRecord(*row)
