"""Starting, stopping and what is written down: ports, failed starts, graceful ends, quiet connections, logs."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
import threading
import time
import urllib.error
from pathlib import Path
from types import ModuleType

import openai
import pytest

from headwater.core.errors import InvalidError, UpstreamError
from headwater.flow import CallRequest, Message
from headwater.gateway import chat, create_app, serving
from headwater.gateway.answering import Answering
from headwater.gateway.serve import serve
from headwater.models.backend import Sampling
from headwater.store.call_store import CallState
from toy.desk import Desk, open_desk
from toy.home import open_home

SERVE: ModuleType = sys.modules["headwater.gateway.serve"]


def test_a_taken_port_is_refused_at_once(desk: Desk) -> None:
    """Before anything is loaded or listened to, with the port in the message."""
    with pytest.raises(InvalidError) as caught:
        serve(desk.app, port=desk.port)
    assert caught.value.code == "port_taken"
    assert str(desk.port) in caught.value.message
    for host, port in (("127.0.0.1", 70_000), ("no such host", 0)):
        with pytest.raises(InvalidError):
            serve(desk.app, host, port)


def test_a_gateway_that_cannot_take_up_its_journal_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is raised to whoever started it; nothing listens."""
    with open_home(tmp_path) as toy:

        def broken() -> None:
            raise UpstreamError("the disk is gone", code="disk_failed")

        monkeypatch.setattr(toy.flow, "resume", broken)
        with pytest.raises(UpstreamError) as caught, serving(create_app(toy.flow, toy.keys)):
            pytest.fail("it started")
        assert caught.value.code == "disk_failed"


def test_stopping_finishes_the_answers_at_work(tmp_path: Path) -> None:
    """A stream that has begun is given to its end, charged and attributed, and then the server is gone."""
    with open_home(tmp_path) as toy:
        secret, key = toy.key()
        stop, ready = threading.Event(), threading.Event()
        ports: list[int] = []
        app = create_app(toy.flow, toy.keys)
        thread = threading.Thread(
            target=lambda: serve(app, ready=lambda port: (ports.append(port), ready.set()), stop=stop)
        )
        thread.start()
        assert ready.wait(10)
        desk = Desk(toy, app, f"http://127.0.0.1:{ports[0]}", secret, key)
        body = {"model": "toy", "messages": [{"role": "user", "content": "[delay=0.01] x"}], "max_tokens": 40}
        with desk.post({**body, "stream": True}) as response:
            response.readline()
            stop.set()
            assert response.read().endswith(b"[DONE]\n\n")
        thread.join(20)
        assert not thread.is_alive()
        assert toy.db.query("SELECT state FROM calls") == [("attributed",)]
        with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", ports[0])):
            pass


