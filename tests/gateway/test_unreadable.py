"""What is no HTTP, or HTTP that two servers might read in two ways: refused in the words of every other refusal.

Over raw sockets to a gateway that listens. What is smuggled is a call that would be paid for, so that a request read
in the other way shows in the books.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from toy.desk import Desk, open_desk
from toy.rogue import Rogue, rogue
from toy.upstream import models_file

CHAT = "/v1/chat/completions"
WAYS: dict[str, dict[str, Any]] = {
    "in process": {"model": "toy"},
    "passed on": {"model": "fine"},
    "with sources": {"model": "fine", "headwater": {}},
}
PAID = b'{"model":"fine","messages":[{"role":"user","content":"hi"}],"max_tokens":5}'
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PAID), PAID)
LENGTH = b"Content-Length: %d\r\n" % len(PAID)


@pytest.fixture(scope="module")
def server() -> Iterator[Rogue]:
    """An upstream that waits when it is told to."""
    with rogue() as running:
        yield running


@pytest.fixture(scope="module")
def desk(server: Rogue, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway before it."""
    config = models_file(server.url, ("fine", "held"))
    with open_desk(tmp_path_factory.mktemp("home"), upstreams=config) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(desk: Desk) -> Iterator[None]:
    """After each test: nothing is held, the books hold, and the next caller is answered."""
    yield
    clean(desk)
    with desk.post({"model": "toy", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}) as answer:
        assert answer.status == 200


def clean(desk: Desk) -> None:
    """Nothing is at work, held or reserved."""
    desk.settled()
    desk.booked()
    assert desk.toy.db.query("SELECT 1 FROM calls WHERE state = 'reserved'") == []
    assert desk.toy.calls.check() == ()


