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

from msgspec import Struct

from headwater.core.errors import RefusedError
from headwater.core.ids import CallId
from headwater.core.money import format_units
from headwater.ledger import Code, TransferDraft, payouts, transfer_id
from headwater.ledger.accounts import CLEARING
from headwater.store.call_store import CallStore, FinishedCall
from headwater.store.database import INT64_MAX, Sql
from headwater.store.kept_store import KeptStore
from headwater.store.key_limits import DAY_NS, day_of
from headwater.store.key_store import Budget, KeyRecord, KeyStore, over_budget
from headwater.store.ledger_booking import Batch
from headwater.store.ledger_store import Ledger
from headwater.store.metered_booking import book_group
from headwater.store.runs import run_mark

RECOVERED_AT_ONCE: Final = 1_000
"""Calls that are booked together after a crash."""

_GENERAL: Final = "logged"
_OF_RUN: Final = "run:"


class Metered(Struct, frozen=True, gc=False):
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
    promised_units: int  # of `least_units`: what was admitted before


class MeteredStore:
    """Leases and bookings in `db`, for the run of `calls`."""

    def __init__(self, db: Sql, ledger: Ledger, keys: KeyStore, calls: CallStore) -> None:
        self.db, self._ledger, self._keys, self._calls = db, ledger, keys, calls
        self.kept = KeptStore(db)

    # Leases

    def _lease(self, renewals: Sequence[Renewal], at_ns: int, nonce: str) -> dict[str, Lease]:
        """Take the leases that `renewals` ask for, by key id."""
        assets = {renewal.asset for renewal in renewals}
        payers = [f"payer:{renewal.key_id}" for renewal in renewals]
        available = {asset: self._ledger.available_each(payers, asset) for asset in assets}
        budgets = self._keys.budgets([renewal.key_id for renewal in renewals], at_ns)
        taken = {}
        for renewal in renewals:
            budget = budgets.get(renewal.key_id, Budget(None, dated=False))
            units = _granted(renewal, available[renewal.asset].get(f"payer:{renewal.key_id}", 0), budget)
            cause = f"lease:{nonce}:{renewal.key_id}"
            until_ns = (day_of(at_ns) + 1) * DAY_NS if budget.dated else INT64_MAX
            taken[renewal.key_id] = Lease(
                cause, transfer_id(cause, 0), renewal.key_id, renewal.asset, units, at_ns, until_ns
            )
        leases = taken.values()
        self._post([Batch(lease.cause, [_draft(lease, Code.RESERVE)]) for lease in leases], at_ns)
        self._keys.commit_promised([(lease.key_id, lease.units, at_ns) for lease in leases])
        self.db.executemany(
            "INSERT INTO leases (cause, lease_id, run_id, key_id, asset, units, taken_at_ns)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (lease.cause, lease.lease_id, self.run_id, lease.key_id, lease.asset, lease.units, at_ns)
                for lease in leases
            ],
        )
        return taken

    def _release(self, leases: Sequence[Lease], at_ns: int) -> None:
        self._post([Batch(f"{lease.cause}:release", [_draft(lease, Code.RELEASE)]) for lease in leases], at_ns)
        self._keys.commit_promised([(lease.key_id, -lease.units, lease.taken_at_ns) for lease in leases])
        self.db.executemany("DELETE FROM leases WHERE cause = ?", [(lease.cause,) for lease in leases])

    def _post(self, batches: Sequence[Batch], at_ns: int) -> None:
        if batches:
            self._ledger.post_each(batches, at_ns=at_ns)

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
        with self.db.transaction():
            self._release([renewal.lease for renewal in renewals if renewal.lease is not None], at_ns)
            self._book(calls)
            renewed = self._lease([one for one in renewals if max(one.least_units, one.wanted_units)], at_ns, nonce)
            if calls:
                self.remember(logged)
        return renewed

    def _book(self, calls: Iterable[Metered]) -> None:
        calls = tuple(calls)
        if not calls:
            return
        keys = [metered_key(one.call.call_id) for one in calls]
        at_ns = calls[-1].call.at_ns
        if not book_group(self.db, calls, keys, at_ns):
            self._ledger.post_each(list(map(_batch, calls, keys)), at_ns=at_ns)
        self._keys.commit_promised([(one.call.key_id, one.call.price_units, one.call.began_ns) for one in calls])
        self._calls.record([one.call for one in calls])

    def booked(self, calls: Sequence[Metered], renewals: Sequence[Renewal], nonce: str) -> Mapping[str, Lease] | None:
        """Whether a `book` that failed was committed all the same: its leases, or nothing when it was not.

        A server can lose the connection between making a commit and saying so. What it may still be making is waited
        for: this is a transaction too, and there is one writer at a time.
        """
        causes = {renewal.key_id: f"lease:{nonce}:{renewal.key_id}" for renewal in renewals}
        with self.db.transaction():
            made = {
                cause: (lease_id, asset, units, taken_at_ns)
                for cause, lease_id, asset, units, taken_at_ns in self.db.query_in(
                    "SELECT cause, lease_id, asset, units, taken_at_ns FROM leases WHERE cause IN ({})",
                    [*causes.values(), *(one.lease.cause for one in renewals if one.lease is not None)],
                )
            }
            if calls:
                committed = self._calls.knows(calls[0].call.call_id)
            else:  # a lease that was to be replaced is gone, or a first one is there
                committed = any(
                    causes[one.key_id] in made if one.lease is None else one.lease.cause not in made for one in renewals
                )
            if not committed:
                return None
            leases = {}
            for key_id, cause in causes.items():
                if cause in made:
                    lease_id, asset, units, taken_at_ns = made[cause]
                    dated = self._keys.limits(key_id).dated
                    until_ns = (day_of(taken_at_ns) + 1) * DAY_NS if dated else INT64_MAX
                    leases[key_id] = Lease(cause, lease_id, key_id, asset, units, taken_at_ns, until_ns)
            return leases

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
            left = [
                Lease(cause, lease_id, key_id, asset, units, taken_at_ns, taken_at_ns)
                for cause, lease_id, key_id, asset, units, taken_at_ns, run_id in self.db.query(
                    "SELECT cause, lease_id, key_id, asset, units, taken_at_ns, run_id FROM leases ORDER BY cause"
                )
                if run_id in dead
            ]
            self._release(left, at_ns)
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


