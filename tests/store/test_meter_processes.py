"""Real processes over one home: they race, are killed at every stage, and others recover what they leave.

The test is the owner of the log, as the head of a gateway is; the processes are `meter_worker`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import meter_worker
import pytest

from headwater.core.instants import SECOND_NS
from headwater.ledger import deposit
from headwater.meter import Meter, MeterParts
from headwater.receipts import Receipt
from headwater.store.call_store import CallStore
from headwater.store.home_database import open_home_database
from headwater.store.key_limits import DAY_NS, KeyLimits
from headwater.store.key_store import KeyRecord, KeyStore
from headwater.store.ledger_store import Ledger
from headwater.store.log_service import LogService
from headwater.store.metered_store import MeteredStore
from headwater.store.receipt_log import ReceiptLog

START_S = 0.15
"""How far ahead an instant is agreed on at which processes begin together."""


class Refusal(Exception):
    """A process refused an order, with a code."""


class Process:
    """A `meter_worker`, begun."""

    def __init__(self, site: Site, *, books: bool) -> None:
        script = str(Path(__file__).with_name("meter_worker.py"))
        self._peer = subprocess.Popen(
            [sys.executable, script, str(site.home), site.setting, str(site.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.send("begin", books=books)

    def send(self, order: str, **arguments: Any) -> None:
        """Give an order."""
        assert self._peer.stdin is not None
        self._peer.stdin.write(json.dumps([order, arguments]) + "\n")
        self._peer.stdin.flush()

    def said(self) -> Any:
        """What the oldest order that was not read yet came to."""
        assert self._peer.stdout is not None
        line = self._peer.stdout.readline()
        assert line, "the process ended"
        answer = json.loads(line)
        if "code" in answer:
            raise Refusal(answer["code"])
        return answer["said"]

    def ask(self, order: str, **arguments: Any) -> Any:
        """Give an order and read what it came to."""
        self.send(order, **arguments)
        return self.said()

    def kill(self) -> None:
        """kill -9."""
        self._peer.kill()
        self._peer.wait()

    def stop(self) -> None:
        """End it in order."""
        self.ask("stop")
        assert self._peer.wait(20) == 0

    def close(self) -> None:
        """Leave nothing running."""
        self.kill()
        for stream in (self._peer.stdin, self._peer.stdout):
            assert stream is not None
            stream.close()


class Site:
    """A home, the owner of its log, and its processes."""

    def __init__(self, home: Path, setting: str, folder: Path) -> None:
        self.home, self.setting, self.folder = home, setting, folder
        home.mkdir()
        self.db = open_home_database(home, setting, create=True)
        self.ledger, self.keys = Ledger(self.db), KeyStore(self.db)
        self.calls = CallStore(self.db, self.ledger, self.keys, run_id="the-head")
        self.store = MeteredStore(self.db, self.ledger, self.keys, self.calls)
        self.writing, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.log = ReceiptLog.open(home / "receipts.log", sync=self._sync)
        self.service = LogService(self.log, folder / "log")
        self.service.start()
        worker = meter_worker
        self.meter = Meter(
            MeterParts(
                *(self.store, self.log, worker.SIGNER, worker.POLICY, lambda: worker.DIGEST, time.time_ns, os.urandom)
            )
        )
        self.meter.begin()
        self.processes: list[Process] = []
        self.deposits = 0

    def _sync(self, handle: int) -> None:
        self.writing.set()
        self.go_on.wait(20)
        os.fdatasync(handle)

    def key(self, units: int, limits: KeyLimits | None = None) -> KeyRecord:
        """A key with credit."""
        self.deposits += 1
        _, key = self.keys.create(f"key {self.deposits}", os.urandom(32), 1, limits=limits)
        draft = deposit(key.account, units, asset=meter_worker.POLICY.currency, cause="d")
        self.ledger.post([draft], key=f"deposit:{key.key_id}", at_ns=1)
        return key

    def start(self, count: int, *, books: bool = False) -> list[Process]:
        """So many processes, begun; they keep their books behind them, or only when told."""
        begun = [Process(self, books=books) for _ in range(count)]
        self.processes += begun
        self.runs = [process.said() for process in begun]
        return begun

    def recover(self) -> int:
        """What the head does when a worker died."""
        return self.meter.recover_dead(self.service.fence)

    def together(self) -> float:
        """An instant shortly ahead."""
        return time.time() + START_S

    def spent(self, key: KeyRecord, deposited: int) -> int:
        """What was charged to a key."""
        return deposited - self.ledger.balance(key.account, meter_worker.POLICY.currency).balance_units

    def prices(self) -> int:
        """The sum of the log's receipts."""
        return sum(Receipt.from_bytes(logged.raw).price for logged in self.log)

    def check(self) -> None:
        """Nothing is left behind, and all books are right."""
        assert self.calls.check() == ()
        assert self.db.query("SELECT count(*) FROM leases") == [(0,)]
        assert self.db.query("SELECT sum(price_units) FROM calls") == [(self.prices() or None,)]
        assert self.db.query("SELECT count(*) FROM calls") == [(len(self.log),)]

    def close(self) -> None:
        """Give everything back."""
        self.go_on.set()
        for process in self.processes:
            process.close()
        self.meter.close()
        self.service.close()
        self.log.close()
        self.calls.close()
        self.db.close()