def head(desk: Desk, fields: bytes = LENGTH, line: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    """A request's head, with a right key."""
    return line + b"\r\nHost: x\r\nAuthorization: Bearer " + desk.secret.encode() + b"\r\n" + fields + b"\r\n"


def ask(desk: Desk, way: str, version: str = "1.1", fields: str = "", **more: object) -> bytes:
    """A call as its bytes."""
    body = {**WAYS[way], "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **more}
    raw = json.dumps(body).encode()
    return head(desk, f"Content-Length: {len(raw)}\r\n{fields}".encode(), f"POST {CHAT} HTTP/{version}".encode()) + raw


def connect(desk: Desk) -> socket.socket:
    """A connection."""
    return socket.create_connection(("127.0.0.1", desk.port), timeout=10)


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other side has closed, which it has to."""
    read = b""
    while piece := connection.recv(65_536):
        read += piece
    return read


def said(raw: bytes) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """The responses in some bytes, each with a length or in chunks: status, headers, body."""
    found = []
    while raw:
        top, _, raw = raw.partition(b"\r\n\r\n")
        line, *fields = top.split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(b":") for field in fields)}
        body = b""
        if b"content-length" in headers:
            body, raw = raw[: int(headers[b"content-length"])], raw[int(headers[b"content-length"]) :]
        else:
            assert headers[b"transfer-encoding"] == b"chunked"
            size = 1
            while size:
                number, _, raw = raw.partition(b"\r\n")
                size = int(number, 16)
                body, raw = body + raw[:size], raw[size + 2 :]
        found.append((int(line.split()[1]), headers, body))
    return found


def told(response: tuple[int, dict[bytes, bytes], bytes]) -> tuple[int, str]:
    """Status and code of a refusal in OpenAI's form, which ends its connection."""
    status, headers, body = response
    error = json.loads(body)["error"]
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"connection"] == b"close"
    assert headers[b"x-should-retry"] == b"false"
    assert re.fullmatch(rb"req_[0-9a-f]{24}", headers[b"x-request-id"])
    assert "(fix: " in error["message"]
    return status, error["code"]


def counted(desk: Desk, status: int) -> int:
    """How many responses of this status the counters know of."""
    text = desk.app.metrics.render(desk.app.answering.state(), desk.app.worker.state(), desk.app.relay)
    return sum(
        int(float(line.rsplit(" ", 1)[1]))
        for line in text.splitlines()
        if line.startswith("headwater_requests_total") and f'status="{status}"' in line
    )


INVALID = (400, "http_invalid")
CODING = (400, "transfer_coding_unsupported")
VERSION = (400, "http_version_unsupported")
FRAMINGS: dict[str, tuple[bytes, bytes, tuple[int, str]]] = {
    "length and chunks": (LENGTH + CHUNKED, CHUNKS, INVALID),
    "chunks and length": (CHUNKED + LENGTH, CHUNKS, INVALID),
    "no length and chunks": (b"Content-Length: 0\r\n" + CHUNKED, CHUNKS, INVALID),
    "two lengths": (b"Content-Length: 0\r\n" + LENGTH, PAID, INVALID),
    "one length twice": (LENGTH + LENGTH, PAID, INVALID),
    "a list of lengths": (b"Content-Length: %d, %d\r\n" % (len(PAID), len(PAID)), PAID, INVALID),
    "plus": (b"Content-Length: +%d\r\n" % len(PAID), PAID, INVALID),
    "minus": (b"Content-Length: -%d\r\n" % len(PAID), PAID, INVALID),
    "hexadecimal": (b"Content-Length: 0x%x\r\n" % len(PAID), PAID, INVALID),
    "underscore": (b"Content-Length: 7_5\r\n", PAID, INVALID),
    "space within": (b"Content-Length: 7 5\r\n", PAID, INVALID),
    "other digits": (b"Content-Length: \xd9\xa7\xd9\xa5\r\n", PAID, INVALID),
    "empty length": (b"Content-Length:\r\n", PAID, INVALID),
    "length beyond 64 bits": (b"Content-Length: %d\r\n" % (2**64 + len(PAID)), PAID, INVALID),
    "space before the colon": (b"Content-Length : %d\r\n" % len(PAID), PAID, INVALID),
    "folded": (LENGTH + b"X: a\r\n b\r\n", PAID, INVALID),
    "folded coding": (b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS, INVALID),
    "bare LF": (LENGTH + b"X: a\n", PAID, INVALID),
    "bare CR": (LENGTH + b"X: a\rY: b\r\n", PAID, INVALID),
    "NUL": (LENGTH + b"X: a\x00b\r\n", PAID, INVALID),
    "NUL in a name": (LENGTH + b"X\x00: a\r\n", PAID, INVALID),
    "no name": (LENGTH + b": a\r\n", PAID, INVALID),
    "no colon": (LENGTH + b"Transfer-Encoding\r\n", PAID, INVALID),
    "chunked twice": (CHUNKED + CHUNKED, CHUNKS, INVALID),
    "chunked, then packed": (b"Transfer-Encoding: chunked, gzip\r\n", CHUNKS, INVALID),
    "packed, then chunked": (b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS, CODING),
    "nearly chunked": (b"Transfer-Encoding: xchunked\r\n", CHUNKS, CODING),
    "identity": (b"Transfer-Encoding: identity\r\n", CHUNKS, CODING),
    "quoted": (b'Transfer-Encoding: "chunked"\r\n', CHUNKS, CODING),
    "vertical tab": (b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS, INVALID),
    "tab after": (b"Transfer-Encoding: chunked\t \r\n", CHUNKS, INVALID),
    "minus chunk": (CHUNKED, b"-" + CHUNKS, INVALID),
    "plus chunk": (CHUNKED, b"+" + CHUNKS, INVALID),
    "0x chunk": (CHUNKED, b"0x" + CHUNKS, INVALID),
    "no chunk size": (CHUNKED, b"\r\n" + CHUNKS, INVALID),
    "chunk beyond 64 bits": (CHUNKED, b"f" * 17 + b"\r\n" + PAID, INVALID),
    "chunk longer than it says": (CHUNKED, b"5\r\n" + PAID + b"\r\n0\r\n\r\n", INVALID),
    "chunks with bare LF": (CHUNKED, CHUNKS.replace(b"\r\n", b"\n"), INVALID),
    "extension with bare LF": (CHUNKED, CHUNKS.replace(b"\r\n", b";x\n", 1), INVALID),
    "length in the trailer": (CHUNKED, CHUNKS[:-2] + b"Content-Length: 9\r\n\r\n", INVALID),
    "a flood of trailers": (CHUNKED, CHUNKS[:-2] + b"X: y\r\n" * 200 + b"\r\n", (431, "head_too_large")),
    "coding in the trailer": (CHUNKED, CHUNKS[:-2] + CHUNKED + b"\r\n", INVALID),
}


@pytest.mark.parametrize("shape", FRAMINGS)
def test_a_body_that_could_be_read_in_two_ways_is_read_in_none(desk: Desk, shape: str) -> None:
    """Told once, in JSON, and the connection ends: a second call behind it is never seen, and nothing is paid."""
    fields, body, expected = FRAMINGS[shape]
    before, seen = desk.toy.spent(desk.key), counted(desk, expected[0])
    with connect(desk) as connection:
        connection.sendall(head(desk, fields) + body + head(desk) + PAID)
        (response,) = said(everything(connection))

    assert told(response) == expected
    assert counted(desk, expected[0]) == seen + 1
    clean(desk)
    assert desk.toy.spent(desk.key) == before


LINES: dict[str, tuple[bytes, tuple[int, str]]] = {
    "garbage": (b"\x00\xff\xfe\r\n\r\n", INVALID),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", INVALID),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", INVALID),
    "version 2": (b"GET /healthz HTTP/2.0\r\n\r\n", VERSION),
    "version 0.9": (b"GET /healthz HTTP/0.9\r\n\r\n", VERSION),
    "version 1.2": (b"GET /healthz HTTP/1.2\r\n\r\n", INVALID),
    "bare LF": (b"GET /healthz HTTP/1.1\n\n", INVALID),
    "tabs": (b"GET\t/healthz\tHTTP/1.1\r\n\r\n", INVALID),
    "space in the path": (b"GET /health z HTTP/1.1\r\n\r\n", INVALID),
    "NUL in the path": (b"GET /health\x00z HTTP/1.1\r\n\r\n", INVALID),
    "path beyond ASCII": ("GET /v1/modèles HTTP/1.1\r\n\r\n".encode(), INVALID),
    "no path": (b"GET v1/models HTTP/1.1\r\n\r\n", INVALID),
    "a port beyond ports": (b"GET http://u:p@x:99999/v1/models HTTP/1.1\r\n\r\n", INVALID),
    "a tunnel": (b"CONNECT x:1 HTTP/1.1\r\n\r\nbytes", INVALID),
    "chunks of HTTP/1.0": (b"POST /v1/chat/completions HTTP/1.0\r\n" + CHUNKED + b"\r\n" + CHUNKS, INVALID),
}


