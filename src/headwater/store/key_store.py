"""API keys: a secret shown once, its digest kept, its credit in the ledger under `payer:<key id>`.

Invariants: the secret is never stored, logged or put into an error; it holds 32 random bytes, so a plain
SHA-256 of it cannot be searched; digests are compared in constant time; a revoked key stays on record and
never works again, an expired one not while it is expired. A key with a budget, over its life, a UTC day or a month,
never commits more than that to calls, however much credit it has; what is committed is kept by day, and the days sum
to the whole. A rotated key has a new secret, and its old ones until their grace has passed.

Knows nothing of balances: deposits are the ledger's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from headwater.core.errors import InvalidError, MissingError, RefusedError
from headwater.core.ids import AccountId
from headwater.core.instants import SECOND_NS
from headwater.core.limits import KEY_LABEL_CHARS_MAX, TRANSFER_UNITS_MAX
from headwater.core.money import format_units
from headwater.store.database import Row, Sql
from headwater.store.key_limits import DAY_NS, NO_LIMITS, KeyLimits, day_of, month_begin

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
    """
    ALTER TABLE api_keys ADD COLUMN limits TEXT NOT NULL DEFAULT '{}';
    CREATE TABLE former_secrets (
      secret_digest BLOB PRIMARY KEY,
      key_id TEXT NOT NULL,
      ends_at_ns INTEGER NOT NULL
    );
    CREATE TABLE key_days (
      key_id TEXT NOT NULL,
      day INTEGER NOT NULL,
      committed_units INTEGER NOT NULL,
      PRIMARY KEY (key_id, day)
    );
    INSERT INTO key_days SELECT key_id, 0, committed_units FROM api_keys;
    """,
)
_COLUMNS = "key_id, label, mode, created_at_ns, revoked_at_ns, budget_units, committed_units, limits"
GRACE_MAX_NS = 90 * DAY_NS
"""Longest time that a rotated key's old secret may go on working."""
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
    limits: KeyLimits

    @property
    def account(self) -> AccountId:
        """The ledger account that holds its credit."""
        return AccountId(f"payer:{self.key_id}")

    @property
    def revoked(self) -> bool:
        """Whether it was withdrawn."""
        return self.revoked_at_ns is not None


@dataclass(frozen=True, slots=True)
class Budget:
    """How a key stands."""

    left: tuple[int, str] | None  # nano units that it may still commit, and the budget that says so
    dated: bool  # whether its limits begin anew with the day or the month


