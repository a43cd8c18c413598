"""Idempotency keys on calls that an upstream answers: one answer, one price, whatever happens in between."""

from __future__ import annotations

import errno
import json
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headwater.core.errors import UpstreamError
from headwater.meter import Meter
from toy.desk import Desk, open_desk
from toy.upstream import WORDS, Upstream, upstream

pytestmark = pytest.mark.both_engines

MODELS = ("fine", "crlf", "split", "truncated", "status-503", "silent")
ASK = [{"role": "user", "content": "Who is paid?"}]


def config(server: Upstream) -> str:
    """An upstream and a model for each of its behaviours, at one price a call."""
    return f'[upstream.real]\nbase_url = "{server.url}"\nhead_s = 0.6\nsilence_s = 0.6\n' + "".join(
        f'[model."{name}"]\nretries = 0\nrequest_price = "0.001"\n'
        f'targets = [{{ upstream = "real", model = "{name}" }}]\n'
        for name in MODELS
    )


@pytest.fixture
def server() -> Iterator[Upstream]:
    """The upstream."""
    with upstream() as running:
        yield running


@pytest.fixture
def desk(server: Upstream, tmp_path: Path) -> Iterator[Desk]:
    """A gateway before it, whose books are checked at the end."""
    with open_desk(tmp_path / "home", upstreams=config(server)) as running:
        yield running


def ask(desk: Desk, name: str, model: str = "fine", secret: str | None = None, **fields: object) -> tuple[int, Any]:
    """Status, and (body, replayed) of an answer or the code of a refusal."""
    headers = {"Idempotency-Key": name, "Authorization": f"Bearer {secret or desk.secret}"}
    try:
        with desk.post({"model": model, "messages": ASK, **fields}, headers) as response:
            return response.status, (response.read(), response.headers.get("idempotent-replayed"))
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["code"]


def meter(desk: Desk) -> Meter:
    """The meter."""
    assert desk.app.relays is not None
    return desk.app.relays.meter


def charged(desk: Desk) -> int:
    """How many calls the key was charged for."""
    until = time.monotonic() + 10
    while meter(desk).state().held or meter(desk).state().waiting:
        assert time.monotonic() < until
        time.sleep(0.005)
    meter(desk).settle_books()
    return desk.toy.spent(desk.key) // 1_000_000


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("fine", {}),
        ("fine", {"stream": True}),
        ("crlf", {"stream": True, "stream_options": {"include_usage": True}}),
        ("split", {"stream": True}),
    ],
)
def test_a_repeated_request_gets_the_same_bytes_at_one_price(
    desk: Desk, server: Upstream, model: str, fields: dict[str, object]
):
    """Streamed or not, the upstream is asked once and the replay says that it is one."""
    first = ask(desk, "order-1", model, **fields)
    second = ask(desk, "order-1", model, **fields)

    assert first[0] == second[0] == 200
    assert first[1][0] == second[1][0]
    assert b"headwater" in first[1][0]
    assert all(word.encode() in first[1][0] for word in WORDS)
    assert (first[1][1], second[1][1]) == (None, "true")
    assert len(server.asked) == charged(desk) == 1


def test_it_is_the_same_answer_after_a_restart(server: Upstream, tmp_path: Path):
    """For ever, not for the life of a process."""
    with open_desk(tmp_path / "home", upstreams=config(server)) as desk:
        secret, first = desk.secret, ask(desk, "order-1")
    with open_desk(tmp_path / "home", upstreams=config(server)) as desk:
        assert ask(desk, "order-1", secret=secret)[1] == (first[1][0], "true")
    assert len(server.asked) == 1


def test_the_same_key_with_another_body_or_route_is_refused_for_good(desk: Desk):
    """409, whether the other request is for this lane or for a model of our own; others' keys do not meet."""
    ask(desk, "order-1")
    assert ask(desk, "order-1", temperature=1) == (409, "idempotency_conflict")
    assert ask(desk, "order-1", model="toy") == (409, "idempotency_conflict")
    ask(desk, "order-2", model="toy")
    assert ask(desk, "order-2") == (409, "idempotency_conflict")

    secret, _ = desk.toy.key("another")
    assert ask(desk, "order-1", secret=secret)[1][1] is None