def test_answers_that_outlast_the_grace_are_cut_and_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not wait for ever; what was generated is paid for and nothing stays reserved."""
    monkeypatch.setattr(SERVE, "GRACE_S", 0.2)
    with open_desk(tmp_path) as desk:
        body = {"model": "toy", "messages": [{"role": "user", "content": "[delay=0.02] x"}], "max_tokens": 1_000}
        response = desk.post({**body, "stream": True})
        response.readline()
        began = time.monotonic()
        home, key = desk.toy.path, desk.key
    assert time.monotonic() - began < 10
    response.close()
    with open_home(home) as toy:
        ((call_id,),) = toy.db.query("SELECT call_id FROM calls")
        call = toy.calls.get(call_id)
        assert call.answer is not None
        assert json.loads(call.answer)["finish_reason"] == "cancelled"
        assert (toy.spent(key), toy.reserved(key)) == (call.price_units, 0)


def test_an_answer_made_for_a_retry_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """A plain call whose caller left is given up when the server stops, uncharged: its retry begins anew."""
    with open_desk(tmp_path) as desk:
        asked = {"model": "toy", "messages": [{"role": "user", "content": "[delay=0.02] x"}], "max_tokens": 1_000}
        raw = json.dumps(asked).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {desk.secret}\r\n"
        with socket.create_connection(("127.0.0.1", desk.port)) as connection:
            connection.sendall(f"{head}Idempotency-Key: k\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw)
            while desk.toy.model.tokens < 3:
                time.sleep(0.005)
        began = time.monotonic()
        home, key = desk.toy.path, desk.key
    assert time.monotonic() - began < 5
    with open_home(home) as toy:
        assert toy.db.query("SELECT state, failure FROM calls") == [("released", "shutting_down")]
        assert (toy.spent(key), toy.reserved(key)) == (0, 0)


def test_a_connection_that_says_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a request head, or none, or one byte now and then after an answer: the connection does not stay for ever."""
    monkeypatch.setattr(SERVE, "HEAD_S", 0.3)
    with open_desk(tmp_path) as desk:
        begun = [b"", b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"]
        connections = [socket.create_connection(("127.0.0.1", desk.port)) for _ in begun]
        for connection, raw in zip(connections, begun, strict=True):
            connection.settimeout(10)
            connection.sendall(raw)
        for connection in connections:
            with connection:
                while connection.recv(65_536):
                    pass


def test_silence_on_a_stream_is_bridged_with_comments(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow model sends comments, which clients skip; an error after one is an event, because bytes have left."""
    monkeypatch.setattr(chat, "QUIET_S", 0.05)
    slow = [{"role": "user", "content": "[delay=0.2] x"}]
    body = {"model": "toy", "messages": slow, "max_tokens": 2, "stream": True}
    with desk.post(body) as response:
        raw = response.read()
    assert raw.startswith(b": keep-alive\n\n")
    assert raw.endswith(b"[DONE]\n\n")
    texts = [c.choices[0].delta.content for c in desk.client().chat.completions.create(**body)]  # type: ignore[call-overload]
    assert "".join(text or "" for text in texts) == "Yo"
    with desk.post({**body, "messages": [{"role": "user", "content": "[hold][fail=1] x"}]}) as response:
        first = response.readline()
        desk.toy.model.held.set()
        rest = response.read()
    assert first.startswith(b"data: ")
    assert b'"code":"model_failed"' in rest
    assert b"[DONE]" not in rest


def test_a_call_whose_task_is_cancelled_while_it_is_opened_is_given_back(tmp_path: Path) -> None:
    """The reservation was made on another thread when nobody waited for it any more: it is released."""
    with open_home(tmp_path) as toy:
        _, key = toy.key()
        open_now, slow = toy.flow.open, threading.Event()

        class SlowFlow:
            parts = toy.flow.parts
            release = toy.flow.release

            def open(self, *arguments: object) -> object:
                slow.wait(5)
                return open_now(*arguments)  # type: ignore[arg-type]

        answering = Answering(SlowFlow(), parallel=1, waiting_max=1, stall_s=1, answered=lambda _: None)  # type: ignore[arg-type]
        request = CallRequest("toy", (Message("user", "x"),), Sampling(5), "sha256:" + "0" * 64)

        async def cancelled() -> None:
            task = asyncio.create_task(answering.open(request, key))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            slow.set()

        asyncio.run(cancelled())
        answering.close()
        ((call_id,),) = toy.db.query("SELECT call_id FROM calls")
        assert toy.calls.get(call_id).state is CallState.RELEASED
        assert toy.reserved(key) == 0


def test_a_charge_that_fails_is_told_and_made_good(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fails at charge and release: 503, not charged, shown as unsettled, released with the next call."""
    body = {"model": "toy", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}

    def full(*_: object, **__: object) -> None:
        raise UpstreamError("no room", code="disk_full")

    with monkeypatch.context() as patched:
        patched.setattr(desk.toy.calls, "answered", full)
        patched.setattr(desk.toy.calls, "release", full)
        with pytest.raises(urllib.error.HTTPError) as caught:
            desk.post(body)
        assert caught.value.code == 503
        assert json.loads(caught.value.read())["error"]["code"] == "disk_full"
        assert desk.get("/readyz")["unsettled"] == 1
    assert desk.toy.reserved(desk.key) > 0
    desk.post(body).close()
    desk.settled()
    assert desk.get("/readyz")["unsettled"] == 0
    assert desk.toy.reserved(desk.key) == 0
    assert [state for (state,) in desk.toy.db.query("SELECT state FROM calls ORDER BY number")] == [
        "released",
        "attributed",
    ]


def test_clients_that_retry_get_through_when_it_is_over(narrow: Desk) -> None:
    """OpenAI's client obeys retry-after on 429 and is answered when a place is free."""
    body = {"model": "toy", "messages": [{"role": "user", "content": "[delay=0.3] x"}], "max_tokens": 2}
    outcomes: list[str | None] = []

    def call() -> None:
        answer = narrow.client(max_retries=5).chat.completions.create(**body)  # type: ignore[call-overload]
        outcomes.append(answer.choices[0].message.content)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["Yo"] * 4


def test_nothing_a_caller_wrote_or_was_given_is_logged(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative level: no key, no prompt, no answer, no path as sent."""
    loggers = ("headwater", "uvicorn", "asyncio", "fastapi")
    for name in loggers:
        caplog.set_level(logging.DEBUG, name)
    client = desk.client()
    asked = [{"role": "user", "content": "my private words"}]
    client.chat.completions.create(model="toy", messages=asked, max_tokens=30)  # type: ignore[arg-type]
    list(client.chat.completions.create(model="toy", messages=asked, max_tokens=30, stream=True))  # type: ignore[arg-type]
    for wrong in ("[fail=2] private", "[mute] private"):
        with pytest.raises(openai.APIError):
            client.chat.completions.create(model="toy", messages=[{"role": "user", "content": wrong}])
    with pytest.raises(urllib.error.HTTPError):
        desk.get("/v1/private-path?key=private")
    desk.settled()
    text = "\n".join(
        record.getMessage() + str(record.exc_text) for record in caplog.records if record.name.startswith(loggers)
    )

    assert "/v1/chat/completions 200" in text
    assert "private" not in text
    assert desk.secret not in text
    assert "You said" not in text
