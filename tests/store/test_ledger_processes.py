"""Several processes, kill -9 and a disk that refuses: what was acknowledged is there, once, and nothing else is."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headwater.core.ids import call_id
from headwater.ledger import CASH, CLEARING, deposit
from headwater.store.call_store import CallState, CallStore
from headwater.store.database import Database
from headwater.store.key_store import KeyStore
from headwater.store.ledger_store import Ledger

USD = "USD"
WORKER = Path(__file__).with_name("ledger_worker.py")


def start(*arguments: object) -> subprocess.Popen[bytes]:
    """Start a worker process; it writes one line for each thing that was acknowledged."""
    command = [sys.executable, str(WORKER), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kill_after(worker: subprocess.Popen[bytes], lines: int, pause_s: float) -> list[str]:
    """Let the worker acknowledge `lines` things, wait a little, kill -9 it; all it acknowledged."""
    assert worker.stdout is not None
    assert worker.stderr is not None
    heard = [worker.stdout.readline() for _ in range(lines)]
    time.sleep(pause_s)
    worker.kill()
    # Not `communicate`: it would pass over lines that `readline` has already taken into its buffer.
    heard += worker.stdout.readlines()
    assert worker.stderr.read() == b""
    worker.wait()
    return [line.decode().strip() for line in heard if line.endswith(b"\n")]


def expected_amounts(seed: int, number: int) -> list[int]:
    """The deposits of batch `number`, as the worker makes them."""
    rng = random.Random(seed * 1_000_003 + number)
    return [rng.randrange(1, 10**6) for _ in range(rng.randrange(1, 40))]


def kill_posting(path: Path, seed: int, kills: int) -> None:
    """Kill a poster again and again; each next one starts over from the first batch and so repeats every key."""
    rng = random.Random(seed)
    acknowledged: set[int] = set()
    for _ in range(kills):
        worker = start("post", path, seed)
        acknowledged |= {int(line) for line in kill_after(worker, rng.randrange(1, 30), rng.random() * 0.02)}
        with Database(path) as db:
            ledger = Ledger(db)
            assert (ledger.check(), db.integrity()) == ((), ())
            booked = {int(key.removeprefix("batch:")): size for key, size in db.query("SELECT key, size FROM batches")}
        assert acknowledged <= set(booked)
        # Batches are posted in order, so at most the one being posted may be there unacknowledged.
        assert set(booked) == set(range(len(booked)))
        assert len(booked) <= max(acknowledged) + 2
        assert all(size == len(expected_amounts(seed, number)) for number, size in booked.items())
    with Database(path) as db:
        total = sum(sum(expected_amounts(seed, number)) for number in booked)
        assert Ledger(db).balance(CASH, USD).balance_units == total


def kill_calls(path: Path, seed: int, kills: int) -> None:
    """Kill a server of calls again and again at any point of a call, recovering each time as a restart does."""
    rng = random.Random(seed)
    with Database(path) as db:
        _, key = KeyStore(db).create("demo", bytes(32), 0)
        Ledger(db).post([deposit(key.account, 10**12, asset=USD, cause="d")], key="d", at_ns=0)
    said: dict[int, str] = {}
    for round_number in range(kills):
        worker = start("call", path, seed, round_number, key.key_id)
        for line in kill_after(worker, rng.randrange(1, 25), rng.random() * 0.02):
            number, state = line.split()
            said[int(number)] = state
        with Database(path) as db:
            ledger = Ledger(db)
            calls = CallStore(db, ledger, KeyStore(db), run_id=f"check-{round_number}")
            found = calls.recover(at_ns=10**9)
            assert (calls.check(), db.integrity()) == ((), ())
            records = {number: calls.get(call_id(number.to_bytes(16, "big"))) for number in said}
            for number, state in said.items():
                record = records[number]
                # What the client was told is kept: an answer stays answered at its price, a failure costs nothing.
                if state in ("answered", "attributed"):
                    assert record.state in (CallState.ANSWERED, CallState.ATTRIBUTED)
                    assert (record.price_units, record.answer) == (100 + number % 50, b"answer %d" % number)
                if state == "attributed":
                    assert record.state is CallState.ATTRIBUTED
                if state == "released":
                    assert record.state is CallState.RELEASED
                if state == "progress":  # charged for it, unless the worker itself gave up before it was killed
                    assert record.price_units or record.failure == "upstream_failed"
            assert all(calls.get(call).state is CallState.RELEASED for call in found.released)
            assert all(calls.get(call).price_units == 7 for call in found.charged)
            assert db.query("SELECT count(*) FROM calls WHERE state = 'reserved'") == [(0,)]
            ((prices,),) = db.query("SELECT coalesce(sum(price_units), 0) FROM calls")
            assert ledger.balance(key.account, USD).balance_units == 10**12 - prices
            assert ledger.balance(key.account, USD).reserved_out_units == 0
            calls.close()
    assert {"answered", "attributed"} & set(said.values())


def test_killed_posters_lose_and_double_nothing(tmp_path: Path) -> None:
    """Twenty kills at random moments of posting: no acknowledged batch is lost, no repeated one is booked twice."""
    kill_posting(tmp_path / "headwater.db", seed=11, kills=20)


def test_killed_servers_of_calls_lose_and_charge_nothing_twice(tmp_path: Path) -> None:
    """Twenty kills at random moments of a call: what a client was told is kept, and every unit is accounted for."""
    kill_calls(tmp_path / "headwater.db", seed=12, kills=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_many_more_kills(tmp_path: Path, seed: int) -> None:
    """Fifty kills of each kind per seed."""
    kill_posting(tmp_path / "post.db", seed=100 + seed, kills=50)
    kill_calls(tmp_path / "call.db", seed=200 + seed, kills=50)


def test_two_processes_racing_for_the_last_unit(tmp_path: Path) -> None:
    """Whoever comes first, exactly the credit is reserved and every refusal is a clean one."""
    path = tmp_path / "headwater.db"
    with Database(path) as db:
        Ledger(db).post([deposit("payer:key_1", 60, asset=USD, cause="d")], key="d", at_ns=0)
    workers = [start("race", path, name) for name in ("left", "right")]
    outcomes: list[str] = []
    for worker in workers:
        said, errors = worker.communicate(timeout=60)
        assert (worker.returncode, errors) == (0, b"")
        outcomes += said.decode().split()
    assert {word: outcomes.count(word) for word in set(outcomes)} == {"reserved": 60, "insufficient_credit": 60}
    with Database(path) as db:
        ledger = Ledger(db)
        assert ledger.available("payer:key_1", USD) == 0
        assert ledger.balance(CLEARING, USD).reserved_in_units == 60
        assert ledger.check() == ()


@pytest.mark.sqlite
def test_a_disk_that_takes_no_more_bytes_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """When the operating system refuses to let the files grow, posting stops with a clear code and nothing is half."""
    path = tmp_path / "headwater.db"
    worker = start("full", path, 5)
    said, errors = worker.communicate(timeout=60)
    assert (worker.returncode, errors) == (0, b"")
    *numbers, code = said.decode().split()
    assert code in ("disk_full", "disk_failed")
    with Database(path) as db:
        ledger = Ledger(db)
        assert (ledger.check(), db.integrity()) == ((), ())
        booked = {int(key.removeprefix("batch:")) for (key,) in db.query("SELECT key FROM batches")}
        assert booked == {int(number) for number in numbers}
        assert len(booked) > 3
        # With room again, the refused batch is booked under its own key.
        amounts = expected_amounts(5, len(booked))
        drafts = [deposit(f"payer:key_{n}", amount, asset=USD, cause="d") for n, amount in enumerate(amounts)]
        assert not ledger.post(drafts, key=f"batch:{len(booked)}", at_ns=1).replayed