@pytest.mark.parametrize("line", LINES)
def test_what_is_no_request_is_told_so_in_json(desk: Desk, line: str) -> None:
    """In the form of every other error, with an id, and the connection ends."""
    raw, expected = LINES[line]
    with connect(desk) as connection:
        connection.sendall(raw)
        (response,) = said(everything(connection))
    assert told(response) == expected


@pytest.mark.parametrize("pieces", [1, 200], ids=["at once", "in pieces"])
@pytest.mark.parametrize(
    "fields",
    [b"X-Long: " + b"y" * 300_000 + b"\r\n", b"".join(b"X-%d: y\r\n" % n for n in range(9_000)), b"X" * 300_000],
    ids=["long", "many", "endless"],
)
def test_a_head_that_is_too_large_is_431_and_its_sender_reads_it(desk: Desk, fields: bytes, pieces: int) -> None:
    """Also one that has not been sent to its end: closing at once would take the answer away."""
    raw, step = head(desk, fields), -(-len(fields) // pieces)
    with connect(desk) as connection:
        with suppress(OSError):
            for start in range(0, len(raw), step):
                connection.sendall(raw[start : start + step])
        (response,) = said(everything(connection))
    assert told(response) == (431, "head_too_large")


def test_a_path_that_is_too_long_is_414(desk: Desk) -> None:
    """Whatever the head may hold beside it."""
    with connect(desk) as connection:
        connection.sendall(head(desk, b"", b"GET /v1/" + b"a" * 9_000 + b" HTTP/1.1"))
        (response,) = said(everything(connection))
    assert told(response) == (414, "target_too_long")


# Beside requests that are fine


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_comes_before_it_is_answered_first(desk: Desk, way: str, stream: bool) -> None:
    """Two calls and then garbage, in one go: two whole answers, then the refusal, and no byte of it in between."""
    before = desk.toy.spent(desk.key)
    with connect(desk) as connection:
        connection.sendall(ask(desk, way, stream=stream) * 2 + b"\x00\r\n\r\n" + ask(desk, way))
        first, second, refusal = said(everything(connection))

    assert (first[0], second[0]) == (200, 200)
    assert (b"[DONE]" in first[2], b"[DONE]" in second[2]) == (stream, stream)
    assert told(refusal) == INVALID
    clean(desk)
    assert desk.toy.spent(desk.key) > before


@pytest.mark.parametrize("way", WAYS)
def test_a_chunk_that_cannot_be_read_ends_a_call_that_waits_for_it(desk: Desk, way: str) -> None:
    """Its call is not made, whether it is the first on its connection or behind another; that one is answered."""
    raw = ask(desk, way)
    top, _, body = raw.partition(b"\r\n\r\n")
    chunked = re.sub(rb"Content-Length: \d+", b"Transfer-Encoding: chunked", top) + b"\r\n\r\n"
    clean(desk)
    before = len(list(desk.toy.log.entries(0)))
    for first in (b"", raw):
        with connect(desk) as connection:
            connection.sendall(first + chunked + b"%x\r\n%b" % (len(body), body))
            time.sleep(0.05)
            connection.sendall(b"\r\nnonsense\r\n")
            *others, refusal = said(everything(connection))
        assert [status for status, _, _ in others] == ([200] if first else [])
        assert told(refusal) == INVALID
    clean(desk)
    assert len(list(desk.toy.log.entries(0))) == before + 1


def test_a_call_that_was_refused_already_is_not_told_of_the_rest(desk: Desk) -> None:
    """A body that is too large and then no body at all: one answer, and the end."""
    with connect(desk) as connection:
        connection.sendall(head(desk, CHUNKED) + b"2100000\r\n" + b"x" * 0x2100000)
        answer = connection.recv(65_536)
        connection.sendall(b"nonsense")
        (response,) = said(answer + everything(connection))
    assert response[0] == 413


def test_a_caller_who_leaves_with_a_request_in_line_stops_the_one_at_work(desk: Desk) -> None:
    """The connection's newest request is not the one that the model is answering."""
    made = desk.toy.model.tokens
    with connect(desk) as connection:
        more = {"messages": [{"role": "user", "content": "[delay=0.005] tell me"}], "max_tokens": 600, "stream": True}
        connection.sendall(ask(desk, "in process", **more))
        connection.recv(64)
        connection.sendall(ask(desk, "in process"))
    desk.settled()
    assert desk.toy.model.tokens - made < 300


@pytest.mark.parametrize("way", WAYS)
def test_a_next_request_that_has_come_in_part_keeps_its_head(desk: Desk, way: str) -> None:
    """Split at every fifth byte behind a call of another payer: each is answered to its own payer, at its own price."""
    first, (secret, key) = ask(desk, way), desk.toy.key("another")
    second = ask(desk, "passed on").replace(desk.secret.encode(), secret.encode())
    head_bytes, rounds = second.index(b"\r\n\r\n") + 4, 0
    clean(desk)
    mine, theirs = desk.toy.spent(desk.key), desk.toy.spent(key)
    for cut in range(1, head_bytes, 5):
        rounds += 1
        with connect(desk) as connection:
            connection.sendall(first + second[:cut])
            time.sleep(0.002)
            connection.sendall(second[cut:])
            read = b""
            while read.count(b'"headwater":') < 2:
                read += (piece := connection.recv(65_536))
                assert piece, read
        assert [status for status, _, _ in said(read)] == [200, 200]
    clean(desk)
    assert (desk.toy.spent(desk.key) - mine) % rounds == 0 < desk.toy.spent(desk.key) - mine
    assert desk.toy.spent(key) - theirs == rounds * 1_000_000


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_large_body_that_comes_with_the_end_of_its_head_does_not_count_to_it(
    desk: Desk, way: str, pieces: int
) -> None:
    """The bound is the head's own, however its bytes are cut into packets."""
    raw = ask(desk, way, user="x" * 400_000)
    head_bytes = raw.index(b"\r\n\r\n")
    with connect(desk) as connection:
        for start in range(pieces - 1):
            connection.sendall(raw[:head_bytes][start * 40 : start * 40 + 40])
            time.sleep(0.02)
        connection.sendall(raw[(pieces - 1) * 40 :])
        (response,) = said(connection.recv(65_536))
    assert response[0] == 200


def test_wishes_for_another_protocol_in_a_row_are_each_declined(desk: Desk) -> None:
    """A thousand in one go, with nothing that grows with them."""
    wish = b"GET /healthz HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    with connect(desk) as connection:
        connection.sendall(wish * 1_500 + head(desk, b"Connection: close\r\n", b"GET /healthz HTTP/1.1"))
        answers = said(everything(connection))
    assert [status for status, _, _ in answers] == [200] * 1_501


# HTTP/1.0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fields", ["", "Connection: keep-alive\r\n", "Expect: 100-continue\r\n"])
def test_a_stream_to_a_caller_of_http_1_0_has_no_frame_and_ends_with_the_connection(
    desk: Desk, way: str, fields: str
) -> None:
    """That version knows no chunks: events as they are, `[DONE]`, and the end."""
    with connect(desk) as connection:
        connection.sendall(ask(desk, way, "1.0", fields, stream=True))
        top, _, body = everything(connection).partition(b"\r\n\r\n")

    assert top.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in top
    assert b"content-length" not in top
    assert b"connection: close" in top
    *events, done, end = body.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    assert all(json.loads(event.removeprefix(b"data: "))["object"] == "chat.completion.chunk" for event in events)
    assert b'"headwater":' in events[-1]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_to_http_1_0_keeps_the_connection_only_if_it_was_asked_to(desk: Desk, way: str) -> None:
    """Which then says so, as that version wants it, and serves the next request."""
    with connect(desk) as connection:
        connection.sendall(ask(desk, way, "1.0"))
        (alone,) = said(everything(connection))
    with connect(desk) as connection:
        connection.sendall(ask(desk, way, "1.0", "Connection: keep-alive\r\n") * 2 + ask(desk, way, "1.0"))
        *kept, last = said(everything(connection))

    assert (alone[0], alone[1][b"connection"]) == (200, b"close")
    assert [(status, headers[b"connection"]) for status, headers, _ in kept] == [(200, b"keep-alive")] * 2
    assert (last[0], last[1][b"connection"]) == (200, b"close")


def test_a_caller_of_http_1_0_who_leaves_a_stream_stops_it(desk: Desk) -> None:
    """As any other; what was generated until then is paid for."""
    made, before = desk.toy.model.tokens, desk.toy.spent(desk.key)
    with connect(desk) as connection:
        more = {"messages": [{"role": "user", "content": "[delay=0.005] tell me"}], "max_tokens": 600}
        connection.sendall(ask(desk, "in process", "1.0", stream=True, **more))
        connection.recv(64)
    clean(desk)
    assert desk.toy.model.tokens - made < 300
    assert desk.toy.spent(desk.key) > before


def test_heads_and_errors_to_http_1_0_are_whole(desk: Desk) -> None:
    """No body to HEAD; an error has its length and its code."""
    for method, path, expected in ((b"HEAD", b"/v1/models", 200), (b"GET", b"/v1/nothing", 404)):
        with connect(desk) as connection:
            connection.sendall(head(desk, b"", b"%b %b HTTP/1.0" % (method, path)))
            top, _, body = everything(connection).partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", top)[1])  # type: ignore[index]
        assert int(top.split()[1]) == expected
        assert len(body) == (0 if method == b"HEAD" else length) < length + 1


# Methods and paths


OPENAI = (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings")


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "BREW", "post"])
def test_other_methods_are_405_and_told_which_there_are(desk: Desk, method: str) -> None:
    """Also those that no HTTP knows, and a browser's question before a request to another origin."""
    cors = b"Origin: https://x.example\r\nAccess-Control-Request-Method: POST\r\nConnection: close\r\n"
    for path in (*OPENAI, "/v1/models", "/v1/models/toy"):
        with connect(desk) as connection:
            connection.sendall(head(desk, cors, f"{method} {path} HTTP/1.1".encode()))
            ((status, headers, body),) = said(everything(connection))
        assert (status, json.loads(body)["error"]["code"]) == (405, "method_not_allowed"), path
        assert headers[b"allow"] == (b"POST" if path in OPENAI else b"GET, HEAD")
        assert b"access-control-allow-origin" not in headers


