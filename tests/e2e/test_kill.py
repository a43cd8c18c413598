"""Real processes, real kills: nothing acknowledged is lost, nothing is charged twice, nothing stays set aside."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from headwater.attribution.evidence import read_answer
from headwater.core.money import NANO, parse_units
from headwater.receipts import Receipt
from headwater.store.call_store import CallRecord, CallState
from toy.home import ToyHome, open_home

TESTS = Path(__file__).parents[1]
CALLERS = 6
DEPOSIT = 1_000_000 * NANO


@dataclass(frozen=True)
class Reply:
    """What a caller was given, whole."""

    text: str
    call_id: str
    price_units: int


@dataclass
class Request:
    """One thing a caller wants, and every whole reply it got for it."""

    key: str
    body: dict[str, Any]
    replies: list[Reply] = field(default_factory=list)
    given_up: bool = False  # its caller never asked again


class Lives:
    """A gateway over one home that is killed and started again, always on the same port."""

    def __init__(self, home: Path, starter: subprocess.Popen[str], secret: str, key_id: str) -> None:
        self.home, self._starter, self.secret, self.key_id = home, starter, secret, key_id
        self._pid = 0
        self.port = 0

    def start(self, point: str = "") -> None:
        """Start a gateway, one that kills itself at `point` if that is given."""
        assert self._starter.stdin is not None
        self._starter.stdin.write(json.dumps({"home": str(self.home), "port": self.port, "point": point}) + "\n")
        self._starter.stdin.flush()
        self._pid, self.port = map(int, self._read().split())

    def kill(self, kind: signal.Signals = signal.SIGKILL) -> None:
        """Kill it (or ask it to stop) and wait until it is gone."""
        os.kill(self._pid, kind)
        self.wait_gone()

    def wait_gone(self) -> None:
        """Wait until it is gone."""
        assert self._read() == "gone"
        self._pid = 0

    @property
    def alive(self) -> bool:
        """Whether one was started and has not been found gone."""
        return self._pid != 0

    def _read(self) -> str:
        assert self._starter.stdout is not None
        return self._starter.stdout.readline().strip()

    def client(self) -> openai.OpenAI:
        """OpenAI's client at the gateway that is alive now."""
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key=self.secret, max_retries=0, timeout=20
        )

    def ready(self) -> dict[str, Any]:
        """What /readyz says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=20) as response:
            return json.load(response)  # type: ignore[no-any-return]

    def wait_attributed(self) -> None:
        """Wait until every answered call has its receipt."""
        until = time.monotonic() + 60
        while (state := self.ready())["attribution"]["queue"] or state["generating"]:
            assert time.monotonic() < until, state
            time.sleep(0.02)


@pytest.fixture(scope="module")
def starter() -> Iterator[subprocess.Popen[str]]:
    """A process that has everything imported and starts gateways when it is told to."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "toy.serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=TESTS
    ) as process:
        yield process


@pytest.fixture
def gateway(tmp_path: Path, starter: subprocess.Popen[str]) -> Iterator[Lives]:
    """A funded home whose gateway may be started and killed."""
    with open_home(tmp_path) as toy:
        secret, key = toy.key(units=DEPOSIT)
    running = Lives(tmp_path, starter, secret, key.key_id)
    yield running
    if running.alive:
        running.kill()


def ask(client: openai.OpenAI, request: Request) -> None:
    """Send a request; a whole reply is kept, anything less is not."""
    headers = {"Idempotency-Key": request.key}
    if not request.body["stream"]:
        answer = client.chat.completions.create(**request.body, extra_headers=headers)
        bill = answer.headwater
        text = answer.choices[0].message.content
        request.replies.append(Reply(text, bill["receipt"], parse_units(bill["price"])))
        return
    texts, bill, finished = [], None, False
    for chunk in client.chat.completions.create(**request.body, extra_headers=headers):
        texts.append(chunk.choices[0].delta.content or "")
        finished = finished or chunk.choices[0].finish_reason is not None
        bill = getattr(chunk, "headwater", bill)
    if finished and bill is not None:
        request.replies.append(Reply("".join(texts), bill["receipt"], parse_units(bill["price"])))


def fresh(number: int, rng: random.Random) -> Request:
    """A request unlike the others."""
    body = {
        "model": rng.choice(("toy", "toy-grounded")),
        "messages": [{"role": "user", "content": f"[delay=0.0005] where does river {number} begin"}],
        "max_tokens": rng.randint(2, 40),
        "temperature": 1.0,
        "stream": rng.random() < 0.5,
    }
    return Request(f"request-{number}", body)


