"""Several meters over one home, in one process: whatever lives, dies, books and recovers in whatever order.

A model of a gateway's processes that Hypothesis drives: the owner of the log and workers that hand it their receipts,
each with its own connection to the books. Killing one drops it with all it had in memory, as `kill -9` does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headwater.core.errors import ConflictError, HeadwaterError, RefusedError, UpstreamError
from headwater.ledger import deposit
from headwater.meter import Meter, MeterParts
from headwater.metered import Charged, Hold, Used
from headwater.receipts import Issued, KeySigner, Receipt
from headwater.splits import Policy
from headwater.store.call_store import CallStore
from headwater.store.database import Database
from headwater.store.kept_store import KeptAnswer
from headwater.store.key_limits import DAY_NS, KeyLimits
from headwater.store.key_store import KeyRecord, KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.metered_store import MeteredStore
from headwater.store.receipt_admission import Entry
from headwater.store.receipt_log import ReceiptLog

DIGEST = "sha256:" + "1" * 64
POLICY = Policy.from_toml(files("headwater.splits").joinpath("default_policy.toml").read_text("utf-8"))
SIGNER = KeySigner(b"\x01" * 32)
CREDIT = 2_000
DAY_BUDGET = 400
CEILINGS = st.sampled_from([40, 100, 7, 250, 700])
PARTS = st.sampled_from([1.0, 0.4, 0.0])
AT = st.integers(0, 3)
FATES = st.sampled_from(["store"] * 5 + ["refuse", "before", "after"])


class Handed:
    """The log as a worker has it: its owner appends, until it is fenced or lost."""

    def __init__(self, log: ReceiptLog) -> None:
        self._log, self.broken, self.fenced = log, False, False
        self.next = "store"  # or "refuse", or lose the answer "before" or "after" it is stored

    def __len__(self) -> int:
        if self.broken:
            raise UpstreamError("lost", code="log_unreachable")
        return len(self._log)

    def append_each(self, receipts: Sequence[tuple[bytes, str]]) -> Sequence[Entry | HeadwaterError]:
        """Store, or not, as `next` says."""
        fate, self.next = self.next, "store"
        if self.fenced:
            return [ConflictError("fenced", code="run_fenced")] * len(receipts)
        if fate == "refuse":
            return [UpstreamError("full", code="disk_full")] * len(receipts)
        if self.broken or fate == "before":
            self.broken = True
            return [UpstreamError("lost", code="log_unreachable")] * len(receipts)
        outcomes = self._log.append_each(receipts)
        if fate == "after":
            self.broken = True
            return [UpstreamError("lost", code="log_unreachable")] * len(receipts)
        return outcomes


class Asking:
    """Asks the other meters of this process for credit, and has it at once."""

    def __init__(self, others: Callable[[], list[Callable[[str], None]]]) -> None:
        self._others = others
        self.told: Callable[[str], None] | None = None

    def listen(self, told: Callable[[str], None]) -> None:
        """Keep whom to tell."""
        self.told = told

    def ask(self, key_id: str) -> int:
        """Tell the others."""
        asked = [other for other in self._others() if other != self.told]
        for other in asked:
            other(key_id)
        return len(asked)


class Process:
    """One process: its connection, its run, its meter and what it has at work."""

    def __init__(self, desk: Desk, log: Any) -> None:
        self.db = open_database(desk.path)
        ledger, keys = Ledger(self.db), KeyStore(self.db)
        self.calls = CallStore(self.db, ledger, keys, run_id=os.urandom(16).hex())
        self.log, self.store = log, MeteredStore(self.db, ledger, keys, self.calls)
        self.meter = Meter(MeterParts(self.store, log, SIGNER, POLICY, lambda: DIGEST, lambda: desk.now_ns, os.urandom))
        self.asking = Asking(lambda: [one.asking.told for one in desk.living() if one.asking.told is not None])
        self.meter.join(self.asking)  # type: ignore[arg-type]
        self.holds: list[Hold] = []
        self.outage = ""  # of the database, at the next booking or keeping: "before" it is made, or "after"
        self.store.book = self._failing(self.store.book)  # type: ignore[method-assign]
        self.store.kept.keep = self._failing(self.store.kept.keep)  # type: ignore[method-assign]

    def _failing(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any, **named: Any) -> Any:
            outage, self.outage = self.outage, ""
            if outage == "before":
                raise UpstreamError("gone", code="database_unreachable")
            done = work(*arguments, **named)
            if outage == "after":
                raise UpstreamError("gone", code="database_unreachable")
            return done

        return failing

    def hold(self, key: KeyRecord, units: int) -> None:
        """Hold a call's ceiling, asking others for credit when there is not enough."""
        for _ in range(3):
            if (hold := self.meter.hold(key, units)) is not None:
                self.holds.append(hold)
                return
            try:
                self.meter.lease(key, units)
            except RefusedError as error:
                if not self.meter.recall(key, error):
                    return
            except UpstreamError:
                return

    def charge(self, hold: Hold, price: int, name: str | None) -> None:
        """Charge, and keep the answer when it has a name."""
        self.holds.remove(hold)
        used = Used("m", DIGEST, DIGEST, DIGEST, 1, 1, price, "count")

        async def keep(issued: Issued, charged: Charged) -> None:
            self.store.kept.keep(
                KeptAnswer(
                    *(hold.key.key_id, str(name), DIGEST, charged.call_id, False),
                    answer=b"x",
                    receipt=issued.raw,
                    signature=issued.signature,
                )
            )

        async def work() -> None:
            with suppress(UpstreamError, ConflictError):
                await self.meter.charge(hold, used, None if name is None else keep)
            await self.meter.drain()

        asyncio.run(work())

    def kill(self) -> None:
        """Drop it with all it has in memory."""
        self.calls.close()
        self.db.close()

    def stop(self) -> None:
        """End it in order."""
        for hold in self.holds:
            self.meter.release(hold)
        self.holds.clear()
        self.meter.close()
        self.kill()