def test_while_the_first_try_is_at_work_a_second_one_is_told_to_wait(desk: Desk):
    """409 that clients may repeat; afterwards the key is free, because nothing was answered."""
    outcome: list[tuple[int, Any]] = []
    first = threading.Thread(target=lambda: outcome.append(ask(desk, "order-1", "silent")))
    first.start()
    until = time.monotonic() + 5
    while not meter(desk).state().held:
        assert time.monotonic() < until
        time.sleep(0.005)
    assert ask(desk, "order-1", "silent") == (409, "call_in_progress")
    assert ask(desk, "order-1", "fine") == (409, "idempotency_conflict")
    first.join()

    assert outcome[0][0] == 503
    assert ask(desk, "order-1", "fine")[0] == 200


@pytest.mark.parametrize("model", ["status-503", "truncated"])
def test_a_call_that_failed_costs_nothing_and_may_be_tried_again(desk: Desk, server: Upstream, model: str):
    """A stream that broke was no answer either, however much of it had gone on."""
    for _ in range(2):
        ask(desk, "order-1", model, stream=True)

    assert len(server.asked) == 2
    assert charged(desk) == 0
    assert meter(desk).state().held == 0


def test_a_caller_who_leaves_a_stream_finds_all_of_it_when_it_comes_back(desk: Desk):
    """The retry is what the first try would have given."""
    headers = {"Idempotency-Key": "order-1"}
    response = desk.post({"model": "fine", "messages": ASK, "stream": True}, headers)
    response.read(10)
    response.close()
    until = time.monotonic() + 5
    while (again := ask(desk, "order-1", stream=True))[0] == 409:
        assert time.monotonic() < until

    assert again[1][1] == "true"
    assert again[1][0].rstrip().endswith(b"data: [DONE]")
    assert charged(desk) == 1


def test_what_was_kept_is_charged_once_by_the_next_start_if_the_process_died_before_its_receipt(
    server: Upstream, tmp_path: Path
):
    """Kept, then dead: the next start appends the receipt that was kept; a second start finds nothing to do."""
    with open_desk(tmp_path / "home", upstreams=config(server)) as desk:
        secret, key = desk.secret, desk.key
        running = meter(desk)

        async def died(*_: object) -> None:
            raise UpstreamError("as if the process had died here", code="receipt_unwritable")

        running._write = died  # type: ignore[method-assign,assignment]
        assert ask(desk, "order-1") == (503, "receipt_unwritable")
        with running._lock:  # the hold of a dead process is forgotten with it
            for purse in running._purses.values():
                purse.held, running._working = 0, 0
        assert len(desk.toy.log) == 0
    for _ in range(2):
        with open_desk(tmp_path / "home", upstreams=config(server)) as desk:
            assert len(desk.toy.log) == 1
            assert desk.toy.spent(key) == 1_000_000
            assert ask(desk, "order-1", secret=secret)[1][1] == "true"
    assert len(server.asked) == 1


def test_an_answer_whose_receipt_could_not_be_written_is_charged_when_it_is_asked_for_again(desk: Desk):
    """A log that fails for a moment makes nothing free: the retry writes the receipt that was kept, then answers."""
    log, sync = desk.toy.log, desk.toy.log._sync
    syncs: list[int] = []

    def full(handle: int) -> None:
        syncs.append(handle)
        if len(syncs) % 2:  # every second one is of what was taken back
            raise OSError(errno.ENOSPC, "no space left")

    log._sync = full
    assert ask(desk, "order-1") == (503, "disk_full")
    assert ask(desk, "order-1") == (503, "disk_full")
    assert charged(desk) == 0
    log._sync = sync
    first, second = ask(desk, "order-1"), ask(desk, "order-1")

    assert first == second
    assert first[1][1] == "true"
    assert charged(desk) == len(log) == 1


def test_kept_answers_are_unreadable_on_the_disk_and_gone_when_their_owner_is_forgotten(desk: Desk):
    """Encrypted like every text; once erased the key says so, and its price stays."""
    ask(desk, "order-1")
    charged(desk)
    [(answer,)] = desk.toy.db.query("SELECT answer FROM kept_answers")
    assert WORDS[0].strip().encode() not in answer
    desk.toy.calls.forget_owner(desk.key.key_id, at_ns=time.time_ns())

    assert ask(desk, "order-1") == (404, "answer_forgotten")
    assert charged(desk) == 1


def test_calls_without_a_key_keep_nothing(desk: Desk):
    """Only those that send the header pay for it."""
    desk.post({"model": "fine", "messages": ASK}).read()
    assert desk.toy.db.query("SELECT count(*) FROM kept_answers") == [(0,)]