class Crowd:
    """Callers who ask without end, and ask again with the same key when they were cut off."""

    def __init__(self, gateway: Lives, rng: random.Random) -> None:
        self.requests: list[Request] = []
        self._gateway, self._rng = gateway, rng
        self._retry: list[Request] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Stop asking."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _call(self) -> None:
        with self._gateway.client() as client:
            while not self._over.is_set():
                request = self._next()
                try:
                    ask(client, request)
                except openai.APIError:  # cut off, or 409 because the first try is still at work
                    self._over.wait(0.02)
                with self._lock:
                    if request.replies:
                        again = self._rng.random() < 0.1  # a caller may ask for what it has
                    else:
                        again = self._rng.random() < 0.8
                        request.given_up = not again
                    if again:
                        self._retry.append(request)

    def _next(self) -> Request:
        with self._lock:
            if self._retry and self._rng.random() < 0.7:
                return self._retry.pop(self._rng.randrange(len(self._retry)))
            request = fresh(len(self.requests), self._rng)
            self.requests.append(request)
            return request


def run_lives(gateway: Lives, kills: int, seed: int) -> tuple[int, int]:
    """Kill a gateway `kills` times under load, let the last one finish, and check everything.

    Returns:
        (requests made, calls that died without an answer).
    """
    rng = random.Random(seed)
    gateway.start()
    crowd = Crowd(gateway, rng)
    for _ in range(kills):
        time.sleep(rng.uniform(0.02, 0.4))
        gateway.kill()
        gateway.start()
    crowd.leave()
    with gateway.client() as client:
        for request in crowd.requests:
            if not request.replies and not request.given_up:
                ask(client, request)
    gateway.wait_attributed()
    gateway.kill(signal.SIGTERM)
    with open_home(gateway.home) as toy:
        died = check(toy, gateway.key_id, crowd.requests)
    print(f"seed {seed}: {kills} kills, {len(crowd.requests)} requests, {died} calls died without an answer")
    return len(crowd.requests), died


def check(toy: ToyHome, key_id: str, requests: list[Request]) -> int:
    """Hold every reply against journal, ledger and log; the number of calls that died without an answer."""
    calls = [toy.calls.get(call_id) for (call_id,) in toy.db.query("SELECT call_id FROM calls ORDER BY number")]
    paid: dict[str, list[CallRecord]] = {}
    for call in calls:
        if call.state is not CallState.RELEASED:
            paid.setdefault(call.idempotency_key or "", []).append(call)

    for request in requests:
        assert len(set(request.replies)) <= 1, f"{request.key} was answered in two ways"
        found = paid.get(request.key, [])
        assert len(found) <= 1, f"{request.key} was charged {len(found)} times"
        if request.replies:
            assert len(found) == 1, f"{request.key} was acknowledged and is lost"
            (call,), reply = found, request.replies[0]
            assert (call.call_id, call.price_units) == (reply.call_id, reply.price_units)
            assert call.answer is not None
            assert read_answer(call.answer).text == reply.text
        else:
            assert request.given_up
        for call in found:
            assert call.state is CallState.ATTRIBUTED
            (entry,) = toy.log.by_call(call.call_id)
            receipt = Receipt.from_bytes(toy.log.at(entry.index).raw)
            assert (entry.id, receipt.price) == (call.receipt_id, call.price_units)

    attributed = [call for call in calls if call.state is CallState.ATTRIBUTED]
    released = [call for call in calls if call.state is CallState.RELEASED]
    assert len(attributed) + len(released) == len(calls)
    assert len(toy.log) == len(attributed)
    balance = toy.ledger.balance(f"payer:{key_id}", toy.currency)
    assert balance.reserved_out_units == 0
    assert DEPOSIT - balance.balance_units == sum(call.price_units or 0 for call in attributed)
    assert toy.calls.check() == ()
    return len(released)


def test_kills_at_random_points_lose_nothing_and_charge_nothing_twice(gateway: Lives) -> None:
    """Fifteen lives under load, each ended by kill -9; clients that ask again get the same answer for one price."""
    requests, died = run_lives(gateway, kills=15, seed=20261122)

    assert requests > 30
    assert died > 5  # the kills did strike calls at work


@pytest.mark.slow
def test_many_kills_at_random_points(gateway: Lives) -> None:
    """A hundred lives."""
    requests, died = run_lives(gateway, kills=100, seed=1)

    assert requests > 200
    assert died > 50


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "point",
    [
        "before CallStore.begin",
        "after CallStore.begin",
        "before CallStore.answered",
        "after CallStore.answered",
        "before ReceiptLog.append",
        "after ReceiptLog.append",
        "before CallStore.attributed",
        "after CallStore.attributed",
    ],
)
def test_a_kill_between_any_two_steps_is_made_good(gateway: Lives, point: str, stream: bool) -> None:
    """At each border between memory, journal, ledger and log: one retry, one answer, one charge, one receipt."""
    request = fresh(0, random.Random(1))
    request.body["stream"] = stream
    gateway.start(point)
    with gateway.client() as client:
        with suppress(openai.APIError):
            ask(client, request)
        gateway.wait_gone()
        gateway.start()
        ask(client, request)
    gateway.wait_attributed()
    gateway.kill(signal.SIGTERM)
    with open_home(gateway.home) as toy:
        check(toy, gateway.key_id, [request])
        assert toy.db.query("SELECT count(*) FROM calls WHERE state = 'attributed'") == [(1,)]
