"""Calls whose receipts come first: booked in groups from the receipts themselves, over leases of credit.

A call that another server answers is held in memory and made durable once, by its receipt. What may be
held is a *lease*: credit set aside here for one life of one process, so that two processes never promise
the same money. Booking is one transaction for many calls: old leases are released, each call is reserved,
charged and paid out, new leases are taken. After a crash the log says which receipts are not booked yet,
and the leases of dead processes are released with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

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
            logged: receipts in the log up to and including these; where recovery begins.
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
                self._remember(logged)
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

    # After a restart

    @property
    def mark(self) -> int:
        """Receipts in the log that are known to be booked, counted from the first."""
        rows = self.db.query("SELECT value FROM metered_marks WHERE name = 'logged'")
        return rows[0][0] if rows else 0

    def recover(self, calls: Sequence[Metered], *, logged: int, at_ns: int) -> int:
        """Release the leases of dead processes and book what their receipts say; how many calls that were.

        Args:
            calls: those whose receipts stand in the log after `mark`; what is booked already is left out.
        """
        with self.db.transaction():
            for cause, lease_id, key_id, asset, units, taken_at_ns, run_id in self.db.query(
                "SELECT cause, lease_id, key_id, asset, units, taken_at_ns, run_id FROM leases"
            ):
                if not self._calls.run_alive(run_id):
                    self._release(Lease(cause, lease_id, key_id, asset, units, taken_at_ns, taken_at_ns), at_ns)
            missing = [call for call in calls if not self._calls.knows(call.call.call_id)]
            self._book(missing)
            self._remember(logged)
        return len(missing)

    def _remember(self, logged: int) -> None:
        self.db.execute(
            "INSERT INTO metered_marks VALUES ('logged', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (logged,),
        )

    def api_keys(self) -> tuple[KeyRecord, ...]:
        """Every API key, to know payers by their pseudonyms."""
        return self._keys.list()


def metered_key(call_id: CallId) -> str:
    """The ledger's key of everything that is booked for a call of this kind."""
    return f"{call_id}:metered"
