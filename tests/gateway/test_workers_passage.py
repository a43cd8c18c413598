"""What a worker passes on to the head, and how: framing, hang-ups, back-pressure, and what nobody may smuggle in."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.core.errors import InvalidError
from headwater.gateway.errors import failure_of
from headwater.gateway.serve import BACKLOG, listen, serve_on
from headwater.gateway.wire import CallerGone, Receive, Scope, Send, respond_failure
from headwater.gateway.workers.behind import Behind
from headwater.gateway.workers.framing import CALLER, Body, Origin, body_of, end_to_end, request_head
from headwater.gateway.workers.line import Lines
from headwater.gateway.workers.passage import Passage

MIB = 2**20


class Head:
    """A head that does as the path says, and notes what it saw."""

    lane = None
    start_error = None

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.read = 0  # bytes of bodies
        self.wrote = 0
        self.gone = threading.Event()
        self.free = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        self.scopes.append(scope)
        path = scope["path"]
        if path == "/echo":
            await self._echo(receive, send)
        elif path == "/endless":
            await self._endless(receive, send)
        elif path == "/waits":
            while not self.free.is_set():
                await asyncio.sleep(0.01)
            await self._echo(receive, send)
        elif path == "/reads":
            await _respond(send, 200, await _whole(receive))
        elif path == "/refuses":
            await _respond(send, 413, b"too large")
        elif path == "/breaks":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise RuntimeError("broken")
        elif path == "/empty":
            await send({"type": "http.response.start", "status": 204, "headers": [(b"x-kept", b"1")]})
            await send({"type": "http.response.body", "body": b""})
        else:
            named = [[name.decode(), value.decode()] for name, value in scope["headers"]]
            said = {"headers": named, "client": scope["client"], "path": path, "query": scope["query_string"].decode()}
            await _respond(send, 200, json.dumps(said).encode())

    async def _echo(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            more = message.get("more_body", False)
            self.read += len(message["body"])
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _endless(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watch = asyncio.create_task(_until_gone(receive, self.gone))
        while not self.gone.is_set():
            await send({"type": "http.response.body", "body": bytes(64 * 1024), "more_body": True})
            self.wrote += 64 * 1024
            await asyncio.sleep(0)
        await watch


class Worker:
    """A worker's front as far as it passes on: all of it."""

    lane = None
    start_error = None

    def __init__(self, path: Path) -> None:
        self.passage = Passage(Lines(path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        try:
            await self.passage({**scope, "headers": tuple(scope["headers"])}, receive, send)
        except CallerGone:
            pass
        except Exception as error:
            await respond_failure(send, failure_of(error))


class Pair:
    """Both at work."""

    def __init__(self, head: Head, worker: Worker, port: int, stop_head: Callable[[], None]) -> None:
        self.head, self.worker, self.port, self.stop_head = head, worker, port, stop_head

    def connect(self) -> http.client.HTTPConnection:
        """A connection to the worker."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def raw(self, request: bytes) -> bytes:
        """What comes for these bytes until the connection is closed or quiet."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(request)
            connection.settimeout(1.0)
            found = b""
            with contextlib.suppress(TimeoutError):
                while piece := connection.recv(65_536):
                    found += piece
            return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A head on a Unix socket and a worker before it."""
    with _pair(tmp_path_factory.mktemp("sockets")) as running:
        yield running


def test_bodies_of_any_size_go_both_ways_as_they_come(pair: Pair) -> None:
    """Chunked and with a length, up and down at once, on one connection that is used again."""
    connection = pair.connect()
    body = os.urandom(3 * MIB)
    for headers in ({}, {"transfer-encoding": "chunked"}):
        parts = body if not headers else iter([body[:10], body[10:MIB], body[MIB:]])
        connection.request("POST", "/echo", parts, headers, encode_chunked=bool(headers))  # type: ignore[arg-type]
        response = connection.getresponse()
        assert response.read() == body
    connection.request("GET", "/echo")
    assert connection.getresponse().read() == b""
    connection.close()


def test_the_head_sees_the_caller_and_nobody_can_pretend_to_be_another(pair: Pair) -> None:
    """The peer's address is the connection's, whatever a caller writes; fields of one connection stay with it."""
    connection = pair.connect()
    spoofed = Origin(("6.6.6.6", 6), None, "https").to_field().decode()
    sent = {
        CALLER.decode(): spoofed,
        "Connection": "keep-alive, X-Private, Authorization",
        "X-Private": "1",
        "Authorization": "Bearer kept",
        "TE": "trailers",
        "Keep-Alive": "5",
        "X-Other": "2",
    }
    connection.request("GET", "/say?a=1&b=%20", headers=sent)
    seen = json.loads(connection.getresponse().read())
    names = [name for name, _ in seen["headers"]]
    assert seen["client"][0] == "127.0.0.1"
    assert (seen["path"], seen["query"]) == ("/say", "a=1&b=%20")
    assert set(names) == {"host", "accept-encoding", "authorization", "x-other"}
    connection.close()


def test_a_head_is_told_who_asks_or_answers_nobody(pair: Pair, tmp_path: Path) -> None:
    """A request on the head's own socket without a caller, or with two, is refused."""
    for said in (b"", b'headwater-caller: [null,null,"http"]\r\n' * 2, b"headwater-caller: nonsense\r\n"):
        with socket.socket(socket.AF_UNIX) as own:
            own.connect(pair.worker.passage._lines._path)
            own.sendall(b"GET /say HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + said + b"\r\n")
            raw = b""
            while piece := own.recv(65_536):
                raw += piece
        assert raw.startswith(b"HTTP/1.1 400")
        assert b"caller_invalid" in raw


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 5\r\ncontent-length: 40\r\n",
        b"content-length: 40\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"content-length: +5\r\n",
        b"content-length: 5\r\ncontent-length : 40\r\n",
        b"transfer-encoding:\x0bchunked\r\n",
    ],
)
def test_a_request_whose_end_is_unclear_is_refused_and_nothing_behind_it_is_read(pair: Pair, framing: bytes) -> None:
    """Two lengths, a length beside chunks, odd codings: the connection ends there, and the head sees nothing of it."""
    before = len(pair.head.scopes)
    hidden = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    raw = pair.raw(b"POST /echo HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n0\r\n\r\n" + hidden)
    assert raw.startswith(b"HTTP/1.1 400")
    assert raw.count(b"HTTP/1.1") == 1
    assert len(pair.head.scopes) == before


def test_trailers_and_extensions_of_chunks_end_at_the_worker(pair: Pair) -> None:
    """They come after the head of their request and are no part of it, whatever they are called."""
    raw = pair.raw(
        b"POST /say HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        b"3;odd=1\r\nabc\r\n0\r\nx-trailer: 1\r\nauthorization: Bearer late\r\n\r\n"
    )
    assert raw.startswith(b"HTTP/1.1 200")
    assert b"x-trailer" not in raw
    assert b"late" not in raw


def test_a_body_is_asked_for_only_when_the_head_wants_it(pair: Pair) -> None:
    """`Expect: 100-continue` is the head's to answer: it may refuse without, or ask."""
    with socket.create_connection(("127.0.0.1", pair.port), 5) as caller:
        caller.sendall(b"POST /refuses HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
        assert caller.recv(65_536).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", pair.port), 5) as caller:
        caller.sendall(
            b"POST /reads HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
        )
        said = b""
        while b"100 Continue\r\n\r\n" not in said:
            said += caller.recv(65_536)
        caller.sendall(b"hello")
        while piece := caller.recv(65_536):
            said += piece
        assert b"hello" in said


def test_a_head_as_large_as_may_be_goes_on_whole(pair: Pair) -> None:
    """A hundred fields and nearly 64 KiB: what the worker adds does not count against the caller."""
    fields = b"".join(b"x-%d: %b\r\n" % (number, b"v" * 630) for number in range(98))
    raw = pair.raw(b"GET /say HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + fields + b"\r\n")
    assert raw.startswith(b"HTTP/1.1 200")
    assert b"x-97" in raw
    more = b"x-more: 1\r\n"
    assert pair.raw(b"GET /say HTTP/1.1\r\nhost: x\r\nconnection: close\r\n" + fields + more + b"\r\n").startswith(
        b"HTTP/1.1 431"
    )


def test_statuses_without_a_body_and_head_come_as_they_are(pair: Pair) -> None:
    """HEAD has the length and no body, 204 has neither, and the connection is good afterwards."""
    connection = pair.connect()
    connection.request("HEAD", "/say")
    response = connection.getresponse()
    assert response.read() == b""
    assert int(response.headers["content-length"]) > 0
    connection.request("GET", "/empty")
    response = connection.getresponse()
    assert (response.status, response.headers["x-kept"], response.read()) == (204, "1", b"")
    connection.request("GET", "/say")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_response_that_breaks_off_breaks_off_for_the_caller(pair: Pair) -> None:
    """Nobody takes half an answer for a whole one."""
    connection = pair.connect()
    connection.request("GET", "/breaks")
    response = connection.getresponse()
    with pytest.raises((http.client.IncompleteRead, OSError)):
        response.read()
    connection.close()


def test_a_caller_who_hangs_up_is_gone_for_the_head_too(pair: Pair) -> None:
    """Within a moment, in the middle of a response nobody reads, which was held up at some megabytes until then."""
    pair.head.gone.clear()
    pair.head.wrote = 0
    connection = pair.connect()
    connection.request("GET", "/endless")
    response = connection.getresponse()
    assert response.read(10)
    time.sleep(0.3)
    held = pair.head.wrote
    time.sleep(0.2)
    assert pair.head.wrote == held < 32 * MIB
    response.close()
    connection.close()
    assert pair.head.gone.wait(5)


def test_a_head_that_does_not_read_holds_its_caller_up(pair: Pair) -> None:
    """What is sent to it waits at the caller, not in the worker's memory."""
    pair.head.free.clear()
    with socket.create_connection(("127.0.0.1", pair.port), 5) as caller:
        caller.sendall(b"POST /waits HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (64 * MIB))
        caller.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * MIB:
                sent += caller.send(bytes(256 * 1024))
        assert sent < 32 * MIB
    pair.head.free.set()


def test_a_head_that_is_gone_is_503_and_the_next_one_is_found(tmp_path: Path) -> None:
    """Until there is one again every request is told to come back; kept connections to the old one do no harm."""
    with _pair(tmp_path) as pair:
        connection = pair.connect()
        connection.request("GET", "/say")
        assert connection.getresponse().read()
        pair.stop_head()
        for path in ("/v1/models", "/readyz"):
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert b"head_lost" in response.read()
        connection.close()


@given(st.lists(st.tuples(st.sampled_from([b"x", b"y", b"host", b"authorization"]), st.binary(max_size=4))))
def test_fields_that_concern_no_connection_all_go_on(headers: list[tuple[bytes, bytes]]) -> None:
    """In their order, as often as they came."""
    assert list(end_to_end(headers)) == headers


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5"), (b"content-length", b"6")],
        [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"chunked")],
        [(b"content-length", b"-5")],
        [(b"content-length", b"0x5")],
        [(b"content-length", b"5" * 19)],
    ],
)
def test_a_body_whose_length_is_unclear_is_not_passed_on(headers: list[tuple[bytes, bytes]]) -> None:
    """Whatever a parser may have made of it."""
    with pytest.raises(InvalidError) as caught:
        body_of(headers)
    assert caught.value.code == "request_ambiguous"


@given(
    st.none() | st.tuples(st.text(max_size=40), st.integers(0, 65_535)),
    st.none() | st.tuples(st.text(max_size=40), st.none() | st.integers(0, 65_535)),
    st.sampled_from(["http", "https"]),
)
def test_who_a_caller_is_travels_unchanged_in_one_line(
    client: tuple[str, int] | None, server: tuple[str, int | None] | None, scheme: str
) -> None:
    """Whatever an address looks like, the field holds it and nothing that ends a line."""
    origin = Origin(client, server, scheme)
    field = origin.to_field()
    assert Origin.from_field(field) == origin
    assert b"\r" not in field
    assert b"\n" not in field


def test_a_head_holds_one_length_and_no_field_of_another_hop() -> None:
    """What is written for a request with everything in it."""
    scope = {
        "method": "POST",
        "raw_path": b"/a",
        "query_string": b"b=1",
        "headers": [(b"host", b"h"), (b"content-length", b"3"), (b"upgrade", b"x"), (b"expect", b"100-continue")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
    }
    lines = request_head(scope, Body(3, awaited=True)).split(b"\r\n")
    assert lines[0] == b"POST /a?b=1 HTTP/1.1"
    assert lines[1:4] == [b"host: h", b"content-length: 3", b"expect: 100-continue"]
    assert lines[4].startswith(CALLER)
    assert lines[5:] == [b"", b""]


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _whole(receive: Receive) -> bytes:
    found, more = b"", True
    while more:
        message = await receive()
        found, more = found + message["body"], message.get("more_body", False)
    return found


async def _until_gone(receive: Receive, gone: threading.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


async def _lifespan(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


@contextlib.contextmanager
def _pair(folder: Path) -> Iterator[Pair]:
    path = folder / "head"
    own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    own.bind(str(path))
    own.listen(BACKLOG)
    public = listen("127.0.0.1", 0)
    port = public.getsockname()[1]
    head, worker = Head(), Worker(path)
    stops, threads = (threading.Event(), threading.Event()), []
    for app, listener, stop in ((Behind(head), own, stops[0]), (worker, public, stops[1])):
        begun = threading.Event()
        thread = threading.Thread(
            target=serve_on, args=(app, listener), kwargs={"ready": begun.set, "stop": stop}, daemon=True
        )
        thread.start()
        assert begun.wait(10)
        threads.append(thread)

    def stop_head() -> None:
        stops[0].set()
        threads[0].join(20)

    try:
        yield Pair(head, worker, port, stop_head)
    finally:
        head.gone.set()
        head.free.set()
        for stop, thread in zip(stops, threads, strict=True):
            stop.set()
            thread.join(20)
