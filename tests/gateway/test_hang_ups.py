"""Callers who leave, stall or send badly, over raw sockets: generation stops, what was generated is charged once."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from headwater.core.money import NANO
from headwater.store.call_store import CallState
from toy.desk import Desk


def request(desk: Desk, content: str, *, stream: bool = True, tokens: int = 1_000, headers: str = "") -> bytes:
    """A whole request as bytes."""
    asked = {"model": "toy", "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "stream": stream}
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {desk.secret}\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def connect(desk: Desk, raw: bytes = b"") -> socket.socket:
    """A connection on which `raw` was sent."""
    connection = socket.create_connection(("127.0.0.1", desk.port), timeout=10)
    connection.sendall(raw)
    return connection


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    """What came until `wanted` did."""
    read = b""
    while wanted not in read:
        piece = connection.recv(65_536)
        assert piece, f"the connection ended after {read[-200:]!r}"
        read += piece
    return read


def wait_for(condition, timeout_s: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    """Until it holds."""
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)


def only_call(desk: Desk):  # type: ignore[no-untyped-def]
    """The one call there was."""
    rows = desk.toy.db.query("SELECT call_id FROM calls")
    assert len(rows) == 1
    return desk.toy.calls.get(rows[0][0])


def test_a_caller_who_leaves_a_stream_pays_for_what_was_generated(desk: Desk) -> None:
    """The model stops within a moment; the charge is for the tokens it gave, and a receipt follows."""
    with connect(desk, request(desk, "[delay=0.01] tell me")) as connection:
        read_until(connection, b'"content":"u"')
    wait_for(lambda: desk.toy.model.stopped_early)
    desk.settled()
    call = only_call(desk)
    prompt = len(json.loads(call.answer)["token_ids"])

    assert 3 <= desk.toy.model.tokens < 200
    assert call.state is CallState.ATTRIBUTED
    assert json.loads(call.answer)["finish_reason"] == "cancelled"
    assert prompt == desk.toy.model.tokens
    assert desk.toy.spent(desk.key) == call.price_units
    assert desk.toy.reserved(desk.key) == 0


def test_a_caller_who_leaves_a_plain_call_stops_the_model(desk: Desk) -> None:
    """Nobody waits for the body, so nothing more is generated."""
    with connect(desk, request(desk, "[delay=0.01] tell me", stream=False)):
        wait_for(lambda: desk.toy.model.tokens > 3)
    wait_for(lambda: desk.toy.model.stopped_early)
    desk.settled()

    assert desk.toy.model.tokens < 200
    assert only_call(desk).state is CallState.ATTRIBUTED


def test_a_plain_call_with_an_idempotency_key_is_finished_for_the_retry(desk: Desk) -> None:
    """A client that lost its connection will ask again: it gets the whole answer, generated and charged once."""
    raw = request(desk, "[delay=0.005] tell me", stream=False, tokens=60, headers="Idempotency-Key: k\r\n")
    with connect(desk, raw):
        wait_for(lambda: desk.toy.model.tokens > 3)
    wait_for(lambda: desk.app.answering.state().generating == 0)
    with connect(desk, raw) as connection:
        answer = json.loads(read_until(connection, b'"sources":[]}}').split(b"\r\n\r\n", 1)[1])

    assert answer["usage"]["completion_tokens"] == 60
    assert (desk.toy.model.started, desk.toy.model.stopped_early) == (1, 0)
    assert desk.toy.spent(desk.key) == only_call(desk).price_units


def test_a_caller_who_leaves_before_the_model_begins_pays_nothing(narrow: Desk) -> None:
    """While it waits for its place the reservation is given back as soon as the place comes up."""
    with connect(narrow, request(narrow, "[hold] first")) as first:
        wait_for(lambda: narrow.toy.model.started)
        with connect(narrow, request(narrow, "second")):
            wait_for(lambda: narrow.app.answering.state().waiting == 1 and narrow.toy.reserved(narrow.key) > 0)
            wait_for(lambda: len(narrow.toy.db.query("SELECT 1 FROM calls")) == 2)
        time.sleep(0.05)
        narrow.toy.model.held.set()
        read_until(first, b"[DONE]")
    narrow.settled()

    states = [state for (state,) in narrow.toy.db.query("SELECT state FROM calls ORDER BY number")]
    assert states == ["attributed", "released"]
    assert narrow.toy.model.started == 1
    assert narrow.toy.reserved(narrow.key) == 0


def test_a_stream_left_unread_is_cut(narrow: Desk) -> None:
    """A caller that reads nothing keeps no place at the model for longer than the limit."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_048)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", narrow.port))
    texts = "x" * 3_000  # one answer of this many tokens fills every buffer on the way: frames are 200 times as long
    with connection:
        for _ in range(12):
            connection.sendall(request(narrow, texts, tokens=1_024))
            time.sleep(0.01)
        wait_for(lambda: narrow.toy.model.stopped_early, 20)
    narrow.settled()


