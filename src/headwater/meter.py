"""The path of a call that another server answers: hold, answer, receipt, ledger.

Beside `flow.py`: the same receipt, division and books, in another order. The price's ceiling is *held*
in memory, out of credit that this process has leased; when the answer is whole its receipt is made,
signed and appended, many at a time with one sync; then the last bytes leave; then the books follow, many
at a time with one commit. So a call costs one wait for the disk, shared with others, and a crash loses no
charge that was promised: the log has the receipts, the books are brought up to it.

Invariants: a call is charged at most once and only if it answered; what is held never exceeds what is
leased; a receipt exists before its answer ends and before its payouts are booked.

Several processes may serve one home, each with a meter and leases of its own. One of them owns the log and appends for
all; it also recovers what the others leave when they die. Credit that one has leased and does not use goes to another
that needs it (`Recalls`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, RefusedError, UpstreamError
from headwater.core.ids import CallId, call_id, pseudonym, receipt_id
from headwater.core.limits import RECEIPT_BATCH_MAX
from headwater.metered import Charged, Hold, MeteredReceipts, Used, is_metered, metered_of
from headwater.receipts import Issued, Receipt, Signer
from headwater.splits import Policy
from headwater.store.key_store import KeyRecord
from headwater.store.metered_store import Lease, Metered, MeteredStore, Renewal, mark_of
from headwater.store.recalls import Recalls
from headwater.store.receipt_admission import Entry
from headwater.store.receipt_log import ReceiptLog
from headwater.store.receipt_queue import ReceiptQueue, Receipts
from headwater.store.runs import MARK_BYTES, run_mark

LEASE_CALLS: Final = 64
"""How many calls like the last one a lease shall cover; under load twice those of the last commit."""

GATHER_S: Final = 0.2
"""How long the books wait for more to write in one commit."""

IDLE_S: Final = 2.0
"""After so long without a call a lease is given back."""

BEHIND_MAX: Final = 20_000
"""Receipts that may wait for the books before new calls are refused."""

ADVANCE: Final = 5_000
"""Receipts of others after which a meter that has none on the way moves its mark in the log."""

RECALL_PAUSES_S: Final = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
"""How long another process is given to give back what it does not use."""

_SHORT: Final = ("insufficient_credit", "budget_exceeded")
_WHEN_BITS: Final = 27  # of nanoseconds: 0.13 s, and 24 of them come around after 26 days
_log = logging.getLogger("headwater.meter")


Keep = Callable[[Issued, Charged], Awaitable[None]]
"""Keeps an answer with the receipt that will charge it, durably."""


@dataclass(frozen=True, slots=True)
class MeterState:
    """How the meter is doing; for /readyz and /metrics."""

    held: int  # calls at work
    waiting: int  # answers that wait for their receipt
    behind: int  # receipts that wait for the books
    error: str | None  # why the books do not follow, a stable code


@dataclass(slots=True)
class _Purse:
    """What one payer has here. Guarded by the meter's lock."""

    lease: Lease | None = None
    held: int = 0  # ceilings of calls at work
    spent: int = 0  # prices that are not booked yet
    last_units: int = 0  # of the last hold
    used_s: float = 0.0

    @property
    def units(self) -> int:
        """What is leased."""
        return 0 if self.lease is None else self.lease.units

    @property
    def free(self) -> int:
        """What may still be held."""
        return self.units - self.held - self.spent

    def is_past(self, now_ns: int) -> bool:
        """Whether it was leased on an earlier day, under budgets that have begun anew."""
        return self.lease is not None and now_ns >= self.lease.until_ns


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What a transaction of the books was to do."""

    calls: tuple[Metered, ...]
    renewals: tuple[Renewal, ...]
    nonce: str


@dataclass(frozen=True, slots=True)
class MeterParts:
    """Everything the meter runs on."""

    store: MeteredStore
    log: Receipts  # a `ReceiptLog` in the process that recovers what others leave
    signer: Signer
    policy: Policy
    registry_digest: Callable[[], str]
    now_ns: Callable[[], int]
    random_bytes: Callable[[int], bytes]


class Meter:
    """Holds, charges and books, for the calls of one event loop; a thread keeps the books behind them."""

    def __init__(self, parts: MeterParts) -> None:
        self.parts = parts
        self._lock = threading.Lock()  # guards everything below
        self._due = threading.Event()
        self._receipts = ReceiptQueue(parts.log, expected=lambda: self._working - self._waiting)
        self._purses: dict[str, _Purse] = {}
        self._waiting = 0  # answers whose receipt is being written
        self._unbooked: list[Metered] = []
        self._logged = 0  # receipts in the log, `_unbooked` included
        self._working = 0
        self._error: str | None = None
        self._stopping = False
        self._books = threading.Lock()  # held by whoever changes leases or the ledger
        self._nonces = 0
        self._keeping: set[asyncio.Task[Charged]] = set()
        self._promised: set[CallId] = set()  # kept, and its receipt is being written
        self._owed: dict[CallId, Hold] = {}  # kept, and without a receipt because the log could not be written
        self._prefix = b""  # of this run's call ids, once it has begun
        self._doubted: _Attempt | None = None  # of which nobody knows whether it was committed
        self._unsure: set[CallId] = set()  # of `_owed`: perhaps not kept after all
        self._recalls: Recalls | None = None
        self._life = parts.random_bytes(8).hex()
        self._thread: threading.Thread | None = None
        self._made = MeteredReceipts(parts.policy, parts.signer, parts.registry_digest)
        self.before_charge: Callable[[str, int], Awaitable[None]] | None = None  # of kept answers: (key id, nano units)

    # Life

    def join(self, recalls: Recalls) -> None:
        """Share payers' credit with the other processes of the gateway. To be called before `start`."""
        self._recalls = recalls
        recalls.listen(self._give_back)

    def start(self) -> int:
        """Begin, and bring the books up to the log first where it is this process's; how many calls were booked so.

        Raises:
            HeadwaterError: log or books cannot be read or written.
        """
        booked = self.begin()
        self._thread = threading.Thread(target=self._keep_books, name="books", daemon=True)
        self._thread.start()
        return booked

    def begin(self) -> int:
        """As `start`, without the thread that keeps the books: they are kept by `settle_books`."""
        log = self.parts.log
        booked = self._recover(log, lambda _: None, beginning=True) if isinstance(log, ReceiptLog) else 0
        self._enter()
        return booked

    def recover_dead(self, fence: Callable[[str], None] = lambda _: None) -> int:
        """Settle what processes left that died, while others live; how many calls had to be booked. Waits for the disk.

        Their receipts in the log are booked, answers they kept are charged, their leases are given back. A process
        that does not own the log recovers nobody.

        Args:
            fence: makes sure that a run, by its id, appends nothing any more (`LogService.fence`).

        Raises:
            HeadwaterError: log or books cannot be read or written; nothing was done, and it may be called again.
        """
        log = self.parts.log
        if not isinstance(log, ReceiptLog):
            return 0
        with self._books:
            return self._recover(log, fence, beginning=False)

    def _enter(self) -> None:
        """Set this run's mark, before its first receipt."""
        store, size = self.parts.store, len(self.parts.log)
        store.remember(size)
        self._logged, self._prefix = size, bytes.fromhex(run_mark(store.run_id))

    def _recover(self, log: ReceiptLog, fence: Callable[[str], None], *, beginning: bool) -> int:
        store = self.parts.store
        dead = store.dead_runs()
        if not (dead or beginning):
            return 0
        for run in dead:
            fence(run)
        kept = store.kept.unbooked()  # before it is asked who lives: what is read here is of a run that is known there
        others = store.others_work(dead, beginning=beginning)
        due = [(raw, signature) for call, raw, signature in kept if mark_of(call) not in others]
        placed: list[Entry] = []
        for start in range(0, len(due), RECEIPT_BATCH_MAX):
            placed += log.append_many(due[start : start + RECEIPT_BATCH_MAX])  # what was kept is charged, once
        size, begin = len(log), store.unbooked_from(dead, beginning=beginning)
        payers = {pseudonym(key.key_id): key.key_id for key in store.api_keys()}
        missing = []
        for index in (*sorted({entry.index for entry in placed if entry.index < begin}), *range(begin, size)):
            logged = log.at(index)
            receipt = Receipt.from_bytes(logged.raw)
            if is_metered(receipt) and receipt.payer in payers:
                missing.append(metered_of(receipt, logged.entry.id, payers[receipt.payer], receipt.issued_at_ns))
        return store.recover(dead, missing, logged=size, at_ns=self.parts.now_ns(), beginning=beginning)

    async def drain(self) -> None:
        """Wait until every answer that was charged has its receipt."""
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await self._receipts.close()

    def close(self, timeout_s: float = 30.0) -> None:
        """Book what waits, give the leases back, and stop. Blocks."""
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        elif self._prefix:
            try:
                with self._books:
                    self._end()
            except HeadwaterError as error:  # what could not be booked is in the log, and is booked by recovery
                _log.error("the books could not be written: %s", error.code)

    def state(self) -> MeterState:
        """How it is doing."""
        dead = self._thread is not None and not self._stopping and not self._thread.is_alive()
        with self._lock:
            return MeterState(
                self._working, self._waiting, len(self._unbooked), "books_failed" if dead else self._error
            )

    # A call

    def hold(self, key: KeyRecord, units: int) -> Hold | None:
        """Hold a call's ceiling in memory; None when the lease does not cover it: then call `lease` and ask again.

        Raises:
            UpstreamError: ``books_behind`` when the books cannot be written: nothing more is promised then.
        """
        with self._lock:
            if self._stopping or len(self._unbooked) >= BEHIND_MAX:
                raise UpstreamError(
                    "the books cannot be written at the moment", code="books_behind", fix="try again in a moment"
                )
            purse = self._purses.get(key.key_id)
            now_ns = self.parts.now_ns()
            if purse is None or purse.free < units or purse.is_past(now_ns):
                return None
            purse.held += units
            purse.last_units = units
            self._working += 1
        # Ids of one moment stand together, so that the indexes of the books grow at one place, not all over.
        when = (now_ns >> _WHEN_BITS & 0xFFFFFF).to_bytes(3, "big")
        return Hold(call_id(self._prefix + when + self.parts.random_bytes(13 - MARK_BYTES)), key, units, now_ns)

    def lease(self, key: KeyRecord, units: int) -> None:
        """Set more of a payer's credit aside, so that `units` can be held. Waits for the disk.

        Raises:
            RefusedError: ``insufficient_credit`` or ``budget_exceeded``.
        """
        with self._books:
            if not self._prefix:
                self._enter()
            self._end_doubt()
            with self._lock:
                purse = self._purses.setdefault(key.key_id, _Purse())
                if purse.free >= units and not purse.is_past(self.parts.now_ns()):
                    return
                least = purse.units + units - purse.free
                purse.used_s = time.monotonic()
                asked = Renewal(
                    *(key.key_id, self.parts.policy.currency, purse.lease),
                    least_units=least,
                    wanted_units=least + (LEASE_CALLS - 1) * units,
                    promised_units=purse.units - purse.free,
                )
            self._book((), (asked,), 0)

    def recall(self, key: KeyRecord, refused: RefusedError) -> bool:
        """After `lease` was refused: ask other processes for credit of this payer that they do not use.

        Returns:
            Whether somebody may give some back: then call `lease` again in a moment.
        """
        return (
            self._recalls is not None
            and refused.code in _SHORT
            and self.parts.store.leased_elsewhere(key.key_id)
            and self._recalls.ask(key.key_id) > 0
        )

    def make_room(self, key: KeyRecord, refused: RefusedError) -> bool:
        """After a call that is not held here was refused: free what no process uses of its payer's leases.

        Returns:
            Whether something is free now, or may be in a moment: then ask again.
        """
        return refused.code in _SHORT and (self._give_back(key.key_id) or self.recall(key, refused))

    def _give_back(self, key_id: str) -> bool:
        """Somebody else needs a payer's credit: give back what is not promised here; whether there was any."""
        try:
            with self._books:
                self._end_doubt()
                with self._lock:
                    purse = self._purses.get(key_id)
                    if purse is None or purse.lease is None or purse.free <= 0:
                        return False
                    promised = purse.held + purse.spent
                    renewal = self._renewal(key_id, purse, promised, promised)
                    purse.lease = replace(purse.lease, units=promised)  # so that nothing more is held meanwhile
                self._book((), (renewal,), 0)
        except HeadwaterError as error:
            _log.error("credit could not be given back: %s", error.code)
            return False
        return True

    def release(self, hold: Hold) -> None:
        """The call did not answer: nothing is charged."""
        with self._lock:
            self._purses[hold.key.key_id].held -= hold.units
            self._working -= 1

    async def charge(self, hold: Hold, used: Used, keep: Keep | None = None) -> Charged:
        """The call answered: when this returns its receipt is on the disk, and its price is taken.

        Args:
            keep: keeps the answer and its receipt durably, before that receipt is appended; from then on the call
                is charged, even if this process dies or nobody waits for it any more.

        Raises:
            RefusedError: ``charge_above_reserve``.
            HeadwaterError: answer or receipt cannot be written; the call is not charged.
        """
        try:
            if not 0 <= used.price_units <= hold.units:
                raise RefusedError(
                    f"price {used.price_units} nano, {hold.units} held", code="charge_above_reserve", fix="hold more"
                )
            issued, metered = self._made.receipt(hold, used, self.parts.now_ns())
        except BaseException:  # such as a registry that cannot be read: nobody else settles what is held
            self.release(hold)
            raise
        if keep is None:
            return await self._write(hold, issued, metered)
        task = asyncio.create_task(self._keep(hold, issued, metered, keep))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        return await asyncio.shield(task)

    def owes(self, call_id: CallId) -> bool:
        """Whether a kept answer is not charged because the log could not be written: then `charge_kept` is due."""
        return call_id in self._owed

    async def charge_kept(self, call_id: CallId, raw: bytes, signature: str) -> None:
        """Charge an answer that `owes` names, by the receipt it was kept with; what was held for it is held still.

        Raises:
            HeadwaterError: the receipt still cannot be written.
        """
        with self._lock:
            hold = self._owed.pop(call_id)
            self._promised.add(call_id)
            self._working += 1
        receipt = Receipt.from_bytes(raw)
        issued = Issued(raw, receipt_id(raw), signature, receipt.call_id, receipt.price)
        await self._write(hold, issued, metered_of(receipt, issued.id, hold.key.key_id, hold.began_ns))

    async def _keep(self, hold: Hold, issued: Issued, metered: Metered, keep: Keep) -> Charged:
        try:
            if self.before_charge is not None:
                await self.before_charge(hold.key.key_id, issued.price)
        except BaseException:
            self.release(hold)
            raise
        try:
            await keep(issued, Charged(hold.call_id, issued.id, issued.price))
        except (RefusedError, InvalidError, ConflictError):
            self.release(hold)
            raise
        except BaseException:  # it may be kept all the same: then it is charged when it is asked for again
            with self._lock:
                self._working -= 1
                self._owed[hold.call_id] = hold
                self._unsure.add(hold.call_id)
            raise
        with self._lock:
            self._promised.add(hold.call_id)
        return await self._write(hold, issued, metered)

    async def _write(self, hold: Hold, issued: Issued, metered: Metered) -> Charged:
        self._waiting += 1
        # What becomes of the hold is settled in `_written`, whether or not anybody still waits for it here.
        try:
            written = self._receipts.submit(issued.raw, issued.signature, partial(self._written, hold, metered))
        except BaseException:
            self._written(hold, metered, None)
            raise
        await written
        return Charged(hold.call_id, issued.id, issued.price)

    def _written(self, hold: Hold, metered: Metered, entry: Entry | None) -> None:
        """The receipt is on the disk, or cannot be: what was held is spent, or free again."""
        with self._lock:
            self._waiting -= 1
            self._working -= 1
            purse = self._purses[hold.key.key_id]
            if entry is None:
                self._unwritten(hold, purse)
                return
            if self._promised:
                self._promised.discard(hold.call_id)
            purse.held -= hold.units
            purse.spent += metered.call.price_units
            self._unbooked.append(metered)
            self._logged = max(self._logged, entry.index + 1)
        if not self._due.is_set():
            self._due.set()

    def _unwritten(self, hold: Hold, purse: _Purse) -> None:
        """A receipt was refused. What it may still be charged by stays held. The caller holds the lock."""
        if hold.call_id in self._promised:
            self._promised.discard(hold.call_id)
            self._owed[hold.call_id] = hold
        elif not self.parts.log.broken:  # else it may be in the log, and is charged when this run is recovered
            purse.held -= hold.units

    # Books, on a thread of their own

    def settle_books(self) -> None:
        """Book what is logged, now. Waits for the disk.

        Raises:
            HeadwaterError: the books cannot be written.
        """
        with self._books:
            self._bring_up(time.monotonic())

    def _keep_books(self) -> None:
        pause_s = 0.0
        while True:
            self._due.wait(IDLE_S)
            last = self._stopping
            try:
                if not last:
                    time.sleep(pause_s or GATHER_S)  # more calls in one commit: nobody waits for this one
                self._due.clear()
                with self._books:
                    if last:
                        self._end()
                    else:
                        self._bring_up(time.monotonic())
                        self._advance()
            except Exception as error:  # whatever it is: without this thread nothing more would be booked
                self._error = error.code if isinstance(error, HeadwaterError) else "books_failed"
                _log.error("the books could not be written: %s (%s)", self._error, type(error).__name__)
                pause_s = min(2 * pause_s + 0.1, 5.0)
                self._due.set()
            else:
                pause_s, self._error = 0.0, None
            if last:
                return  # what could not be booked is in the log, and the next start books it

    def _bring_up(self, now_s: float, *, close: bool = False) -> None:
        """Book everything logged, renew the leases it was held in and give idle ones back."""
        self._end_doubt()
        with self._lock:
            calls, logged = tuple(self._unbooked), self._logged
            booked: dict[str, int] = {}
            ahead: dict[str, int] = {}  # calls that the next lease shall cover
            for one in calls:
                key_id = one.call.key_id
                booked[key_id] = booked.get(key_id, 0) + one.call.price_units
                ahead[key_id] = ahead.get(key_id, 0) + 2
            renewals = []
            for key_id, purse in self._purses.items():
                if purse.lease is None:
                    continue
                spent = booked.get(key_id, 0)
                if spent:
                    purse.used_s = now_s
                    owed = purse.held + purse.spent - spent
                    # What may be held while this is written is what is free now: never lease less than that. At the end
                    # nothing more is held.
                    least = owed if close or purse.is_past(self.parts.now_ns()) else purse.units - spent
                    wanted = owed if close else owed + max(LEASE_CALLS, ahead[key_id]) * purse.last_units
                    renewals.append(self._renewal(key_id, purse, least, wanted))
                elif not purse.held and not purse.spent and (close or now_s - purse.used_s > IDLE_S):
                    renewals.append(self._renewal(key_id, purse, 0, 0))
                    purse.lease = None  # so that nothing is held meanwhile
        if calls or renewals:
            self._book(calls, renewals, logged)

    def _advance(self) -> None:
        """Move this run's mark up while it has no receipt on the way, so that recovery never reads far back."""
        with self._lock:
            if self._waiting or self._unbooked or self.parts.log.broken:
                return
        size = len(self.parts.log)
        with self._lock:
            # What was handed in since the first look is on the way still, or waits for this thread to be booked.
            if self._waiting or self._unbooked or size < self._logged + ADVANCE:
                return
            self._logged = size
        self.parts.store.remember(size)

    def _end(self) -> None:
        """Book what waits, give back what is not promised, and end this run unless something is left for recovery."""
        self._bring_up(time.monotonic(), close=True)
        with self._lock:
            left = self._working or self._waiting or self._unbooked or self._owed or self.parts.log.broken
        if self._prefix and not left:
            self.parts.store.leave(self._logged)

    def _renewal(self, key_id: str, purse: _Purse, least: int, wanted: int) -> Renewal:
        return Renewal(key_id, self.parts.policy.currency, purse.lease, least, wanted, promised_units=least)

    def _book(self, calls: Sequence[Metered], renewals: Sequence[Renewal], logged: int) -> None:
        """Write the books and take over the new leases. The caller holds `_books`; `logged` counts up to `calls`."""
        self._nonces += 1
        attempt = _Attempt(tuple(calls), tuple(renewals), f"{self._life}-{self._nonces}")
        try:
            leases = self.parts.store.book(
                calls, renewals, logged=logged, at_ns=self.parts.now_ns(), nonce=attempt.nonce
            )
        except RefusedError:
            self._undone(attempt)
            raise
        except BaseException:
            self._doubted = attempt  # a commit whose answer was lost may have been made
            raise
        self._done(attempt, leases)

    def _end_doubt(self) -> None:
        """Find out whether a booking that failed was made all the same. The caller holds `_books`.

        Raises:
            HeadwaterError: the database cannot be asked.
        """
        attempt = self._doubted
        if attempt is not None:
            leases = self.parts.store.booked(attempt.calls, attempt.renewals, attempt.nonce)
            self._doubted = None
            if leases is None:
                self._undone(attempt)
            else:
                self._done(attempt, leases)
        for call in tuple(self._unsure):
            if not self.parts.store.kept.has(call):
                with self._lock:
                    if (hold := self._owed.pop(call, None)) is not None:
                        self._purses[hold.key.key_id].held -= hold.units
            self._unsure.discard(call)

    def _undone(self, attempt: _Attempt) -> None:
        with self._lock:
            for renewal in attempt.renewals:
                self._purses[renewal.key_id].lease = renewal.lease

    def _done(self, attempt: _Attempt, leases: Mapping[str, Lease]) -> None:
        with self._lock:
            for renewal in attempt.renewals:
                self._purses[renewal.key_id].lease = leases.get(renewal.key_id)
            for one in attempt.calls:
                self._purses[one.call.key_id].spent -= one.call.price_units
            del self._unbooked[: len(attempt.calls)]