class Desk:
    """The home, its payers and its processes; the first one owns the log."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="hw-meters-"))
        self.now_ns = 100 * DAY_NS
        self.log = ReceiptLog.open(self.path / "receipts.log", sync=lambda _: None)
        self.db = open_database(self.path)
        self.ledger, keys = Ledger(self.db), KeyStore(self.db)
        self.calls = CallStore(self.db, self.ledger, keys)
        self.observer = MeteredStore(self.db, self.ledger, keys, self.calls)
        self.keys = [
            keys.create("free", b"\x05" * 32, 1)[1],
            keys.create("by day", b"\x06" * 32, 1, limits=KeyLimits(budget_day_units=DAY_BUDGET))[1],
        ]
        for key in self.keys:
            draft = deposit(key.account, CREDIT, asset=POLICY.currency, cause="d")
            self.ledger.post([draft], key=f"deposit:{key.key_id}", at_ns=1)
        self.logged: dict[str, int] = {}  # what `prices` has read
        self.workers: list[Process] = []
        self.head = Process(self, self.log)
        self.head.meter.begin()
        self.start_worker()
        self.start_worker()

    def living(self) -> list[Process]:
        """Every process."""
        return [self.head, *self.workers]

    def fence(self, run_id: str) -> None:
        """Dead processes of this model append nothing; a living one must never be fenced."""
        assert run_id not in [one.calls.run_id for one in self.living()]

    def start_worker(self) -> None:
        """One more."""
        worker = Process(self, Handed(self.log))
        worker.meter.begin()
        self.workers.append(worker)

    def restart_head(self, *, kill: bool) -> None:
        """Another owner of the log; workers of the old one live on for a moment, without a log."""
        if kill:
            self.head.kill()
        else:
            self.head.stop()
        for worker in self.workers:
            worker.log.broken = True
        self.head = Process(self, self.log)
        self.head.meter.begin()

    def close(self) -> None:
        """Give the files back."""
        for one in self.living():
            one.kill()
        self.db.close()
        self.log.close()
        shutil.rmtree(self.path)

    # What holds

    def prices(self) -> dict[str, int]:
        """What the log's receipts cost, by call."""
        for logged in self.log.entries(len(self.logged)):
            receipt = Receipt.from_bytes(logged.raw)
            assert receipt.call_id not in self.logged
            self.logged[receipt.call_id] = receipt.price
        return self.logged

    def booked(self) -> dict[str, int]:
        """What the journal says calls cost."""
        return dict(self.db.query("SELECT call_id, price_units FROM calls"))

    def check(self) -> None:
        """What holds after every step."""
        assert self.calls.check() == ()
        prices, booked = self.prices(), self.booked()
        assert booked.items() <= prices.items()
        charged = sum(CREDIT - self.ledger.balance(key.account, POLICY.currency).balance_units for key in self.keys)
        assert charged == sum(booked.values())
        for key in self.keys:
            leased = dict(
                self.db.query("SELECT run_id, sum(units) FROM leases WHERE key_id = ? GROUP BY run_id", (key.key_id,))
            )
            for one in self.living():
                purse, doubted = one.meter._purses.get(key.key_id), one.meter._doubted
                if purse is None:
                    continue
                promised, has = purse.held + purse.spent, leased.get(one.calls.run_id, 0)
                if doubted is None:
                    assert purse.units <= has
                else:  # what it was to book may have left the lease already
                    gone = (each.call for each in doubted.calls if each.call.call_id in booked)
                    promised -= sum(call.price_units for call in gone if call.key_id == key.key_id)
                assert 0 <= promised <= has
        for one in self.living():  # nobody else books what a living meter has to book
            if one.meter._doubted is not None:
                continue  # it may have done so itself, and not have been told
            assert not booked.keys() & {waiting.call.call_id for waiting in one.meter._unbooked}

    def settle(self) -> None:
        """All die, the next start recovers: every receipt is charged, once, and nothing is left."""
        for one in self.living():
            one.kill()
        self.workers.clear()
        self.head = Process(self, self.log)
        self.head.meter.begin()
        self.check()
        assert self.booked() == self.prices()
        assert self.db.query("SELECT count(*) FROM leases") == [(0,)]
        assert self.observer.kept.unbooked() == ()
        assert list(self.observer.marks()) == [self.head.calls.run_id]
        for key in self.keys:
            assert self.ledger.balance(key.account, POLICY.currency).reserved_out_units == 0


