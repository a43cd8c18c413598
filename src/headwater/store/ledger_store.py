"""The ledger on disk: immutable transfers, balances kept beside them, idempotent for ever.

Invariants: a batch is booked whole or not at all, and its key is remembered for good, so a retry gives
what was booked the first time; balances change in the same transaction as the transfers that change
them, and no account is below zero after any transfer, in order; a pending transfer is resolved at
most once. Triggers forbid editing or deleting a transfer, whoever holds the file.

A refused batch leaves no trace: its key may be used again once there is enough credit.

Knows nothing of calls or receipts; callers may join their own writes by posting inside
`db.transaction()`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from headwater.core.errors import ConflictError, InvalidError, MissingError, Problem, RefusedError
from headwater.core.ids import AccountId
from headwater.core.limits import BATCH_TRANSFERS_MAX, STATEMENT_LINES_MAX, TRANSFER_UNITS_MAX
from headwater.ledger import (
    CLEARING,
    Balance,
    Book,
    CallFact,
    Code,
    Kind,
    Side,
    State,
    Statement,
    Total,
    Transfer,
    TransferDraft,
    body_digest,
    check,
    check_draft,
    parse_account,
    split_transfer_id,
    statement,
    transfer_id,
)
from headwater.ledger.transfers import check_key
from headwater.store.database import INT64_MAX, Database, Row

_STEPS = (
    f"""
    CREATE TABLE accounts (
      account INTEGER PRIMARY KEY,
      name TEXT NOT NULL,
      asset TEXT NOT NULL,
      balance_units INTEGER NOT NULL CHECK (balance_units BETWEEN 0 AND {TRANSFER_UNITS_MAX}),
      reserved_out_units INTEGER NOT NULL CHECK (reserved_out_units BETWEEN 0 AND balance_units),
      reserved_in_units INTEGER NOT NULL CHECK (reserved_in_units BETWEEN 0 AND {TRANSFER_UNITS_MAX}),
      UNIQUE (name, asset)
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
      code INTEGER NOT NULL CHECK (code BETWEEN 1 AND {max(Code)}),
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
    CREATE TRIGGER accounts_named_once BEFORE UPDATE OF account, name, asset ON accounts
      BEGIN SELECT RAISE(ABORT, 'an account is never renamed'); END;
    """,
)

_TRANSFER = """
  SELECT t.transfer AS number, b.key AS key, t.transfer - b.first AS place, d.name AS debit, c.name AS credit,
         t.amount_units AS amount, d.asset AS asset, t.code AS code, t.cause AS cause, b.at_ns AS at_ns,
         pb.key AS pending_key, t.pending - pb.first AS pending_place
  FROM transfers t
  JOIN batches b ON b.batch = t.batch
  JOIN accounts d ON d.account = t.debit
  JOIN accounts c ON c.account = t.credit
  LEFT JOIN transfers p ON p.transfer = t.pending
  LEFT JOIN batches pb ON pb.batch = p.batch
"""
_OF_ACCOUNT = f"""
  SELECT * FROM (
    {_TRANSFER} WHERE t.debit = ?1 AND b.at_ns >= ?2 AND b.at_ns < ?3
    UNION ALL
    {_TRANSFER} WHERE t.credit = ?1 AND b.at_ns >= ?2 AND b.at_ns < ?3
  ) ORDER BY at_ns, number LIMIT ?4 OFFSET ?5
"""
# Halves are added up apart, because a sum of many 62-bit amounts does not fit 64 bits.
_MOVED = f"""
  SELECT debit = ?6, sum(amount >> 32), sum(amount & 4294967295) FROM ({_OF_ACCOUNT})
  WHERE code NOT IN ({int(Code.RESERVE)}, {int(Code.RELEASE)}) GROUP BY 1
"""
_IN_CHUNK = 500
"""Values given to one IN (…); a few sizes only, so that prepared statements are reused."""

_PAGE = 10_000


@dataclass(frozen=True, slots=True)
class Batch:
    """Transfers that are booked together or not at all, under one key.

    `digest` says what "the same body" means; None takes the digest of the drafts.
    """

    key: str
    drafts: Sequence[TransferDraft]
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """What a batch was booked as."""

    key: str
    transfer_ids: tuple[str, ...]
    at_ns: int  # when it was booked the first time
    replayed: bool  # it was booked before; nothing was written now


@dataclass(slots=True)
class _Row:
    """An account while a batch is worked on: the one mutable thing, and it does not leave this module."""

    number: int  # 0 until it is inserted
    name: str
    asset: str
    debit_normal: bool
    balance: int
    reserved_out: int
    reserved_in: int
    touched: bool = False

    def move(self, *, debit: bool, posted: int, reserved: int) -> None:
        """Book one side of a transfer; amounts in nano units, `reserved` negative to release."""
        if debit == self.debit_normal:
            self.balance += posted
            self.reserved_in += reserved
        else:
            self.balance -= posted
            self.reserved_out += reserved
        self.touched = True


@dataclass(frozen=True, slots=True)
class _Pending:
    """A reservation that a batch resolves."""

    number: int
    debit: str
    credit: str
    asset: str
    amount: int
    is_pending: bool
    resolved: bool


class Ledger:
    """Posts to and reads from the ledger in `db`."""

    def __init__(self, db: Database) -> None:
        self.db = db
        db.migrate("ledger", _STEPS)

    # Posting

    def post(
        self, transfers: Sequence[TransferDraft], *, key: str, body_digest: str | None = None, at_ns: int
    ) -> Posted:
        """Book `transfers` together, once.

        Raises:
            InvalidError: a transfer that could never be booked, or a sum out of range.
            RefusedError: ``insufficient_credit`` of a payer, ``insufficient_funds`` of another account, or
                ``charge_above_reserve``.
            ConflictError: ``idempotency_conflict`` when `key` was used for another body; ``already_resolved``.
            MissingError: ``pending_unknown``.
        """
        return self.post_each([Batch(key, transfers, body_digest)], at_ns=at_ns)[0]

    def post_each(self, batches: Sequence[Batch], *, at_ns: int) -> tuple[Posted, ...]:
        """Book several batches in one commit, all or none; errors as for `post`.

        A key that comes twice is booked once: the later one is a replay, or a conflict if its body differs.
        """
        digests = [_checked_digest(batch) for batch in batches]
        if sum(len(batch.drafts) for batch in batches) > BATCH_TRANSFERS_MAX:
            raise InvalidError(
                f"{sum(len(batch.drafts) for batch in batches)} transfers in one commit",
                code="batch_too_large",
                fix=f"post at most {BATCH_TRANSFERS_MAX} transfers at once",
            )
        with self.db.transaction():
            booked = {
                key: (digest, size, first_at_ns)
                for key, digest, size, first_at_ns in self._where_in(
                    "SELECT key, body_digest, size, at_ns FROM batches WHERE key IN ({})", [b.key for b in batches]
                )
            }
            fresh: list[tuple[Batch, str]] = []
            results: list[Posted] = []
            for batch, digest in zip(batches, digests, strict=True):
                before = booked.get(batch.key)
                if before is None:
                    booked[batch.key] = (digest, len(batch.drafts), at_ns)
                    fresh.append((batch, digest))
                elif before[0] != digest:
                    raise ConflictError(
                        f"key {batch.key} was used for another body ({before[0]}, now {digest})",
                        code="idempotency_conflict",
                        fix="use a new key for a new batch, or repeat the first one unchanged",
                    )
                _, size, first_at_ns = booked[batch.key]
                ids = tuple(transfer_id(batch.key, place) for place in range(size))
                results.append(Posted(batch.key, ids, first_at_ns, before is not None))
            if fresh:
                self._book(fresh, at_ns)
        return tuple(results)

    def reserve(
        self,
        payer: str,
        amount_units: int,
        *,
        key: str,
        asset: str,
        cause: str,
        at_ns: int,
        body_digest: str | None = None,
    ) -> str:
        """Set `amount_units` of a payer's credit aside for a call. Gives the id of the pending transfer.

        Raises:
            RefusedError: ``insufficient_credit``.
        """
        draft = TransferDraft(payer, CLEARING, amount_units, asset, Code.RESERVE, cause)
        return self.post([draft], key=key, body_digest=body_digest, at_ns=at_ns).transfer_ids[0]

    def charge(self, reserve_id: str, actual_units: int, *, key: str, at_ns: int) -> Posted:
        """Take `actual_units` of what was reserved and release the rest; the cause is the reservation's.

        Raises:
            RefusedError: ``charge_above_reserve``.
            ConflictError: ``already_resolved`` under another key.
        """
        return self._resolve(reserve_id, Code.CHARGE, actual_units, key, at_ns)

    def release(self, reserve_id: str, *, key: str, at_ns: int) -> Posted:
        """Release all that was reserved.

        Raises:
            ConflictError: ``already_resolved`` under another key.
        """
        return self._resolve(reserve_id, Code.RELEASE, None, key, at_ns)

    def _resolve(self, reserve_id: str, code: Code, amount: int | None, key: str, at_ns: int) -> Posted:
        with self.db.transaction():
            t = self.transfer(reserve_id)
            draft = TransferDraft(
                t.debit_account,
                t.credit_account,
                t.amount_units if amount is None else amount,
                t.asset,
                code,
                t.cause,
                t.id,
            )
            return self.post([draft], key=key, at_ns=at_ns)

    def _book(self, fresh: Sequence[tuple[Batch, str]], at_ns: int) -> None:
        drafts = [draft for batch, _ in fresh for draft in batch.drafts]
        ((last_batch, last_transfer, last_account),) = self.db.query(
            "SELECT (SELECT coalesce(max(batch), 0) FROM batches), (SELECT coalesce(max(transfer), 0) FROM transfers),"
            " (SELECT coalesce(max(account), 0) FROM accounts)"
        )
        pendings = self._pendings([d.pending_id for d in drafts if d.pending_id is not None])
        rows = self._rows(drafts)
        batch_rows, transfer_rows = [], []
        number = last_transfer
        for batch_number, (batch, digest) in enumerate(fresh, last_batch + 1):
            batch_rows.append((batch_number, batch.key, digest, number + 1, len(batch.drafts), at_ns))
            for place, draft in enumerate(batch.drafts):
                number += 1
                debit, credit = rows[draft.debit_account, draft.asset], rows[draft.credit_account, draft.asset]
                amount, pending_number = draft.amount_units, None
                posted, reserved = amount, 0
                if draft.code is Code.RESERVE:
                    posted, reserved = 0, amount
                    here = _Pending(number, debit.name, credit.name, draft.asset, amount, True, False)
                    pendings[transfer_id(batch.key, place)] = here
                elif draft.pending_id is not None:
                    pending = _resolvable(draft, pendings)
                    pending_number, reserved = pending.number, -pending.amount
                    posted = amount if draft.code is Code.CHARGE else 0
                debit.move(debit=True, posted=posted, reserved=reserved)
                credit.move(debit=False, posted=posted, reserved=reserved)
                _hold_limits(debit, draft, transfer_id(batch.key, place))
                _hold_limits(credit, draft, transfer_id(batch.key, place))
                transfer_rows.append(
                    (number, batch_number, debit, credit, amount, int(draft.code), draft.cause, pending_number)
                )
        new = [row for row in rows.values() if row.number == 0]
        for account_number, row in enumerate(new, last_account + 1):
            row.number = account_number
        self.db.executemany("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", batch_rows)
        self.db.executemany(
            "INSERT INTO accounts VALUES (?, ?, ?, ?, ?, ?)",
            [(r.number, r.name, r.asset, r.balance, r.reserved_out, r.reserved_in) for r in new],
        )
        self.db.executemany(
            "UPDATE accounts SET balance_units = ?, reserved_out_units = ?, reserved_in_units = ? WHERE account = ?",
            [
                (r.balance, r.reserved_out, r.reserved_in, r.number)
                for r in sorted(rows.values(), key=lambda r: r.number)
                if r.touched and r.number <= last_account
            ],
        )
        self.db.executemany(
            "INSERT INTO transfers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (n, b, d.number, c.number, amount, code, cause, p)
                for n, b, d, c, amount, code, cause, p in transfer_rows
            ),
        )

    def _rows(self, drafts: Sequence[TransferDraft]) -> dict[tuple[str, str], _Row]:
        names = {d.debit_account for d in drafts} | {d.credit_account for d in drafts}
        wanted = {(d.debit_account, d.asset) for d in drafts} | {(d.credit_account, d.asset) for d in drafts}
        rows = {
            (name, asset): _Row(0, name, asset, parse_account(name).side is Side.DEBIT, 0, 0, 0)
            for name, asset in wanted
        }
        for number, name, asset, balance, reserved_out, reserved_in in self._where_in(
            "SELECT account, name, asset, balance_units, reserved_out_units, reserved_in_units FROM accounts"
            " WHERE name IN ({})",
            sorted(names),
        ):
            row = rows.get((name, asset))
            if row is not None:
                row.number, row.balance, row.reserved_out, row.reserved_in = number, balance, reserved_out, reserved_in
        return rows

    def _pendings(self, ids: Sequence[str]) -> dict[str, _Pending]:
        places: dict[str, list[int]] = {}
        for one in ids:
            key, place = split_transfer_id(one)
            places.setdefault(key, []).append(place)
        numbers: dict[int, str] = {}
        for key, first, size in self._where_in("SELECT key, first, size FROM batches WHERE key IN ({})", list(places)):
            for place in places[key]:
                if place < size:
                    numbers[first + place] = transfer_id(key, place)
        return {
            numbers[number]: _Pending(number, debit, credit, asset, amount, code == Code.RESERVE, bool(resolved))
            for number, debit, credit, asset, amount, code, resolved in self._where_in(
                "SELECT t.transfer, d.name, c.name, d.asset, t.amount_units, t.code,"
                " EXISTS (SELECT 1 FROM transfers r WHERE r.pending = t.transfer)"
                " FROM transfers t JOIN accounts d ON d.account = t.debit JOIN accounts c ON c.account = t.credit"
                " WHERE t.transfer IN ({})",
                list(numbers),
            )
        }

    def _where_in(self, sql: str, values: Sequence[object]) -> Iterator[Row]:
        for start in range(0, len(values), _IN_CHUNK):
            chunk = list(values[start : start + _IN_CHUNK])
            # Filled up to a power of two with what is there already, which changes nothing.
            size = 1 << (len(chunk) - 1).bit_length()
            chunk += chunk[-1:] * (size - len(chunk))
            yield from self.db.query(sql.format(", ".join("?" * size)), chunk)

    # Reading

    def transfer(self, id: str) -> Transfer:
        """The transfer with this id.

        Raises:
            MissingError: nothing was booked under it.
        """
        key, place = split_transfer_id(id)
        rows = self.db.query(f"{_TRANSFER} WHERE b.key = ? AND t.transfer = b.first + ?", (key, place))
        if not rows:
            raise MissingError(f"no transfer {id[:80]}", code="transfer_unknown", fix="see `ledger statement ACCOUNT`")
        return _transfer(rows[0])

    def balance(self, account: str, asset: str) -> Balance:
        """What `account` holds; zero for one that was never used."""
        name = parse_account(account).id
        for row in self.db.query(
            "SELECT balance_units, reserved_out_units, reserved_in_units FROM accounts WHERE name = ? AND asset = ?",
            (name, asset),
        ):
            return Balance(name, asset, *row)
        return Balance(name, asset)

    def available(self, payer: str, asset: str) -> int:
        """Credit that may still be reserved, in nano units."""
        return self.balance(payer, asset).available_units

    def balances(self) -> tuple[Balance, ...]:
        """Every account, by name."""
        return tuple(
            Balance(AccountId(name), asset, *units)
            for name, asset, *units in self.db.query(
                "SELECT name, asset, balance_units, reserved_out_units, reserved_in_units FROM accounts"
                " ORDER BY name, asset"
            )
        )

    def totals(self) -> tuple[Total, ...]:
        """All accounts added up, per asset."""
        sums: dict[str, list[int]] = {}
        for b in self.balances():
            one = sums.setdefault(b.asset, [0, 0, 0, 0])
            one[0 if parse_account(b.account).side is Side.DEBIT else 1] += b.balance_units
            one[2] += b.reserved_out_units
            one[3] += 1
        return tuple(Total(asset, *one) for asset, one in sorted(sums.items()))

    def statement(
        self,
        account: str,
        asset: str,
        *,
        since_ns: int = 0,
        until_ns: int = INT64_MAX,
        limit: int = 1_000,
        skip: int = 0,
    ) -> Statement:
        """What moved `account` from `since_ns` to before `until_ns`, oldest first, after the first `skip` lines."""
        if not 0 < limit <= STATEMENT_LINES_MAX or skip < 0:
            raise InvalidError(
                f"limit {limit}, skip {skip}",
                code="page_invalid",
                fix=f"ask for 1 to {STATEMENT_LINES_MAX} lines, skipping 0 or more",
            )
        name = parse_account(account).id
        with self.db.snapshot():
            found = self.db.query("SELECT account FROM accounts WHERE name = ? AND asset = ?", (name, asset))
            if not found:
                return statement(name, asset, 0, (), more=False)
            period = (found[0][0], since_ns, until_ns)
            before = self._moved(name, (found[0][0], -INT64_MAX, since_ns), -1)
            opening = before + self._moved(name, period, skip)
            rows = self.db.query(_OF_ACCOUNT, (*period, limit + 1, skip))
        return statement(name, asset, opening, map(_transfer, rows[:limit]), more=len(rows) > limit)

    def _moved(self, name: str, period: tuple[int, int, int], limit: int) -> int:
        """What the first `limit` transfers of a period (-1 for all) did to an account's balance."""
        debit_normal, units = parse_account(name).side is Side.DEBIT, 0
        for debited, high, low in self.db.query(_MOVED, (*period, limit, 0, name)):
            moved = (high << 32) + low
            units += moved if bool(debited) == debit_normal else -moved
        return units

    def transfers(self) -> Iterable[Transfer]:
        """Everything booked, in order; read from disk in pages each time it is iterated."""
        return _Booked(self.db)

    def check(self, calls: Mapping[str, CallFact] | None = None) -> tuple[Problem, ...]:
        """Every invariant that does not hold; `calls` is what the journal of calls says, if there is one."""
        with self.db.snapshot():
            stored = {(str(b.account), b.asset): b for b in self.balances()}
            return check(Book(self.transfers(), stored, calls))


class _Booked:
    def __init__(self, db: Database) -> None:
        self._db = db

    def __iter__(self) -> Iterator[Transfer]:
        last = 0
        while rows := self._db.query(f"{_TRANSFER} WHERE t.transfer > ? ORDER BY t.transfer LIMIT ?", (last, _PAGE)):
            yield from map(_transfer, rows)
            last = rows[-1][0]


def _transfer(row: Row) -> Transfer:
    _, key, place, debit, credit, amount, asset, code_number, cause, at_ns, pending_key, pending_place = row
    code = Code(code_number)
    pending_id = None if pending_key is None else transfer_id(pending_key, pending_place)
    state = State.PENDING if code is Code.RESERVE else State.VOIDED if code is Code.RELEASE else State.POSTED
    return Transfer(transfer_id(key, place), debit, credit, amount, asset, code, cause, at_ns, pending_id, state)


def _checked_digest(batch: Batch) -> str:
    check_key(batch.key)
    if not batch.drafts:
        raise InvalidError(f"batch {batch.key} is empty", code="batch_empty", fix="post at least one transfer")
    for draft in batch.drafts:
        check_draft(draft)
    return body_digest(batch.drafts) if batch.digest is None else batch.digest


def _resolvable(draft: TransferDraft, pendings: dict[str, _Pending]) -> _Pending:
    """The reservation that `draft` resolves; it is marked resolved, so a second one in the batch is refused."""
    assert draft.pending_id is not None
    pending = pendings.get(draft.pending_id)
    if pending is None:
        raise MissingError(
            f"no transfer {draft.pending_id}",
            code="pending_unknown",
            fix="resolve a reservation by the id it was given",
        )
    if not pending.is_pending or (pending.debit, pending.credit, pending.asset) != (
        draft.debit_account,
        draft.credit_account,
        draft.asset,
    ):
        raise InvalidError(
            f"{draft.code.name} does not fit {draft.pending_id}",
            code="pending_invalid",
            fix="name a RESERVE between the same accounts and in the same asset",
        )
    if pending.resolved:
        raise ConflictError(
            f"{draft.pending_id} was already charged or released",
            code="already_resolved",
            fix="a reservation is resolved once; repeat the first request with its own key",
        )
    if draft.amount_units > pending.amount or (draft.code is Code.RELEASE and draft.amount_units != pending.amount):
        raise RefusedError(
            f"{draft.code.name} of {draft.amount_units} nano, {pending.amount} were reserved",
            code="charge_above_reserve" if draft.code is Code.CHARGE else "release_differs",
            fix="charge at most what was reserved; release all of it",
        )
    pendings[draft.pending_id] = _Pending(
        pending.number, pending.debit, pending.credit, pending.asset, pending.amount, True, True
    )
    return pending


def _hold_limits(row: _Row, draft: TransferDraft, id: str) -> None:
    if row.balance < row.reserved_out:
        payer = parse_account(row.name).kind is Kind.PAYER
        short = row.reserved_out - row.balance
        raise RefusedError(
            f"{draft.code.name} of {draft.amount_units} nano {row.asset}: {row.name} is short of {short} nano ({id})",
            code="insufficient_credit" if payer else "insufficient_funds",
            fix="deposit credit for this key, or ask for less" if payer else "move no more than the account holds",
        )
    if row.balance > TRANSFER_UNITS_MAX or row.reserved_in > TRANSFER_UNITS_MAX:
        raise InvalidError(
            f"{row.name} would hold {row.balance} nano {row.asset} and {row.reserved_in} reserved",
            code="amount_out_of_range",
            fix=f"an account holds at most {TRANSFER_UNITS_MAX} nano units",
        )