class KeyStore:
    """The API keys in `db`; `now_ns` says whether one has expired."""

    def __init__(self, db: Sql, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self.db, self._now_ns = db, now_ns
        db.migrate("api_keys", _STEPS)

    def create(
        self,
        label: str,
        random_bytes: bytes,
        now_ns: int,
        *,
        mode: Mode = "test",
        budget_units: int | None = None,
        limits: KeyLimits | None = None,
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
        _check_budget(budget_units)
        secret = _secret(mode, random_bytes)
        key_id = "key_" + hashlib.sha256(b"headwater key id\x00" + secret.encode()).hexdigest()[:32]
        self.db.execute(
            "INSERT INTO api_keys (key_id, secret_digest, label, mode, created_at_ns, budget_units, limits)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (key_id, _digest(secret), label, mode, now_ns, budget_units, (limits or NO_LIMITS).to_json()),
        )
        return secret, self.get(key_id)

    def payer(self, address: str, now_ns: int) -> KeyRecord:
        """The record of a payer who is known by an address and has no secret; made when it is new."""
        key_id = "key_" + hashlib.sha256(b"headwater payer address\x00" + address.encode()).hexdigest()[:32]
        self.db.execute(
            "INSERT INTO api_keys (key_id, secret_digest, label, mode, created_at_ns) VALUES (?, ?, ?, 'live', ?)"
            " ON CONFLICT (key_id) DO NOTHING",
            # Of another domain than a secret's digest, so that no secret has it.
            (key_id, hashlib.sha256(b"headwater no secret\x00" + key_id.encode()).digest(), address, now_ns),
        )
        return self.get(key_id)

    def limit(self, key_id: str, limits: KeyLimits, budget_units: int | None) -> KeyRecord:
        """Give a key other limits. They are in force for its next call, or a second later in another process.

        Raises:
            MissingError: no such key.
            InvalidError: a budget out of range.
        """
        _check_budget(budget_units)
        with self.db.transaction():
            self.get(key_id)
            self.db.execute(
                "UPDATE api_keys SET limits = ?, budget_units = ? WHERE key_id = ?",
                (limits.to_json(), budget_units, key_id),
            )
            return self.get(key_id)

    def rotate(self, key_id: str, random_bytes: bytes, now_ns: int, *, grace_ns: int) -> tuple[str, KeyRecord]:
        """Give a key a new secret; the one it had works on for `grace_ns`, earlier ones no longer than they would have.

        Raises:
            MissingError: no such key.
            RefusedError: ``key_revoked``.
            InvalidError: too little randomness, or a grace out of range.
        """
        if not 0 <= grace_ns <= GRACE_MAX_NS:
            raise InvalidError(
                f"a grace of {_span(grace_ns)}",
                code="grace_invalid",
                fix=f"use 0 to {GRACE_MAX_NS // DAY_NS} days ({GRACE_MAX_NS // SECOND_NS} seconds)",
            )
        with self.db.transaction():
            key = self.get(key_id)
            if key.revoked:
                raise RefusedError(f"{key_id} is revoked", code="key_revoked", fix="make a new key")
            secret = _secret(key.mode, random_bytes)
            self.db.execute("DELETE FROM former_secrets WHERE ends_at_ns <= ?", (now_ns,))
            if grace_ns:
                self.db.execute(
                    "INSERT INTO former_secrets SELECT secret_digest, key_id, ? FROM api_keys WHERE key_id = ?",
                    (now_ns + grace_ns, key_id),
                )
            self.db.execute("UPDATE api_keys SET secret_digest = ? WHERE key_id = ?", (_digest(secret), key_id))
            return secret, self.get(key_id)

    def authenticate(self, secret: str) -> KeyRecord:
        """The key whose secret this is.

        Raises:
            RefusedError: ``invalid_api_key`` for anything but the secret of a key in force, ``api_key_expired``.
        """
        digest = _digest(secret) if _SECRET.fullmatch(secret) else b""
        now_ns = self._now_ns()
        # The index narrows it to one row by a digest that tells nothing of the secret; the compare is the proof.
        for kept, *columns in self.db.query(
            f"SELECT secret_digest, {_COLUMNS} FROM api_keys WHERE secret_digest = ?1 UNION ALL"
            f" SELECT former_secrets.secret_digest, {', '.join('api_keys.' + name for name in _COLUMNS.split(', '))}"
            " FROM former_secrets JOIN api_keys ON api_keys.key_id = former_secrets.key_id"
            " WHERE former_secrets.secret_digest = ?1 AND ends_at_ns > ?2",
            (digest, now_ns),
        ):
            key = _record(tuple(columns))
            if hmac.compare_digest(kept, digest) and not key.revoked:
                return _unexpired(key, now_ns)
        raise _not_in_force()

    def in_force(self, key_id: str) -> KeyRecord:
        """The record of a key that may be used now, for a caller who has shown its secret before.

        Raises:
            RefusedError: ``invalid_api_key`` for one that is unknown or revoked, ``api_key_expired``.
        """
        rows = self.db.query(f"SELECT {_COLUMNS} FROM api_keys WHERE key_id = ?", (key_id,))
        if not rows or (key := _record(rows[0])).revoked:
            raise _not_in_force()
        return _unexpired(key, self._now_ns())

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

    def commit_units(self, key_id: str, units: int, *, at_ns: int, promised: bool = False) -> None:
        """Count `units` (negative to give back) towards what a key's calls of the day of `at_ns` have committed.

        A payer that is no key, such as one who pays per request, has no budget and is not counted.

        Args:
            at_ns: when the call began; what is given back is given back to the day it was taken from.
            promised: it was admitted before and may not be refused any more, whatever the budget is now.

        Raises:
            RefusedError: ``budget_exceeded``.
        """
        with self.db.transaction():
            rows = self.db.query("SELECT committed_units FROM api_keys WHERE key_id = ?", (key_id,))
            if not rows:
                return
            if units > 0 and not promised:
                left = self.budget_left(key_id, at_ns)
                if left is not None and units > left[0]:
                    raise over_budget(key_id, left, units)
            self.db.execute("UPDATE api_keys SET committed_units = ? WHERE key_id = ?", (rows[0][0] + units, key_id))
            self.db.execute(
                "INSERT INTO key_days VALUES (?, ?, ?) ON CONFLICT (key_id, day)"
                " DO UPDATE SET committed_units = key_days.committed_units + excluded.committed_units",
                (key_id, day_of(at_ns), units),
            )

    def commit_promised(self, commitments: Sequence[tuple[str, int, int]]) -> None:
        """As `commit_units` for many at once, each (key id, units, instant), all of them admitted before.

        To be called inside a transaction.
        """
        ids = sorted({key_id for key_id, _, _ in commitments})
        known = {key_id for (key_id,) in self.db.query_in("SELECT key_id FROM api_keys WHERE key_id IN ({})", ids)}
        whole, days = Counter[str](), Counter[tuple[str, int]]()
        for key_id, units, at_ns in commitments:
            if key_id in known:
                whole[key_id] += units
                days[key_id, day_of(at_ns)] += units
        with self.db.together():
            self.db.executemany(
                "UPDATE api_keys SET committed_units = committed_units + ? WHERE key_id = ?",
                [(units, key_id) for key_id, units in sorted(whole.items())],
            )
            self.db.executemany(
                "INSERT INTO key_days (key_id, day, committed_units) VALUES (?, ?, ?) ON CONFLICT (key_id, day)"
                " DO UPDATE SET committed_units = key_days.committed_units + excluded.committed_units",
                [(key_id, day, units) for (key_id, day), units in sorted(days.items())],
            )

    def budget_left(self, key_id: str, at_ns: int) -> tuple[int, str] | None:
        """What a key may still commit on the day of `at_ns`, nano units, and the budget that says so; None without one.

        It is below 0 when a budget was lowered under what had been committed.
        """
        found = self.budgets([key_id], at_ns).get(key_id)
        return None if found is None else found.left

    def budgets(self, key_ids: Sequence[str], at_ns: int) -> Mapping[str, Budget]:
        """How keys stand on the day of `at_ns`; payers that are no keys have none."""
        return {
            key_id: Budget(self._left(key_id, whole, committed, limits, at_ns), limits.dated)
            for key_id, whole, committed, limits in (
                (key_id, whole, committed, KeyLimits.from_json(text))
                for key_id, whole, committed, text in self.db.query_in(
                    "SELECT key_id, budget_units, committed_units, limits FROM api_keys WHERE key_id IN ({})", key_ids
                )
            )
        }

    def _left(
        self, key_id: str, whole: int | None, committed: int, limits: KeyLimits, at_ns: int
    ) -> tuple[int, str] | None:
        left: list[tuple[int, str]] = [] if whole is None else [(whole - committed, "budget")]
        if limits.budget_day_units is not None:
            left.append((limits.budget_day_units - self.committed(key_id, day_of(at_ns), at_ns), "budget of the day"))
        if limits.budget_month_units is not None:
            spent = self.committed(key_id, month_begin(at_ns), at_ns)
            left.append((limits.budget_month_units - spent, "budget of the month"))
        return min(left) if left else None

    def limits(self, key_id: str) -> KeyLimits:
        """The limits of a payer; one that is no key has none."""
        rows = self.db.query("SELECT limits FROM api_keys WHERE key_id = ?", (key_id,))
        return KeyLimits.from_json(rows[0][0]) if rows else NO_LIMITS

    def committed(self, key_id: str, first_day: int, at_ns: int) -> int:
        """Nano units committed from `first_day` (counted from 1970) to the day of `at_ns`."""
        rows = self.db.query(
            "SELECT committed_units FROM key_days WHERE key_id = ? AND day BETWEEN ? AND ?",
            (key_id, first_day, day_of(at_ns)),
        )
        return sum(units for (units,) in rows)

    def days_differ(self, key: KeyRecord) -> bool:
        """Whether the days of a key do not sum to what it has committed."""
        rows = self.db.query("SELECT committed_units FROM key_days WHERE key_id = ?", (key.key_id,))
        return bool(sum(units for (units,) in rows) != key.committed_units)


def _unexpired(key: KeyRecord, now_ns: int) -> KeyRecord:
    expires = key.limits.expires_at_ns
    if expires is not None and now_ns >= expires:
        raise RefusedError(f"{key.key_id} has expired", code="api_key_expired", fix="ask the operator for another key")
    return key


def _not_in_force() -> RefusedError:
    return RefusedError(
        "this API key is not in force",
        code="invalid_api_key",
        fix="send a key from `headwater key create` as Authorization: Bearer hw_…",
    )


def over_budget(key_id: str, left: tuple[int, str], units: int) -> RefusedError:
    """The refusal of a call that needs `units` where `left` is left."""
    return RefusedError(
        f"{key_id} has {format_units(max(left[0], 0))} of its {left[1]} left, this needs {format_units(units)}",
        code="budget_exceeded",
        fix="use a key with a larger budget, or ask for less",
    )


def _check_budget(units: int | None) -> None:
    if units is not None and not 0 <= units <= TRANSFER_UNITS_MAX:
        raise InvalidError(
            f"budget of {units} nano", code="amount_out_of_range", fix="use 0 or more nano units, or no budget"
        )


def _secret(mode: Mode, random_bytes: bytes) -> str:
    if len(random_bytes) != _RANDOM_BYTES:
        raise InvalidError(
            f"{len(random_bytes)} random bytes", code="randomness_invalid", fix=f"give {_RANDOM_BYTES} random bytes"
        )
    return f"hw_{mode}_{urlsafe_b64encode(random_bytes).decode().rstrip('=')}"


def _span(span_ns: int) -> str:
    """A span for people: in days when it is whole days, else in seconds."""
    days, rest = divmod(span_ns, DAY_NS)
    return f"{days} days" if days > 0 and rest == 0 else f"{span_ns // SECOND_NS} seconds"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(b"headwater api key\x00" + secret.encode()).digest()


def _record(row: Row) -> KeyRecord:
    key_id, label, mode, created_at_ns, revoked_at_ns, budget_units, committed_units, limits = row
    found = KeyLimits.from_json(limits)
    return KeyRecord(key_id, label, mode, created_at_ns, revoked_at_ns, budget_units, committed_units, found)