@contextmanager
def opened(home: Path, setting: str) -> Iterator[Site]:
    """A site, with a private folder whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="hw-") as folder:
        site = Site(home, setting, Path(folder))
        try:
            yield site
        finally:
            site.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """A site on either engine."""
    setting = request.getfixturevalue("postgres").fresh() if request.param == "postgres" else ""
    with opened(tmp_path / "home", setting) as running:
        yield running


@pytest.fixture
def sqlite_site(tmp_path: Path) -> Iterator[Site]:
    """A site on SQLite, for what does not depend on the engine."""
    with opened(tmp_path / "home", "") as running:
        yield running


def test_two_processes_race_for_the_last_cent(site: Site) -> None:
    """Calls of 10 out of 200 from two sides, one of which has leased all: 20 are charged, neither more nor fewer."""
    first, second = site.start(2, books=True)
    key = site.key(200)
    first.ask("release", number=first.ask("hold", key_id=key.key_id, units=10))
    at_s = site.together()
    for process in (first, second):
        process.send("race", key_id=key.key_id, units=10, tries=15, at_s=at_s)
    outcomes = [*first.said(), *second.said()]
    assert outcomes.count("charged") == 20
    assert set(outcomes) == {"charged", "insufficient_credit"}
    first.stop()
    second.stop()
    assert site.spent(key, 200) == 200
    site.check()


def test_a_process_is_killed_at_each_stage_and_another_recovers_it(site: Site) -> None:
    """Held: free again. Sent, in the log but unknown to its sender: charged. Logged and not booked: charged, once.

    A third process lives on meanwhile: what it has on its way is left to it, and booked by it.
    """
    key = site.key(10_000)
    dead, live = site.start(2)
    dead.ask("hold", key_id=key.key_id, units=1_000)  # held, never answered
    logged = dead.ask("charge", number=dead.ask("hold", key_id=key.key_id, units=300), price=250)
    of_live = live.ask("charge", number=live.ask("hold", key_id=key.key_id, units=40), price=40)
    live.ask("hold", key_id=key.key_id, units=500)
    sent = dead.ask("hold", key_id=key.key_id, units=100)
    site.writing.clear()
    site.go_on.clear()
    dead.send("charge", number=sent, price=100)
    assert site.writing.wait(20)
    dead.kill()  # its receipt is in the file, and nobody was told
    recovering = threading.Thread(target=site.recover)
    recovering.start()
    recovering.join(0.05)
    assert recovering.is_alive()  # until the log has all of it
    site.go_on.set()
    recovering.join(20)

    booked = dict(site.db.query("SELECT call_id, price_units FROM calls"))
    assert logged in booked
    assert of_live not in booked
    assert sorted(booked.values()) == [100, 250]
    assert site.db.query("SELECT DISTINCT run_id FROM leases") == [(site.runs[1],)]
    assert site.recover() == 0
    live.ask("charge", number=1, price=500)
    live.ask("book")
    live.stop()
    assert site.spent(key, 10_000) == 890
    site.check()


def test_what_dies_unrecovered_is_settled_by_the_next_owner(sqlite_site: Site) -> None:
    """The owner of the log ends with workers dead behind it; another one that begins books what they logged."""
    site = sqlite_site
    key = site.key(1_000)
    (dead,) = site.start(1)
    for price in (10, 20, 30):
        dead.ask("charge", number=dead.ask("hold", key_id=key.key_id, units=100), price=price)
    dead.kill()
    site.meter.close()
    calls = CallStore(site.db, site.ledger, site.keys, run_id="the-next")
    store = MeteredStore(site.db, site.ledger, site.keys, calls)
    worker = meter_worker
    following = Meter(
        MeterParts(store, site.log, worker.SIGNER, worker.POLICY, lambda: worker.DIGEST, time.time_ns, os.urandom)
    )
    assert following.begin() == 3
    assert following.recover_dead() == 0
    following.close()
    calls.close()
    assert site.spent(key, 1_000) == 60
    site.check()


def test_a_worker_that_loses_the_log_ends_nothing_and_is_settled(sqlite_site: Site) -> None:
    """Its calls fail and stay held; what was in the log is charged when it is recovered, nothing else is."""
    site = sqlite_site
    key = site.key(100)
    (worker,) = site.start(1)
    worker.ask("charge", number=worker.ask("hold", key_id=key.key_id, units=30), price=30)
    held = worker.ask("hold", key_id=key.key_id, units=70)
    site.service.close()
    with pytest.raises(Refusal, match="log_unreachable"):
        worker.ask("charge", number=held, price=70)
    with pytest.raises(Refusal, match="insufficient_credit"):
        worker.ask("hold", key_id=key.key_id, units=70)  # it may be charged still, for all this process knows
    worker.kill()
    assert site.recover() == 1
    assert site.spent(key, 100) == 30
    site.check()


def test_an_idempotency_key_at_two_processes_at_once_is_one_answer_and_one_price(site: Site) -> None:
    """Whoever comes second waits for its turn or gets the first one's words; the key with another body is refused."""
    key = site.key(1_000)
    both = site.start(2)
    for number in range(5):
        at_s = site.together()
        for process in both:
            process.send("ask", key_id=key.key_id, name=f"order-{number}", body="a", price=7, at_s=at_s)
        answers, waiting = [], []
        for process in both:
            with suppress(Refusal):  # the other one is at work
                answers.append(process.said())
                continue
            waiting.append(process)
        assert len(waiting) < 2
        for process in waiting:
            request = {"key_id": key.key_id, "name": f"order-{number}", "price": 7, "at_s": 0}
            answers.append(process.ask("ask", body="a", **request))
            with pytest.raises(Refusal, match="idempotency_conflict"):
                process.ask("ask", body="b", **request)
        assert sorted(what for what, _ in answers) == ["answered", "replayed"]
        assert len({answer for _, answer in answers}) == 1
    for process in both:
        process.stop()
    assert site.spent(key, 1_000) == 35
    site.check()


