"""The ledger's tables on SQLite, the queries that read transfers from them, and rows as transfers.

A transfer's row holds only what its batch and accounts do not: its id is the batch's key and its place,
its asset that of its accounts, its state follows from its code. Balances, the only thing that is ever
updated, have narrow rows of their own, so that a batch rewrites few pages. Triggers forbid the rest.
"""

from __future__ import annotations

from collections.abc import Iterator

from headwater.core.limits import TRANSFER_UNITS_MAX
from headwater.ledger import Code, State, Transfer, transfer_id
from headwater.store.database import INT64_MAX, Row, Sql

STEPS = (
    f"""
    CREATE TABLE accounts (
      account INTEGER PRIMARY KEY,
      name TEXT NOT NULL,
      asset TEXT NOT NULL,
      UNIQUE (name, asset)
    );
    CREATE TABLE balances (
      account INTEGER PRIMARY KEY REFERENCES accounts (account),
      balance_units INTEGER NOT NULL CHECK (balance_units BETWEEN 0 AND {TRANSFER_UNITS_MAX}),
      reserved_out_units INTEGER NOT NULL CHECK (reserved_out_units BETWEEN 0 AND balance_units),
      reserved_in_units INTEGER NOT NULL CHECK (reserved_in_units BETWEEN 0 AND {TRANSFER_UNITS_MAX})
    );
    CREATE TABLE batches (
      batch INTEGER PRIMARY KEY,
      key TEXT NOT NULL UNIQUE,
      body_digest TEXT NOT NULL,
      first INTEGER NOT NULL,
      size INTEGER NOT NULL CHECK (size > 0),
      at_ns INTEGER NOT NULL
    );
    CREATE TABLE transfers (
      transfer INTEGER PRIMARY KEY,
      batch INTEGER NOT NULL REFERENCES batches (batch),
      debit INTEGER NOT NULL REFERENCES accounts (account),
      credit INTEGER NOT NULL REFERENCES accounts (account),
      amount_units INTEGER NOT NULL CHECK (amount_units BETWEEN 0 AND {TRANSFER_UNITS_MAX}),
      code INTEGER NOT NULL CHECK (code BETWEEN 1 AND 10),
      cause TEXT NOT NULL CHECK (cause <> ''),
      pending INTEGER REFERENCES transfers (transfer),
      CHECK (debit <> credit),
      CHECK ((pending IS NOT NULL) = (code IN ({int(Code.CHARGE)}, {int(Code.RELEASE)})))
    );
    CREATE INDEX transfers_by_debit ON transfers (debit);
    CREATE INDEX transfers_by_credit ON transfers (credit);
    CREATE UNIQUE INDEX transfers_resolved_once ON transfers (pending) WHERE pending IS NOT NULL;
    CREATE TRIGGER transfers_stay BEFORE DELETE ON transfers
      BEGIN SELECT RAISE(ABORT, 'a transfer is never deleted: book a correction'); END;
    CREATE TRIGGER transfers_unchanged BEFORE UPDATE ON transfers
      BEGIN SELECT RAISE(ABORT, 'a transfer is never edited: book a correction'); END;
    CREATE TRIGGER batches_stay BEFORE DELETE ON batches
      BEGIN SELECT RAISE(ABORT, 'an idempotency key is kept for ever'); END;
    CREATE TRIGGER batches_unchanged BEFORE UPDATE ON batches
      BEGIN SELECT RAISE(ABORT, 'an idempotency key is never edited'); END;
    CREATE TRIGGER accounts_stay BEFORE DELETE ON accounts
      BEGIN SELECT RAISE(ABORT, 'an account is never deleted'); END;
    CREATE TRIGGER accounts_unchanged BEFORE UPDATE ON accounts
      BEGIN SELECT RAISE(ABORT, 'an account is never renamed'); END;
    CREATE TRIGGER balances_stay BEFORE DELETE ON balances
      BEGIN SELECT RAISE(ABORT, 'a balance is never deleted'); END;
    """,
    """
    CREATE TABLE deadlines (
      transfer INTEGER PRIMARY KEY REFERENCES transfers (transfer),
      expires_at_ns INTEGER NOT NULL
    );
    CREATE INDEX deadlines_by_time ON deadlines (expires_at_ns);
    CREATE TRIGGER deadlines_stay BEFORE DELETE ON deadlines
      BEGIN SELECT RAISE(ABORT, 'a deadline is never deleted'); END;
    CREATE TRIGGER deadlines_unchanged BEFORE UPDATE ON deadlines
      BEGIN SELECT RAISE(ABORT, 'a deadline is never moved'); END;
    """,
)
"""Migrations of SQLite files. PostgreSQL has the same tables from `store/migrations`."""

