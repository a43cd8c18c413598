"""Calls whose receipts come first: booked in groups from the receipts themselves, over leases of credit.

A call that another server answers is held in memory and made durable once, by its receipt. What may be
held is a *lease*: credit set aside here for one life of one process, so that two processes never promise
the same money. Booking is one transaction for many calls: old leases are released, each call is reserved,
charged and paid out, new leases are taken. After a crash the log says which receipts are not booked yet,
and the leases of dead processes are released with them.

Whose a receipt is, its call id says: it begins with the mark of the run that made it. Every run keeps a row: below
that index of the log all its receipts are booked. So what a dead run left is found by reading from there, and what a
living one has on its way is left to it. The row stands before the run's first receipt, and goes when the run has ended
with nothing left to book; the row `logged` says up to where no run that has ended left anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import RefusedError
from headwater.core.ids import CallId
from headwater.ledger import Code, TransferDraft, payouts
from headwater.ledger.accounts import CLEARING
from headwater.store.call_store import CallStore, FinishedCall
from headwater.store.database import INT64_MAX, Sql
from headwater.store.kept_store import KeptStore
from headwater.store.key_limits import DAY_NS, day_of
from headwater.store.key_store import KeyRecord, KeyStore, over_budget
from headwater.store.ledger_booking import Batch
from headwater.store.ledger_store import Ledger
from headwater.store.runs import run_mark

RECOVERED_AT_ONCE: Final = 1_000
"""Calls that are booked together after a crash."""

_GENERAL: Final = "logged"
_OF_RUN: Final = "run:"


@dataclass(frozen=True, slots=True)
class Metered:
    """A call that has its receipt, and what that receipt pays."""

    call: FinishedCall
    payouts: tuple[tuple[str, int], ...]  # (account, nano units), sum = price


@dataclass(frozen=True, slots=True)
class Lease:
    """Credit of a payer set aside for one process."""

    cause: str  # why the ledger holds it
    lease_id: str  # of the reservation
    key_id: str
    asset: str
    units: int
    taken_at_ns: int  # it counts towards the budgets of that UTC day
    until_ns: int  # nothing more may be held out of it from then on: its budgets begin anew


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a payer's lease is to become: at least what must not be lost, at most what is wanted.

    What was promised out of the lease that is replaced stays promised, even if a budget has been lowered meanwhile.
    """

    key_id: str
    asset: str
    lease: Lease | None  # the one it replaces
    least_units: int
    wanted_units: int  # with `least_units` 0 as well, the lease is given back
    promised: bool  # whether `least_units` was admitted before