def test_a_claim_of_a_killed_process_is_free(sqlite_site: Site) -> None:
    """While it is at work others are told to wait, or that the request differs; killed, its key is anybody's."""
    site = sqlite_site
    key = site.key(1_000)
    dead, live = site.start(2)
    dead.ask("claim", key_id=key.key_id, name="order-1", body="a")
    request = {"key_id": key.key_id, "name": "order-1", "price": 7, "at_s": 0}
    with pytest.raises(Refusal, match="call_in_progress"):
        live.ask("ask", body="a", **request)
    with pytest.raises(Refusal, match="idempotency_conflict"):
        live.ask("ask", body="b", **request)
    dead.kill()
    assert live.ask("ask", body="b", **request)[0] == "answered"
    live.stop()
    site.recover()
    assert list((site.folder / "claims").iterdir()) == []
    site.check()


def test_vouchers_shown_to_two_processes_are_credited_once(site: Site) -> None:
    """The same rising series from both sides, at once: each is taken by one, and the credit is the newest one's."""
    both = site.start(2)
    at_s = site.together()
    amounts = list(range(10, 210, 10))
    for process in both:
        process.send("voucher", amounts=amounts, at_s=at_s)
    outcomes = [process.said() for process in both]
    assert {outcome for told in outcomes for outcome in told} == {"taken", "voucher_replayed"}
    at_s = site.together()
    for process in both:
        process.send("voucher", amounts=[500], at_s=at_s)
    assert sorted(process.said()[0] for process in both) == ["taken", "voucher_replayed"]
    key = site.keys.payer(meter_worker.PAYER, 1)
    assert site.ledger.balance(key.account, meter_worker.POLICY.currency).balance_units == 500 * 1_000
    for process in both:
        process.stop()
    site.check()


def test_rates_are_exact_over_processes(sqlite_site: Site) -> None:
    """Two processes that take a key's minute together get one minute's worth, and give back for each other."""
    site = sqlite_site
    requests = site.key(1, KeyLimits(requests_per_minute=100))
    tokens = site.key(1, KeyLimits(tokens_per_minute=10_000))
    both = site.start(2)
    for key, arguments, most in (
        (requests, {"tokens": 0, "used": 0}, 100),
        (tokens, {"tokens": 1_000, "used": 50}, 1_000 // 5 - 19 + 20),
    ):
        at_s = site.together()
        began_ns = time.monotonic_ns()
        for process in both:
            process.send("rate", key_id=key.key_id, tries=300, at_s=at_s, **arguments)
        passed = sum(process.said() for process in both)
        dripped = (time.monotonic_ns() - began_ns) * most // (60 * SECOND_NS) + 1
        assert most - 20 * (arguments["used"] > 0) <= passed <= most + dripped
    for process in both:
        process.stop()


def test_a_budget_of_the_day_holds_over_processes_and_clocks_that_step(site: Site) -> None:
    """100 a day from two sides is 100; the next day is new, also for a clock that is set back after it."""
    key = site.key(10_000, KeyLimits(budget_day_units=100))
    both = site.start(2)
    ahead = DAY_NS - time.time_ns() % DAY_NS + 3_600 * SECOND_NS  # an hour into the next day
    for day, ahead_ns in enumerate((ahead, ahead + DAY_NS)):
        for process in both:
            process.ask("clock", ahead_ns=ahead_ns)
        at_s = site.together()
        for process in both:
            process.send("race", key_id=key.key_id, units=10, tries=8, at_s=at_s)
        outcomes = [outcome for process in both for outcome in process.said()]
        assert outcomes.count("charged") == 10, day
        assert set(outcomes) == {"charged", "budget_exceeded"}
        for process in both:
            process.ask("book")
    for process in both:
        process.ask("clock", ahead_ns=ahead)
        with pytest.raises(Refusal, match="budget_exceeded"):
            process.ask("hold", key_id=key.key_id, units=10)
        process.stop()
    assert site.spent(key, 10_000) == 200
    site.check()
