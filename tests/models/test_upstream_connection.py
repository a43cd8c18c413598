"""Responses on one connection, in any pieces: the same is read whether the parser or the last head says it."""

from __future__ import annotations

import asyncio
import random

import httptools
import pytest

from headwater.core.errors import UpstreamError
from headwater.models.upstream import connection as module
from headwater.models.upstream.connection import Connection

SEED = 11


class _Transport:
    """Takes what is written, and remembers that it was ended."""

    def __init__(self) -> None:
        self.ended = False

    def write(self, data: bytes) -> None:
        """Nothing is sent anywhere."""

    def is_closing(self) -> bool:
        """Whether it was ended."""
        return self.ended

    def abort(self) -> None:
        """End."""
        self.ended = True

    close = abort


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item for each response that the parser was asked to read."""
    made: list[int] = []
    real = httptools.HttpResponseParser

    def make(protocol: object) -> object:
        made.append(1)
        return real(protocol)

    monkeypatch.setattr(module.httptools, "HttpResponseParser", make)
    return made


def response(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    """A response with a length."""
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
        *(status, more, len(body)),
        body,
    )


def chunked(body: bytes) -> bytes:
    """One without."""
    piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + piece + b"0\r\n\r\n"


def exchange(connection: Connection, pieces: list[bytes]) -> tuple[int, bytes]:
    """Ask, have a response come in pieces, and read all of it."""

    async def run() -> tuple[int, bytes]:
        connection._loop = asyncio.get_running_loop()
        connection.send(b"POST / HTTP/1.1\r\n\r\n")
        for piece in pieces:
            connection.data_received(piece)
        await connection.head()
        return connection.status, await connection.whole(1 << 20)

    return asyncio.run(run())


def opened() -> tuple[Connection, _Transport]:
    """A connection over a stand-in for its socket."""
    loop = asyncio.new_event_loop()
    loop.close()
    connection, transport = Connection(loop), _Transport()
    connection.connection_made(transport)  # type: ignore[arg-type]
    return connection, transport


def test_a_head_that_comes_again_needs_no_parser(parsed: list[int]) -> None:
    connection, _ = opened()
    assert exchange(connection, [response(b"one")]) == (200, b"one")
    first = connection.headers
    assert exchange(connection, [response(b"another")]) == (200, b"another")
    assert len(parsed) == 1
    assert [name for name, _ in connection.headers] == [name for name, _ in first]
    assert exchange(connection, [response(b"no", b"429 Too Many")]) == (429, b"no")
    assert exchange(connection, [response(b"yes", more=b"x-request-id: 2\r\n")]) == (200, b"yes")
    assert len(parsed) == 3
    assert connection.usable


def test_responses_of_all_kinds_cut_anywhere_are_read_as_they_are(parsed: list[int]) -> None:
    chosen = random.Random(SEED)
    made = 0
    for _ in range(40):
        connection, transport = opened()
        for _ in range(8):
            body = bytes(chosen.choices(b"abcdef", k=chosen.choice((0, 1, 7, 300))))
            kind = chosen.randrange(5)
            raw = chunked(body) if kind == 0 else response(body, b"503 No") if kind == 1 else response(body)
            cuts = sorted(chosen.sample(range(1, len(raw)), chosen.choice((0, 0, 1, 4))))
            pieces = [raw[start:end] for start, end in zip((0, *cuts), (*cuts, len(raw)), strict=True)]
            assert exchange(connection, pieces) == (503 if kind == 1 else 200, body)
            made += 1
        assert connection.usable
        assert not transport.ended
    assert 0 < len(parsed) < made


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_bytes_behind_a_response_end_its_connection_and_are_nobodys(again: bool) -> None:
    connection, transport = opened()
    if again:
        exchange(connection, [response(b"fine")])
    assert exchange(connection, [response(b"mine") + response(b"SMUGGLED")]) == (200, b"mine")
    assert transport.ended
    assert not connection.usable


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_response_that_breaks_off_is_broken(again: bool) -> None:
    connection, _ = opened()
    if again:
        exchange(connection, [response(b"four")])

    async def run() -> None:
        connection._loop = asyncio.get_running_loop()
        connection.send(b"POST / HTTP/1.1\r\n\r\n")
        connection.data_received(response(b"four")[:-2])
        connection.connection_lost(None)
        await connection.head()
        await connection.whole(100)

    with pytest.raises(UpstreamError) as refused:
        asyncio.run(run())
    assert refused.value.code == "upstream_broken"


def test_a_response_to_be_closed_after_is_not_taken_for_one_that_is_not(parsed: list[int]) -> None:
    connection, transport = opened()
    exchange(connection, [response(b"one")])
    assert exchange(connection, [response(b"two", more=b"Connection: close\r\n")]) == (200, b"two")
    assert len(parsed) == 2
    assert transport.ended


def test_a_head_without_a_body_is_not_learnt(parsed: list[int]) -> None:
    """304 may name the length that another answer would have."""
    connection, _ = opened()
    for _ in range(2):
        assert exchange(connection, [b"HTTP/1.1 304 Not\r\nContent-Length: 7\r\n\r\n"]) == (304, b"")
    assert len(parsed) == 2
