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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from headwater.core.canonical import digest_of
from headwater.core.errors import ConflictError, InvalidError, MissingError, Problem
from headwater.core.ids import AccountId
from headwater.core.limits import BATCH_TRANSFERS_MAX, STATEMENT_LINES_MAX
from headwater.ledger import (
    CLEARING,
    Balance,
    Book,
    CallFact,
    Code,
    Side,
    Statement,
    Total,
    Transfer,
    TransferDraft,
    check,
    parse_account,
    split_transfer_id,
    statement,
    transfer_id,
)
from headwater.store.database import INT64_MAX, Sql
from headwater.store.ledger_booking import Batch, book, checked_digest
from headwater.store.ledger_tables import (
    ALL_LINES,
    MOVED,
    OF_ACCOUNT,
    OPEN_AND_PAST,
    STEPS,
    TRANSFER,
    Booked,
    read_transfer,
)

__all__ = ["Batch", "Ledger", "Posted"]


@dataclass(frozen=True, slots=True)
class Posted:
    """What a batch was booked as."""

    key: str
    size: int  # transfers
    at_ns: int  # when it was booked the first time
    replayed: bool  # it was booked before; nothing was written now

    @property
    def transfer_ids(self) -> tuple[str, ...]:
        """The ids of its transfers, in the order of the batch."""
        return tuple(transfer_id(self.key, place) for place in range(self.size))


