"""Callers who mean harm, over raw sockets to a gateway that listens: what they are told, and that nothing is left.

Hang-ups at every stage are tried on each of the three ways an answer is made: by the model in process, passed on from
an upstream, and by an upstream with sources. After each test the books are clean, nothing is held, and others are
answered.
"""

from __future__ import annotations

import json
import re
import resource
import socket
import struct
import threading
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from toy.desk import Desk, open_desk
from toy.rogue import Rogue, rogue

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
WAYS: dict[str, dict[str, Any]] = {
    "in process": {"model": "toy"},
    "passed on": {"model": "held"},
    "with sources": {"model": "held", "headwater": {"retrieve": 1}},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Rogue]:
    """An upstream that waits when it is told to."""
    with rogue() as running:
        yield running


def config(server: Rogue) -> str:
    """Its models."""
    return f'[upstream.real]\nbase_url = "{server.url}"\n' + "".join(
        f'[model."{name}"]\ntargets = [{{ upstream = "real", model = "{name}" }}]\nrequest_price = "0.001"\n'
        for name in ("fine", "held")
    )


@pytest.fixture(scope="module")
def desk(server: Rogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway with little patience for slow bodies."""
    home = tmp_path_factory.mktemp("home")
    with open_desk(home, upstreams=config(server), body_timeout_s=0.5, failed_keys_per_minute=10_000) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(desk: Desk) -> Iterator[None]:
    """After each test: nobody is at work, nothing is held, the books hold, and the next caller is answered."""
    yield
    clean(desk)
    with desk.post({"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}) as answer:
        assert answer.status == 200


def clean(desk: Desk) -> None:
    """Nothing is left."""
    assert desk.app.relays is not None
    meter = desk.app.relays.meter
    until = time.monotonic() + 15

    def left() -> bool:
        state = meter.state()
        return bool(
            state.held or state.waiting or desk.toy.db.query("SELECT 1 FROM calls WHERE state = 'reserved' LIMIT 1")
        )

    while left():
        assert time.monotonic() < until, (meter.state(), "something is held")
        time.sleep(0.01)
    desk.settled()
    meter.settle_books()
    assert desk.toy.calls.check() == ()


def body_of(way: str, content: str = "[delay=0.01] tell me", **more: Any) -> bytes:
    """A chat."""
    whole = {**WAYS[way], "messages": [{"role": "user", "content": content}], "max_tokens": 300, **more}
    return json.dumps(whole).encode()


def head_of(desk: Desk, length: int, path: str = ROUTES[0], more: str = "") -> bytes:
    """A request's head."""
    fields = f"Host: x\r\nAuthorization: Bearer {desk.secret}\r\nContent-Length: {length}\r\n{more}"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n".encode()


def connect(desk: Desk) -> socket.socket:
    """A connection."""
    return socket.create_connection(("127.0.0.1", desk.port), timeout=15)


def answered(connection: socket.socket) -> bytes:
    """The one response that comes, or what there is of it when the other side closes; a reset counts as an end."""
    read = b""
    connection.settimeout(5)
    with suppress(OSError):
        while piece := connection.recv(65_536):
            read += piece
            head, ended, body = read.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if ended and length is not None and len(body) >= int(length[1]):
                break
    return read


def reset(connection: socket.socket) -> None:
    """Hang up without a goodbye."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


# Slow, large, deep and many


@pytest.mark.parametrize("way", WAYS)
def test_a_body_that_drips_is_not_waited_for(desk: Desk, way: str) -> None:
    """A byte now and then is no progress: the whole body has its time, and its sender is told 408 or cut off."""
    raw, began = body_of(way), time.monotonic()
    with connect(desk) as connection, suppress(OSError):
        connection.sendall(head_of(desk, len(raw)))
        for byte in raw:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
            if time.monotonic() - began > 5:
                pytest.fail("it is still listened to after ten times its time")
    with connect(desk) as connection:
        connection.sendall(head_of(desk, len(raw)) + raw[:-1])
        answer = answered(connection)
    assert b" 408 " in answer.split(b"\r\n")[0] or answer == b""


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_hundred_megabytes_are_refused_and_not_kept(desk: Desk, path: str, chunked: bool) -> None:
    """However long they are sent: 413 or a closed connection after a few of them, and no memory."""
    before_kib, sent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    piece = b"x" * 65_536
    with connect(desk) as connection:
        if chunked:
            head = head_of(desk, 0, path).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
            piece = b"10000\r\n" + piece + b"\r\n"
        else:
            head = head_of(desk, 100 * 2**20, path)
        with suppress(OSError):
            connection.sendall(head)
            while sent < 100 * 2**20:
                connection.sendall(piece)
                sent += len(piece)
        answer = answered(connection)

    assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0], answer[:200]
    assert sent < 50 * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 64 * 1024


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model": "MODEL", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "MODEL", "input": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" * 1_000_000,
        b'{"model": "MODEL", "prompt": "\xff\xfe\xc0\x80"}',
        b'{"model": "MODEL", "input": "\xed\xa0\x80"}',
        b'\xff\xfe{\x00"\x00m\x00',
        b'{"model": "MODEL", "messages": [{"role": "user", "content": "\\ud800"}]',
        b'{"model": "MODEL", "max_tokens": 1e999999}',
        b'{"model": "MODEL", "max_tokens": ' + b"9" * 100_000 + b"}",
        b'{"model": "MODEL", "model": "gone", "messages": NaN}',
    ],
    ids=[
        *("deep array", "deep object", "open brackets", "no utf-8", "surrogate", "utf-16", "half", "infinite"),
        *("long number", "nan"),
    ],
)
def test_what_is_no_json_of_ours_is_400_on_every_route(desk: Desk, raw: bytes) -> None:
    """Nested, not UTF-8, not JSON: refused before anything is reserved, asked or recursed into."""
    for path in ROUTES:
        for model in (b"toy", b"fine"):
            said = raw.replace(b"MODEL", model)
            with connect(desk) as connection:
                connection.sendall(head_of(desk, len(said), path) + said)
                answer = answered(connection)
            assert answer.split(b" ")[1] in (b"400", b"404"), (path, model, answer[:300])
            assert b'"error"' in answer


@pytest.mark.parametrize("field", ["seed", "temperature", "prompt", "metadata", "headwater"])
@pytest.mark.parametrize("said", [{"headwater": {}}, {"metadata": {"headwater": 1}}, {}], ids=["ours", "named", "none"])
def test_a_number_beyond_all_bounds_is_400_or_the_upstream_s_affair(
    desk: Desk, said: dict[str, object], field: str
) -> None:
    """Also where a call with sources is read as a whole, and in fields that nobody here knows."""
    raw = body_of("passed on", "hi", **{"model": "fine", **said})[:-1] + f', "{field}": 1e999}}'.encode()
    with connect(desk) as connection:
        connection.sendall(head_of(desk, len(raw)) + raw)
        answer = answered(connection)
    assert answer.split(b" ")[1] in ((b"400",) if "headwater" in said or field == "headwater" else (b"200", b"400"))


@pytest.mark.parametrize(
    "fields",
    [
        b"".join(b"X-%d: y\r\n" % n for n in range(20_000)),
        b"X-Long: " + b"y" * 2_000_000 + b"\r\n",
        b"X" * 1_000_000 + b": y\r\n",
        b"Authorization: Bearer " + b"y" * 200_000 + b"\r\n",
        b"".join(b"Authorization: Bearer y%d\r\n" % n for n in range(50)),
        b"X-Bytes: \xff\xfe\x80\r\n",
        b"X-Null: a\x00b\r\n",
        b"Idempotency-Key: \xff\xfe\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999999\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b" folded: x\r\n",
    ],
    ids=[
        *("many", "long value", "long name", "long key", "many keys", "not utf-8", "null", "idempotency bytes"),
        *("both lengths", "two lengths", "negative", "huge", "encoded", "folded"),
    ],
)
def test_floods_of_headers_and_headers_that_smuggle_are_turned_away(desk: Desk, fields: bytes) -> None:
    """An error or a closed connection; never an answer that was paid for."""
    before = desk.toy.spent(desk.key)
    with connect(desk) as connection:
        with suppress(OSError):
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n{}")
        answer = answered(connection)

    assert b"HTTP/1.1 200" not in answer
    assert b"HTTP/1.1 5" not in answer, answer[:300]
    assert desk.toy.spent(desk.key) == before


def test_a_head_that_never_ends_is_cut_by_its_size(desk: Desk) -> None:
    """Sent as fast as it can be: the connection ends before a megabyte."""
    sent = 0
    with connect(desk) as connection, suppress(OSError):
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        while sent < 50 * 2**20:
            connection.sendall(b"X-Flood: " + b"y" * 8_000 + b"\r\n")
            sent += 8_000
    assert sent < 50 * 2**20


# Hanging up


STAGES = ("before the head", "in the head", "in the body", "before the first byte", "mid stream", "at the end", "after")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", WAYS)
def test_a_caller_who_hangs_up_leaves_nothing_behind(desk: Desk, server: Rogue, way: str, stage: str) -> None:
    """At whatever moment, by a close or a reset, plainly or in a stream: what was held is given back."""
    for stream in (False, True):
        for goodbye in (socket.socket.close, reset):
            before = desk.toy.spent(desk.key)
            hang_up(desk, server, way, stage, stream, goodbye)
            clean(desk)
            charged = desk.toy.spent(desk.key) - before
            if stage in ("before the head", "in the head", "in the body"):
                assert charged == 0
            elif stage in ("at the end", "after"):
                assert charged > 0  # it was answered


def hang_up(
    desk: Desk, server: Rogue, way: str, stage: str, stream: bool, goodbye: Callable[[socket.socket], None]
) -> None:
    """Ask, and leave at a stage."""
    raw = body_of(way, "hi" if stage in ("at the end", "after") else "[delay=0.002] tell me", stream=stream)
    raw = raw.replace(b'"max_tokens": 300', b'"max_tokens": 40')
    head = head_of(desk, len(raw))
    server.begun.clear()
    server.hold.clear()
    started = desk.toy.model.started
    connection = connect(desk)
    if stage == "in the head":
        connection.sendall(head[: len(head) // 2])
    elif stage == "in the body":
        connection.sendall(head + raw[: len(raw) // 2])
    elif stage != "before the head":
        connection.sendall(head + raw)
    if stage in ("before the first byte", "mid stream"):
        until = time.monotonic() + 10
        while not (server.begun.is_set() or desk.toy.model.started > started):
            assert time.monotonic() < until
            time.sleep(0.002)
    if stage == "mid stream" and stream:
        connection.recv(64)
    if stage in ("at the end", "after"):
        server.hold.set()
        ending = b"[DONE]" if stream else b'"headwater":'
        read = b""
        while ending not in read:
            read += (piece := connection.recv(4_096 if stage == "after" else 1))
            assert piece
    goodbye(connection)
    server.hold.set()


# Where bytes are fetched from


@pytest.fixture
def canary() -> Iterator[tuple[str, list[str]]]:
    """A listener that nobody should ever reach: its URL, and who did."""
    reached: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection, peer = listener.accept()
                    reached.append(str(peer))
                    connection.close()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", reached


def bodies_with(url: str) -> list[tuple[str, dict[str, Any]]]:
    """Every place in which a caller may write an address."""
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    file = [{"role": "user", "content": [{"type": "file", "file": {"file_url": url, "file_id": url}}]}]
    item = [{"role": "user", "content": [{"type": "input_image", "image_url": url}]}]
    plain = [{"role": "user", "content": f"Read {url}"}]
    schema = {"type": "object", "properties": {"a": {"$ref": url}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    tool = {"type": "function", "function": {"name": "x", "parameters": schema}}
    mcp = {"type": "mcp", "server_label": "x", "server_url": url}
    chat, responses = ROUTES[0], ROUTES[2]
    return [
        (chat, {"messages": image}),
        (chat, {"messages": file}),
        (chat, {"messages": plain, "response_format": form}),
        (chat, {"messages": plain, "tools": [tool], "tool_choice": "required"}),
        (chat, {"messages": plain, "base_url": url, "api_base": url, "upstream": url}),
        (chat, {"messages": plain, "headwater": {"upstream": url, "webhook": url}}),
        (chat, {"messages": plain, "model": url}),
        (chat, {"messages": plain, "model": f"real@{url}"}),
        (responses, {"input": item}),
        (responses, {"input": "x", "tools": [mcp]}),
        (responses, {"input": "x", "prompt": {"id": url}}),
    ]


@pytest.mark.parametrize("model", ["toy", "fine"])
def test_no_address_in_a_request_is_ever_opened(desk: Desk, canary: tuple[str, list[str]], model: str) -> None:
    """Images, files, schemas, servers of tools, upstreams: refused, or passed on as they came to the one upstream."""
    url, reached = canary
    for path, more in bodies_with(url + "/secret"):
        for sources in ({}, {"headwater": {"retrieve": 1}}):
            body = {"model": model, "max_tokens": 3, **sources, **more}
            with suppress(urllib.error.HTTPError):
                desk.post(body, path=path).read()
    for name in ("Host", "X-Forwarded-Host", "Forwarded", "Referer", "X-Original-URL", "Headwater-Upstream"):
        with suppress(urllib.error.HTTPError):
            body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
            desk.post(body, {name: url.removeprefix("http://")}).read()
    time.sleep(0.1)

    assert reached == []


# Idempotency


@pytest.mark.parametrize("way", ["in process", "passed on", "with sources"])
def test_an_idempotency_key_with_another_body_is_refused_and_costs_nothing(desk: Desk, way: str) -> None:
    """For every way of answering: one changed byte is another body; the first answer stays what it was."""
    chosen = {**WAYS[way]} if way == "in process" else {**WAYS[way], "model": "fine"}
    key = {"Idempotency-Key": f"once-{way}"}
    body = {**chosen, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    first = desk.post(body, key).read()
    clean(desk)
    spent = desk.toy.spent(desk.key)
    for other in ({**body, "max_tokens": 6}, {**body, "stream": True}, {**body, "messages": body["messages"] * 2}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            desk.post(other, key)
        assert (refused.value.code, json.load(refused.value)["error"]["code"]) == (409, "idempotency_conflict")
    again = desk.post(body, key).read()
    clean(desk)

    assert json.loads(again)["choices"] == json.loads(first)["choices"]
    assert desk.toy.spent(desk.key) == spent