def open_database(path: Path) -> Database:
    """A connection that does not wait for the disk: killing here is not a power cut."""
    db = Database(path / "headwater.db")
    db.query("PRAGMA synchronous = OFF")
    return db


class SeveralMeters(RuleBasedStateMachine):
    """Anything, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk()
        self.names = 0

    def process(self, at: int) -> Process:
        """One of those that live."""
        living = self.desk.living()
        return living[at % len(living)]

    @rule()
    @precondition(lambda self: len(self.desk.workers) < 3)
    def start(self) -> None:
        """A worker begins."""
        self.desk.start_worker()

    @rule(at=AT, key=st.integers(0, 1), units=CEILINGS)
    def hold(self, at: int, key: int, units: int) -> None:
        """A call is admitted, or refused."""
        self.process(at).hold(self.desk.keys[key], units)

    @rule(at=AT, part=PARTS, fate=FATES, kept=st.booleans())
    def charge(self, at: int, part: float, fate: str, kept: bool) -> None:
        """A call answers; its receipt is stored, refused, or nobody knows."""
        process = self.process(at)
        if not process.holds:
            return
        if isinstance(process.log, Handed):
            process.log.next = fate
        hold, self.names = process.holds[0], self.names + 1
        process.charge(hold, int(hold.units * part), f"name-{self.names}" if kept else None)

    @rule(
        calls=st.lists(st.tuples(AT, st.integers(0, 1), CEILINGS, PARTS, FATES, st.booleans()), min_size=2, max_size=8)
    )
    def calls(self, calls: list[tuple[int, int, int, float, str, bool]]) -> None:
        """Whole calls, here and there."""
        for at, key, units, part, fate, kept in calls:
            self.hold(at, key, units)
            self.charge(at, part, fate, kept)

    @rule(at=AT)
    def charge_owed(self, at: int) -> None:
        """A kept answer is asked for again, where its receipt could not be written before."""
        process = self.process(at)
        for call, raw, signature in self.desk.observer.kept.unbooked():
            if process.meter.owes(call):

                async def work(call: Any = call, raw: bytes = raw, signature: str = signature) -> None:
                    with suppress(UpstreamError):
                        await process.meter.charge_kept(call, raw, signature)
                    await process.meter.drain()

                asyncio.run(work())

    @rule(at=AT)
    def release(self, at: int) -> None:
        """A call does not answer."""
        process = self.process(at)
        if process.holds:
            process.meter.release(process.holds.pop())

    @rule(at=AT)
    def book(self, at: int) -> None:
        """Books follow."""
        with suppress(UpstreamError):
            self.process(at).meter.settle_books()

    @rule(at=AT, when=st.sampled_from(["before", "after"]))
    def outage(self, at: int, when: str) -> None:
        """The database fails a process once, when it books or keeps next: before the commit, or after it."""
        self.process(at).outage = when

    @rule(
        what=st.sampled_from(["kill", "kill and recover", "stop", "recover", "head dies", "head ends", "clock"]),
        at=st.integers(0, 2),
        hours=st.sampled_from([-30, -1, 5, 24]),
    )
    def event(self, what: str, at: int, hours: int) -> None:
        """Workers die or end, the owner of the log settles what they left, or dies or ends itself; the clock steps."""
        desk = self.desk
        if what.startswith("kill") and desk.workers:
            desk.workers.pop(at % len(desk.workers)).kill()
        if what.endswith("recover"):
            desk.head.meter.recover_dead(desk.fence)
            assert desk.observer.dead_runs() == frozenset()
        if what == "stop" and desk.workers:
            desk.workers.pop(at % len(desk.workers)).stop()
        if what.startswith("head"):
            desk.restart_head(kill=what == "head dies")
        if what == "clock":
            desk.now_ns += hours * DAY_NS // 24

    @invariant()
    def holds(self) -> None:
        """The books are right after every step."""
        self.desk.check()

    def teardown(self) -> None:
        """And when all of it is settled."""
        try:
            self.desk.settle()
        finally:
            self.desk.close()


SHORT = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
    phases=[Phase.generate],
)
TestSeveralMeters = SeveralMeters.TestCase
TestSeveralMeters.settings = SHORT


@pytest.mark.slow
class TestSeveralMetersForLong(SeveralMeters.TestCase):
    """The same, longer."""

    settings = settings(SHORT, max_examples=250, stateful_step_count=60)