TRANSFER = """
  SELECT t.transfer AS number, b.key AS key, t.transfer - b.first AS place, d.name AS debit, c.name AS credit,
         t.amount_units AS amount, d.asset AS asset, t.code AS code, t.cause AS cause, b.at_ns AS at_ns,
         pb.key AS pending_key, t.pending - pb.first AS pending_place, x.expires_at_ns AS expires_at_ns
  FROM transfers t
  JOIN batches b ON b.batch = t.batch
  JOIN accounts d ON d.account = t.debit
  JOIN accounts c ON c.account = t.credit
  LEFT JOIN transfers p ON p.transfer = t.pending
  LEFT JOIN batches pb ON pb.batch = p.batch
  LEFT JOIN deadlines x ON x.transfer = coalesce(t.pending, t.transfer)
"""
OF_ACCOUNT = f"""
  SELECT * FROM (
    {TRANSFER} WHERE t.debit = ?1 AND b.at_ns >= ?2 AND b.at_ns < ?3
    UNION ALL
    {TRANSFER} WHERE t.credit = ?1 AND b.at_ns >= ?2 AND b.at_ns < ?3
  ) AS of_account ORDER BY at_ns, number LIMIT ?4 OFFSET ?5
"""
# Halves are added up apart, because a sum of many 62-bit amounts does not fit 64 bits.
MOVED = f"""
  SELECT debit = ?6, sum(amount >> 32), sum(amount & 4294967295) FROM ({OF_ACCOUNT}) AS moved
  WHERE code NOT IN ({int(Code.RESERVE)}, {int(Code.RELEASE)}) GROUP BY 1
"""
_CODES = {
    int(code): (code, {Code.RESERVE: State.PENDING, Code.RELEASE: State.VOIDED}.get(code, State.POSTED))
    for code in Code
}

OPEN_AND_PAST = """
  SELECT b.key, t.transfer - b.first FROM deadlines x
  JOIN transfers t ON t.transfer = x.transfer JOIN batches b ON b.batch = t.batch
  WHERE x.expires_at_ns <= ? AND NOT EXISTS (SELECT 1 FROM transfers r WHERE r.pending = x.transfer)
  ORDER BY x.expires_at_ns, x.transfer LIMIT ?
"""
"""Reservations whose time is over and that nobody resolved: (key, place)."""

ALL_LINES = INT64_MAX
"""A LIMIT that leaves nothing out, in words that every engine knows."""

_PAGE = 10_000


class Booked:
    """Every transfer in order, read from disk in pages each time it is iterated."""

    def __init__(self, db: Sql) -> None:
        self._db = db

    def __iter__(self) -> Iterator[Transfer]:
        last = 0
        while rows := self._db.query(f"{TRANSFER} WHERE t.transfer > ? ORDER BY t.transfer LIMIT ?", (last, _PAGE)):
            yield from map(read_transfer, rows)
            last = rows[-1][0]


def read_transfer(row: Row) -> Transfer:
    """A transfer from a row of `TRANSFER`."""
    _, key, place, debit, credit, amount, asset, code_number, cause, at_ns, pending_key, pending_place, expires = row
    code, state = _CODES[code_number]
    if state is State.VOIDED and expires is not None and at_ns >= expires:
        state = State.EXPIRED
    pending_id = None if pending_key is None else transfer_id(pending_key, pending_place)
    return Transfer(
        transfer_id(key, place), debit, credit, amount, asset, code, cause, at_ns, pending_id, state, expires
    )