def test_head_of_a_route_says_what_its_body_would(desk: Desk) -> None:
    """Without the body, so that the next answer on the connection is whole."""
    for path, expected in ((CHAT, 405), ("/v1/nothing", 404), ("/v1/models", 200), ("/v1/models/nix", 404)):
        with connect(desk) as connection:
            connection.sendall(head(desk, b"", f"HEAD {path} HTTP/1.1".encode()))
            connection.sendall(head(desk, b"Connection: close\r\n", b"GET /healthz HTTP/1.1"))
            top, _, rest = everything(connection).partition(b"\r\n\r\n")
        assert int(top.split()[1]) == expected
        assert rest.startswith(b"HTTP/1.1 200 ")


def test_paths_that_are_not_there_are_404_in_openai_s_form(desk: Desk) -> None:
    """Whatever the method."""
    for path in ("/v1/", "/v1/nothing", "/v1/chat", CHAT + "/", "/v1/%2e%2e/admin", "/v1/%ff"):
        for method in ("GET", "POST", "OPTIONS", "DELETE"):
            with connect(desk) as connection:
                connection.sendall(head(desk, b"Connection: close\r\n", f"{method} {path} HTTP/1.1".encode()))
                ((status, headers, body),) = said(everything(connection))
            assert (status, json.loads(body)["error"]["code"]) == (404, "route_unknown"), (method, path)
            assert headers[b"content-type"] == b"application/json"


def test_a_method_that_nobody_knows_is_400_elsewhere(desk: Desk) -> None:
    """Where no list of methods would be right."""
    with connect(desk) as connection:
        connection.sendall(head(desk, b"", b"BREW /v1/account HTTP/1.1"))
        (response,) = said(everything(connection))
    assert told(response) == (400, "method_unknown")