class MeteredStore:
    """Leases and bookings in `db`, for the run of `calls`."""

    def __init__(self, db: Sql, ledger: Ledger, keys: KeyStore, calls: CallStore) -> None:
        self.db, self._ledger, self._keys, self._calls = db, ledger, keys, calls
        self.kept = KeptStore(db)

    # Leases

    def _lease(self, renewal: Renewal, at_ns: int, nonce: str) -> Lease:
        key_id, asset, least = renewal.key_id, renewal.asset, renewal.least_units
        available = self._ledger.available(f"payer:{key_id}", asset)
        if available < least:
            raise RefusedError(
                f"{key_id} is short of {least - available} nano {asset}",
                code="insufficient_credit",
                fix="deposit credit for this key, or ask for less",
            )
        left = self._keys.budget_left(key_id, at_ns)
        if left is not None and left[0] < least and not renewal.promised:
            raise over_budget(key_id, left, least)
        wanted = max(least, renewal.wanted_units)
        units = min(wanted, available, wanted if left is None else max(left[0], least))
        self._keys.commit_units(key_id, units, at_ns=at_ns, promised=True)
        cause = f"lease:{nonce}:{key_id}"
        lease_id = self._ledger.reserve(f"payer:{key_id}", units, key=cause, asset=asset, cause=cause, at_ns=at_ns)
        self.db.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?, ?, ?, ?)",
            (cause, lease_id, self._calls.run_id, key_id, asset, units, at_ns),
        )
        until_ns = (day_of(at_ns) + 1) * DAY_NS if self._keys.limits(key_id).dated else INT64_MAX
        return Lease(cause, lease_id, key_id, asset, units, at_ns, until_ns)

    def _release(self, lease: Lease, at_ns: int) -> None:
        self._ledger.release(lease.lease_id, key=f"{lease.cause}:release", at_ns=at_ns)
        self._keys.commit_units(lease.key_id, -lease.units, at_ns=lease.taken_at_ns)
        self.db.execute("DELETE FROM leases WHERE cause = ?", (lease.cause,))

    # Booking

    def book(
        self, calls: Sequence[Metered], renewals: Sequence[Renewal], *, logged: int, at_ns: int, nonce: str
    ) -> Mapping[str, Lease]:
        """Book calls and renew the leases they were held in, in one commit.

        Args:
            logged: receipts in the log up to and including these: all of this run before it are booked.
            nonce: not used before.

        Returns:
            The new lease of each payer by key id; a payer whose lease was given back has none.

        Raises:
            RefusedError: ``insufficient_credit`` or ``budget_exceeded``: not even the least of a lease is there.
        """
        renewed: dict[str, Lease] = {}
        with self.db.transaction():
            for renewal in renewals:
                if renewal.lease is not None:
                    self._release(renewal.lease, at_ns)
            self._book(calls)
            for renewal in renewals:
                if max(renewal.least_units, renewal.wanted_units):
                    renewed[renewal.key_id] = self._lease(renewal, at_ns, nonce)
            if calls:
                self.remember(logged)
        return renewed

    def _book(self, calls: Iterable[Metered]) -> None:
        calls = tuple(calls)
        if not calls:
            return
        batches = []
        spent: dict[tuple[str, int], int] = {}  # by payer and UTC day, as an instant within it
        for one in calls:
            call = one.call
            payer = f"payer:{call.key_id}"
            reserve = TransferDraft(payer, CLEARING, call.price_units, call.asset, Code.RESERVE, call.call_id)
            charge = TransferDraft(
                payer, CLEARING, call.price_units, call.asset, Code.CHARGE, call.call_id, call.reserve_id
            )
            paid = payouts(one.payouts, asset=call.asset, receipt_id=call.receipt_id)
            # The receipt says it all, so its id is what "the same body" means.
            batches.append(Batch(metered_key(call.call_id), (reserve, charge, *paid), "sha256:" + call.receipt_id))
            day = (call.key_id, day_of(call.began_ns) * DAY_NS)
            spent[day] = spent.get(day, 0) + call.price_units
        self._ledger.post_each(batches, at_ns=calls[-1].call.at_ns)
        for (key_id, began_ns), units in spent.items():
            self._keys.commit_units(key_id, units, at_ns=began_ns, promised=True)
        self._calls.record([one.call for one in calls])

    # Runs, and what they leave when they die

    @property
    def run_id(self) -> str:
        """This life of this process.

        Raises:
            InvariantError: the journal was opened to be read.
        """
        return self._calls.run_id

    def marks(self) -> Mapping[str, int]:
        """By run: the index in the log below which all its receipts are booked."""
        return {
            name.removeprefix(_OF_RUN): value
            for name, value in self.db.query("SELECT name, value FROM metered_marks WHERE name <> ?", (_GENERAL,))
        }

    def remember(self, logged: int) -> None:
        """All receipts of this run before index `logged` are booked; at its beginning: it has none there."""
        self.db.execute(
            "INSERT INTO metered_marks VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (_OF_RUN + self.run_id, logged),
        )

    def leave(self, logged: int) -> None:
        """This run has ended, with all its receipts booked; they stand before index `logged`."""
        with self.db.transaction():
            self._forget(self.run_id)
            self._raise_general(logged)

    def dead_runs(self) -> frozenset[str]:
        """Runs that left leases or a mark and whose processes live no more."""
        runs = {run for (run,) in self.db.query("SELECT DISTINCT run_id FROM leases")} | set(self.marks())
        return frozenset(run for run in runs if not self._calls.run_alive(run))

    def unbooked_from(self, dead: Collection[str], *, beginning: bool) -> int:
        """The index in the log from which receipts of dead runs may not be booked.

        Args:
            beginning: this process has just begun and looks behind all runs, not only behind those that it finds dead.
        """
        marks = self.marks()
        rows = self.db.query("SELECT value FROM metered_marks WHERE name = ?", (_GENERAL,))
        known = marks.values() if beginning else [marks[run] for run in dead if run in marks]
        return min(known, default=int(rows[0][0]) if rows else 0)

    def others_work(self, dead: Collection[str], *, beginning: bool) -> frozenset[str]:
        """The marks of runs that book their receipts themselves: not of dead ones, nor of this one at its beginning."""
        own = self.run_id if beginning else None
        return frozenset(run_mark(run) for run in self.marks() if run not in dead and run != own)

    def recover(
        self, dead: Collection[str], calls: Sequence[Metered], *, logged: int, at_ns: int, beginning: bool
    ) -> int:
        """Give back what dead runs had leased and book what their receipts say; how many calls that were.

        Args:
            dead: runs that can append nothing any more.
            calls: of receipts in the log before index `logged`; left out are those that are booked, and those of
                runs that book them themselves.
            beginning: this run has nothing at work yet.
        """
        with self.db.transaction():
            others = self.others_work(dead, beginning=beginning)
            for cause, lease_id, key_id, asset, units, taken_at_ns, run_id in self.db.query(
                "SELECT cause, lease_id, key_id, asset, units, taken_at_ns, run_id FROM leases ORDER BY cause"
            ):
                if run_id in dead:
                    self._release(Lease(cause, lease_id, key_id, asset, units, taken_at_ns, taken_at_ns), at_ns)
            missing = [
                one
                for one in calls
                if mark_of(one.call.call_id) not in others and not self._calls.knows(one.call.call_id)
            ]
            for start in range(0, len(missing), RECOVERED_AT_ONCE):
                self._book(missing[start : start + RECOVERED_AT_ONCE])
            for run in dead:
                self._forget(run)
            self._raise_general(logged)
        return len(missing)

    def leased_elsewhere(self, key_id: str) -> bool:
        """Whether another run has credit of a payer."""
        return bool(
            self.db.query("SELECT 1 FROM leases WHERE key_id = ? AND run_id <> ? LIMIT 1", (key_id, self.run_id))
        )

    def _forget(self, run_id: str) -> None:
        self.db.execute("DELETE FROM metered_marks WHERE name = ?", (_OF_RUN + run_id,))

    def _raise_general(self, logged: int) -> None:
        self.db.execute(
            "INSERT INTO metered_marks VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
            " WHERE excluded.value > metered_marks.value",
            (_GENERAL, logged),
        )

    def api_keys(self) -> tuple[KeyRecord, ...]:
        """Every API key, to know payers by their pseudonyms."""
        return self._keys.list()


def metered_key(call_id: CallId) -> str:
    """The ledger's key of everything that is booked for a call of this kind."""
    return f"{call_id}:metered"


def mark_of(call_id: str) -> str:
    """The mark of the run that made a call, if one of this kind did."""
    return call_id[5:17]