def test_more_callers_than_places_are_sent_away(narrow: Desk) -> None:
    """429 with a time to come back, at once and without a reservation; the others are answered."""
    with (
        connect(narrow, request(narrow, "[hold] first")) as first,
        connect(narrow, request(narrow, "second")) as second,
    ):
        wait_for(lambda: narrow.app.answering.state().generating + narrow.app.answering.state().waiting == 2)
        with connect(narrow, request(narrow, "third")) as third:
            response = read_until(third, b"}}").decode()
        narrow.toy.model.held.set()
        for connection in (first, second):
            read_until(connection, b"[DONE]")

    assert response.startswith("HTTP/1.1 429")
    assert "retry-after: 1" in response.lower()
    assert '"code":"rate_limit_exceeded"' in response
    assert len(narrow.toy.db.query("SELECT 1 FROM calls")) == 2


def test_two_calls_race_for_the_last_credit(desk: Desk) -> None:
    """Ten at once with money for three: three are answered, seven are refused, nothing is below zero."""
    secret, key = desk.toy.key("racer", units=3 * NANO)
    outcomes: list[int] = []

    def call() -> None:
        try:
            desk.client(secret).chat.completions.create(
                model="toy-dear", messages=[{"role": "user", "content": "[delay=0.01] x"}], max_tokens=5
            )
            outcomes.append(200)
        except Exception as error:
            outcomes.append(error.status_code)  # type: ignore[attr-defined]

    threads = [threading.Thread(target=call) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == [200] * 3 + [402] * 7
    assert desk.toy.spent(key, 3 * NANO) == 3 * NANO


def test_a_body_that_does_not_come_is_not_waited_for(narrow: Desk) -> None:
    """A caller that sends slower than the limit gets 408, and its place goes to others."""
    raw = request(narrow, "x")
    with connect(narrow, raw[:-10]) as connection:
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408")
    wait_for(lambda: narrow.app.answering.state().waiting == 0)


def test_a_body_cut_off_by_the_caller_leaves_nothing_behind(narrow: Desk) -> None:
    """Half a body and gone: no call, no place kept."""
    for _ in range(5):
        with connect(narrow, request(narrow, "x")[:-10]):
            time.sleep(0.01)
        wait_for(lambda: narrow.app.answering.state().waiting == 0)
    assert narrow.toy.db.query("SELECT 1 FROM calls") == []


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X-Flood: y\r\n" * 20_000 + b"\r\n",
    ],
    ids=["tls", "negative", "two lengths", "bad chunk", "flood"],
)
def test_what_is_no_http_is_turned_away(shared: Desk, raw: bytes) -> None:
    """400 or a closed connection; the server goes on answering others."""
    with connect(shared) as connection:
        try:
            connection.sendall(raw)
            answer = connection.recv(65_536)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401", b"HTTP/1.1 431"))
    assert shared.get("/healthz")["status"] == "ok"


def test_a_chunked_body_over_the_limit_is_refused(shared: Desk) -> None:
    """Without an announced length the bytes are counted, and no more than the limit is kept."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {shared.secret}\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with connect(shared, (head + "Transfer-Encoding: chunked\r\n\r\n").encode()) as connection:
        try:
            for _ in range(200):
                connection.sendall(chunk)
        except (ConnectionError, TimeoutError):
            pass
        try:
            answer = connection.recv(65_536)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")
    assert shared.get("/healthz")["status"] == "ok"


def test_keys_in_two_headers_are_refused(shared: Desk) -> None:
    """A header that may come once and comes twice is a smuggling attempt or a bug: 400."""
    raw = request(shared, "x", headers=f"Authorization: Bearer {shared.secret}\r\n")
    with connect(shared, raw) as connection:
        answer = read_until(connection, b"header_invalid")
    assert answer.startswith(b"HTTP/1.1 400")
