"""One idempotency key on calls that are made differently: passed on, in process, with sources, as embeddings.

Whichever comes second finds the first, while it is at work and for ever after, so that nothing is charged twice.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from headwater.gateway import create_app, serving
from toy.desk import Desk
from toy.home import open_home
from toy.paid import vectors
from toy.rogue import Rogue, rogue
from toy.upstream import models_file

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "passed on": (CHAT, {"model": "fine"}),
    "with sources": (CHAT, {"model": "fine", "headwater": {}}),
    "in process": (CHAT, {"model": "toy"}),
    "vectors": (EMBEDDINGS, {"model": "toy-vectors", "input": "river"}),
}
ROUNDS = 12
Told = tuple[int, str]


@pytest.fixture(scope="module")
def server() -> Iterator[Rogue]:
    """An upstream that waits when it is told to."""
    with rogue() as running:
        yield running


@pytest.fixture(scope="module")
def desk(server: Rogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway before it, whose books are checked at the end."""
    config = models_file(server.url, ("fine", "held"))
    with open_home(tmp_path_factory.mktemp("home")) as toy:
        secret, key = toy.key()
        toy.flow.parts = replace(toy.flow.parts, others={"toy-vectors": vectors()})
        app = create_app(toy.flow, toy.keys, relays=toy.relays(config))
        with serving(app) as url:
            yield Desk(toy, app, url, secret, key)
        assert toy.calls.check() == ()


@pytest.fixture(autouse=True)
def settled(desk: Desk) -> Iterator[None]:
    """After each test nothing is at work or reserved, and every unit that was spent stands on a receipt."""
    yield
    desk.settled()
    desk.booked()
    assert desk.toy.db.query("SELECT 1 FROM calls WHERE state = 'reserved'") == []
    assert desk.toy.calls.check() == ()
    assert sum(receipts(desk)) == desk.toy.spent(desk.key)


def receipts(desk: Desk) -> list[int]:
    """What each receipt says was charged."""
    return [int(json.loads(logged.raw)["price"]) for logged in desk.toy.log.entries(0)]


def ask(desk: Desk, name: str, way: str, **more: object) -> Told:
    """Status, and "" or the code of the refusal."""
    path, body = WAYS[way]
    if path == CHAT:
        body = {**body, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    try:
        with desk.post({**body, **more}, {"Idempotency-Key": name}, path) as response:
            return response.status, "" if response.read() else "empty"
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["code"]


def beside(work: Callable[[], Told]) -> Callable[[], Told]:
    """Begin something; gives what waits for its end."""
    said: list[Told] = []
    thread = threading.Thread(target=lambda: said.append(work()))
    thread.start()

    def end() -> Told:
        thread.join(20)
        return said[0]

    return end


def until(true: Callable[[], bool]) -> None:
    """Wait for something."""
    last = time.monotonic() + 10
    while not true():
        assert time.monotonic() < last
        time.sleep(0.002)


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_a_key_that_was_answered_one_way_is_refused_for_good_on_another(desk: Desk, first: str, second: str) -> None:
    """409 in both orders; the same way gives the same answer again, and the price is paid once."""
    name = f"{first}, then {second}"
    before, paid = len(receipts(desk)), desk.toy.spent(desk.key)
    assert ask(desk, name, first) == (200, "")
    assert ask(desk, name, second) == ((200, "") if first == second else (409, "idempotency_conflict"))
    assert ask(desk, name, first) == (200, "")

    desk.settled()
    desk.booked()
    assert len(receipts(desk)) == before + 1
    assert desk.toy.spent(desk.key) > paid


@pytest.mark.parametrize("way", WAYS)
def test_what_was_answered_is_given_again_and_says_so(desk: Desk, way: str) -> None:
    """With the receipt of the first."""
    path, body = WAYS[way]
    if path == CHAT:
        body = {**body, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    headers, given = {"Idempotency-Key": f"again {way}"}, []
    for _ in range(2):
        with desk.post(body, headers, path) as response:
            given.append((response.headers["headwater-receipt"], response.headers["idempotent-replayed"]))
        desk.settled()
    assert given == [(given[0][0], None), (given[0][0], "true")]


@pytest.mark.parametrize("way", ["with sources", "in process", "vectors"])
def test_while_a_call_is_passed_on_its_key_is_nobody_elses(desk: Desk, server: Rogue, way: str) -> None:
    """The other way is refused at once, costs nothing, and leaves the first in peace."""
    name, asked = f"held beside {way}", len(server.seen)
    server.hold.clear()
    server.begun.clear()
    end = beside(lambda: ask(desk, name, "passed on", model="held"))
    assert server.begun.wait(10)
    assert ask(desk, name, way) == (409, "idempotency_conflict")
    server.hold.set()

    assert end() == (200, "")
    assert ask(desk, name, way) == (409, "idempotency_conflict")
    assert len(server.seen) == asked + 1


def test_while_a_model_in_process_answers_its_key_is_nobody_elses(desk: Desk, server: Rogue) -> None:
    """Nothing goes to the upstream, and the same request is told to wait."""
    asked, started = len(server.seen), desk.toy.model.started
    desk.toy.model.held.clear()
    hold = {"messages": [{"role": "user", "content": "[hold] tell me"}]}
    end = beside(lambda: ask(desk, "held in process", "in process", **hold))
    until(lambda: desk.toy.model.started > started)
    assert ask(desk, "held in process", "passed on") == (409, "idempotency_conflict")
    assert ask(desk, "held in process", "in process", **hold) == (409, "call_in_progress")
    desk.toy.model.held.set()

    assert end() == (200, "")
    assert ask(desk, "held in process", "passed on") == (409, "idempotency_conflict")
    assert len(server.seen) == asked


def test_of_all_ways_at_the_same_instant_one_is_answered(desk: Desk) -> None:
    """However they fall: never two answers under one key, and each other is told that it conflicts."""
    paid = len(receipts(desk))
    answered: dict[str, int] = dict.fromkeys(WAYS, 0)
    for number in range(ROUNDS):
        start, told = threading.Barrier(len(WAYS)), dict[str, Told]()

        def go(way: str, name: str, start: threading.Barrier, told: dict[str, Told]) -> None:
            start.wait(10)
            told[way] = ask(desk, name, way)

        threads = [threading.Thread(target=go, args=(way, f"race {number}", start, told)) for way in WAYS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        (won,) = [way for way, (status, _) in told.items() if status == 200]
        answered[won] += 1
        assert {said for way, said in told.items() if way != won} == {(409, "idempotency_conflict")}, told

    desk.settled()
    desk.booked()
    assert len(receipts(desk)) == paid + ROUNDS, answered