def _draft(lease: Lease, code: Code) -> TransferDraft:
    """What sets a lease's credit aside, or gives it back."""
    pending = lease.lease_id if code is Code.RELEASE else None
    return TransferDraft(f"payer:{lease.key_id}", CLEARING, lease.units, lease.asset, code, lease.cause, pending)


def _granted(renewal: Renewal, available: int, budget: Budget) -> int:
    """How much of what is wanted there is."""
    key_id, least, left = renewal.key_id, renewal.least_units, budget.left
    if available < least:
        raise RefusedError(
            f"{key_id} is short of {format_units(least - available)} {renewal.asset}",
            code="insufficient_credit",
            fix="deposit credit for this key, or ask for less",
        )
    if left is not None and left[0] < least and renewal.promised_units < least:
        raise over_budget(key_id, (left[0] - renewal.promised_units, left[1]), least - renewal.promised_units)
    wanted = max(least, renewal.wanted_units)
    return min(wanted, available, wanted if left is None else max(left[0], least))


def _batch(one: Metered, key: str) -> Batch:
    """What is booked for a call."""
    call = one.call
    payer = f"payer:{call.key_id}"
    reserve = TransferDraft(payer, CLEARING, call.price_units, call.asset, Code.RESERVE, call.call_id)
    charge = TransferDraft(payer, CLEARING, call.price_units, call.asset, Code.CHARGE, call.call_id, call.reserve_id)
    paid = payouts(one.payouts, asset=call.asset, receipt_id=call.receipt_id)
    # The receipt says it all, so its id is what "the same body" means.
    return Batch(key, (reserve, charge, *paid), "sha256:" + call.receipt_id)


def metered_key(call_id: CallId) -> str:
    """The ledger's key of everything that is booked for a call of this kind."""
    return f"{call_id}:metered"


def mark_of(call_id: str) -> str:
    """The mark of the run that made a call, if one of this kind did."""
    return call_id[5:17]