class Ledger:
    """Posts to and reads from the ledger in `db`."""

    def __init__(self, db: Sql) -> None:
        self.db = db
        db.migrate("ledger", STEPS)

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
        size = sum(len(batch.drafts) for batch in batches)
        if size > BATCH_TRANSFERS_MAX:
            raise InvalidError(
                f"{size} transfers in one commit",
                code="batch_too_large",
                fix=f"post at most {BATCH_TRANSFERS_MAX} transfers at once",
            )
        digests = [checked_digest(batch) for batch in batches]
        return self.db.run(lambda: self._book(batches, digests, at_ns))

    def _book(self, batches: Sequence[Batch], digests: Sequence[str], at_ns: int) -> tuple[Posted, ...]:
        booked = {
            key: (digest, size, first_at_ns)
            for key, digest, size, first_at_ns in self.db.query_in(
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
            _, count, first_at_ns = booked[batch.key]
            results.append(Posted(batch.key, count, first_at_ns, before is not None))
        if fresh:
            book(self.db, fresh, at_ns)
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
        expires_at_ns: int | None = None,
    ) -> str:
        """Set `amount_units` of a payer's credit aside for a call. Gives the id of the pending transfer.

        From `expires_at_ns` on it can no longer be charged, and `expire` releases it.

        Raises:
            RefusedError: ``insufficient_credit``.
        """
        draft = TransferDraft(payer, CLEARING, amount_units, asset, Code.RESERVE, cause, expires_at_ns=expires_at_ns)
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

    def expire(self, *, at_ns: int, limit: int = 1_000) -> tuple[str, ...]:
        """Release reservations whose deadline is at or before `at_ns`, oldest first, at most `limit` of them.

        Doing it again changes nothing. Gives the ids of what was released now.
        """

        def release_all() -> tuple[str, ...]:
            ids = [transfer_id(key, place) for key, place in self.db.query(OPEN_AND_PAST, (at_ns, limit))]
            batches = [
                Batch(
                    f"expire:{digest_of(t.id)}",
                    [
                        TransferDraft(
                            t.debit_account, t.credit_account, t.amount_units, t.asset, Code.RELEASE, t.cause, t.id
                        )
                    ],
                )
                for t in map(self.transfer, ids)
            ]
            if batches:
                self.post_each(batches, at_ns=at_ns)
            return tuple(ids)

        return self.db.run(release_all)

    def _resolve(self, reserve_id: str, code: Code, amount: int | None, key: str, at_ns: int) -> Posted:
        def resolve() -> Posted:
            t = self.transfer(reserve_id)
            units = t.amount_units if amount is None else amount
            draft = TransferDraft(t.debit_account, t.credit_account, units, t.asset, code, t.cause, t.id)
            return self.post([draft], key=key, at_ns=at_ns)

        return self.db.run(resolve)

    # Reading

    def transfer(self, id: str) -> Transfer:
        """The transfer with this id.

        Raises:
            MissingError: nothing was booked under it.
        """
        key, place = split_transfer_id(id)
        rows = self.db.query(f"{TRANSFER} WHERE b.key = ? AND t.transfer = b.first + ?", (key, place))
        if not rows:
            raise MissingError(f"no transfer {id[:80]}", code="transfer_unknown", fix="see `ledger statement ACCOUNT`")
        return read_transfer(rows[0])

    def balance(self, account: str, asset: str) -> Balance:
        """What `account` holds; zero for one that was never used."""
        name = parse_account(account).id
        for row in self.db.query(
            "SELECT balance_units, reserved_out_units, reserved_in_units FROM accounts JOIN balances USING (account)"
            " WHERE name = ? AND asset = ?",
            (name, asset),
        ):
            return Balance(name, asset, *row)
        return Balance(name, asset)

    def balance_at(self, account: str, asset: str, at_ns: int) -> int:
        """What `account` held after everything booked before `at_ns`, in nano units; reservations do not count."""
        name = parse_account(account).id
        with self.db.snapshot():
            found = self.db.query("SELECT account FROM accounts WHERE name = ? AND asset = ?", (name, asset))
            return self._moved(name, (found[0][0], -INT64_MAX, at_ns), ALL_LINES) if found else 0

    def available(self, payer: str, asset: str) -> int:
        """Credit that may still be reserved, in nano units."""
        return self.balance(payer, asset).available_units

    def available_each(self, payers: Sequence[str], asset: str) -> Mapping[str, int]:
        """As `available` for many; a payer that was never used has nothing and is left out."""
        return {
            name: balance - reserved
            for name, balance, reserved in self.db.query_in(
                "SELECT name, balance_units, reserved_out_units FROM accounts JOIN balances USING (account)"
                " WHERE asset = ? AND name IN ({})",
                payers,
                asset,
            )
        }

    def balances(self) -> tuple[Balance, ...]:
        """Every account, by name."""
        return tuple(
            Balance(AccountId(name), asset, *units)
            for name, asset, *units in self.db.query(
                "SELECT name, asset, balance_units, reserved_out_units, reserved_in_units"
                " FROM accounts JOIN balances USING (account) ORDER BY name, asset"
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
            before = self._moved(name, (found[0][0], -INT64_MAX, since_ns), ALL_LINES)
            opening = before + self._moved(name, period, skip)
            rows = self.db.query(OF_ACCOUNT, (*period, limit + 1, skip))
        return statement(name, asset, opening, map(read_transfer, rows[:limit]), more=len(rows) > limit)

    def _moved(self, name: str, period: tuple[int, int, int], limit: int) -> int:
        """What the first `limit` transfers of a period did to an account's balance."""
        debit_normal, units = parse_account(name).side is Side.DEBIT, 0
        for debited, high, low in self.db.query(MOVED, (*period, limit, 0, name)):
            moved = (int(high) << 32) + int(low)
            units += moved if bool(debited) == debit_normal else -moved
        return units

    def transfers(self) -> Iterable[Transfer]:
        """Everything booked, in order; read from disk in pages each time it is iterated."""
        return Booked(self.db)

    def check(self, calls: Mapping[str, CallFact] | None = None) -> tuple[Problem, ...]:
        """Every invariant that does not hold; `calls` is what the journal of calls says, if there is one."""
        with self.db.snapshot():
            stored = {(str(b.account), b.asset): b for b in self.balances()}
            return check(Book(self.transfers(), stored, calls))
