"""Connections from a worker to the head: HTTP/1.1 over a Unix socket, kept, with back-pressure both ways.

One exchange at a time: a head, a body in pieces, and the response in pieces while the body may still be going out.
A connection is used again only after a response and its request were whole. Knows nothing of calls or callers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Final, cast

import httptools

from headwater.core.errors import UpstreamError

Headers = tuple[tuple[bytes, bytes], ...]

HEAD_BYTES_MAX: Final = 64 * 2**10
WAITING_BYTES_MAX: Final = 256 * 2**10
"""Bytes of a response that may wait for the caller before the socket is paused."""

LINES_MAX: Final = 1_024
"""Requests of one worker at the head at once; more are told to come back."""

IDLE_S: Final = 5.0
"""How long an unused connection is kept; the head closes silent ones much later."""

CONNECT_S: Final = 5.0


class Stale(Exception):
    """A kept connection turned out to be closed before a byte of the response came."""


class Line(asyncio.Protocol):
    """One connection. `begin`, then `push` and `finish` for a body, beside `head` and `read` for the response."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._heard = asyncio.Event()  # something about the response has changed
        self._writable = asyncio.Event()
        self._writable.set()
        self._body: deque[bytes] = deque()
        self._waiting = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._paused = self._keep = self._bodiless = self._chunked = False
        self._sent = self._done = True
        self._lost = False
        self.exchanges = 0
        self.taken = False  # something of the request's body has been taken from its caller
        self.go_on = False  # the head wants the body
        self.status = 0
        self.headers: Headers = ()
        self.idle_since_s = 0.0

    # Our side

    @property
    def usable(self) -> bool:
        """Whether another exchange may begin."""
        transport = self._transport
        return self._done and self._sent and not self._lost and transport is not None and not transport.is_closing()

    def begin(self, head: bytes, *, bodiless: bool, body: bool, chunked: bool) -> None:
        """Begin an exchange.

        Args:
            bodiless: the response has none whatever it says, as one to HEAD.
            body: whether the request has one.
            chunked: whether it goes in chunks.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self.headers, self.status, self.go_on = [], (), 0, False
        self._body.clear()
        self._waiting = self._head_bytes = 0
        self._bodiless, self._chunked = bodiless, chunked
        self._sent, self._done, self._keep, self.taken = not body, False, False, False
        self.exchanges += 1
        self._heard.clear()
        if self._transport is None or self._transport.is_closing():
            self._lost = True
            return
        self._transport.write(head)

    async def push(self, data: bytes) -> None:
        """Send a piece of the body, waiting while the head does not read.

        Raises:
            UpstreamError: ``head_lost``.
        """
        if not data:
            return
        await self._writable.wait()
        if self._transport is None or self._transport.is_closing():
            raise lost()
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def finish(self) -> None:
        """The body is whole."""
        if self._chunked and self._transport is not None:
            self._transport.write(b"0\r\n\r\n")
        self._sent = True

    async def wanted(self) -> bool:
        """Wait until the head wants the body; false when it has answered without."""
        while not (self.go_on or self.status):
            self._check()
            await self._hear()
        return self.go_on

    async def head(self) -> None:
        """Wait for status and headers.

        Raises:
            Stale: a connection that was used before turned out to be closed.
            UpstreamError: ``head_lost``.
        """
        while not self.status:
            self._check()
            await self._hear()

    async def read(self) -> bytes:
        """What has come of the response, waiting for at least a byte; empty at its end.

        Raises:
            UpstreamError: ``head_lost`` when it ends too early.
        """
        while not self._body:
            if self._done:
                return b""
            self._check()
            await self._hear()
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._waiting = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    @property
    def ended(self) -> bool:
        """Whether the whole response has been read."""
        return self._done and not self._body

    def close(self) -> None:
        """Drop the connection; the head takes its caller for gone."""
        if self._transport is not None:
            self._transport.abort()

    async def _hear(self) -> None:
        self._heard.clear()
        await self._heard.wait()

    def _check(self) -> None:
        if self._lost:
            if self.exchanges > 1 and not self.status and not self._head_bytes:
                raise Stale
            raise lost()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        """The head does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._parser is None or self._done:
            self.close()  # nobody asked for them
            return
        if not self.status:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._give_up()
            return
        if not self.status and self._head_bytes > HEAD_BYTES_MAX:
            self._give_up()
            return
        if self._waiting > WAITING_BYTES_MAX and not self._paused and self._transport is not None and not self._done:
            self._paused = True
            self._transport.pause_reading()
        self._heard.set()

    def eof_received(self) -> None:
        """The head will send no more."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The socket is closed."""
        self._lost, self._transport = True, None
        self._writable.set()
        self._heard.set()

    def _give_up(self) -> None:
        self._lost = True
        self.close()
        self._heard.set()

    # The parser's side

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field, of the head or a trailer; trailers are dropped."""
        if not self.status:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """A head is whole; an interim one only says whether to go on."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []
            self.go_on = self.go_on or status == 100
            return
        self.status, self.headers = status, tuple(self._headers)
        self._keep = self._parser.should_keep_alive()
        if self._bodiless:
            self._end()

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._done:
            self._body.append(data)
            self._waiting += len(data)

    def on_message_complete(self) -> None:
        """The response is whole."""
        if self.status and not self._done:
            self._end()

    def _end(self) -> None:
        self._done = True
        if not self._keep and self._transport is not None:
            self._transport.close()


class Lines:
    """The connections of one worker to the head. Belongs to one event loop."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._idle: list[Line] = []
        self.open = 0

    async def take(self, *, fresh: bool = False) -> Line:
        """A connection for one exchange; `give_back` it.

        Args:
            fresh: one that was not used before.

        Raises:
            UpstreamError: ``head_busy`` or ``head_lost``.
        """
        loop = asyncio.get_running_loop()
        while self._idle:
            line = self._idle.pop()
            if not fresh and line.usable and loop.time() - line.idle_since_s < IDLE_S:
                self.open += 1
                return line
            line.close()
        if self.open >= LINES_MAX:
            raise UpstreamError(
                f"{self.open} requests wait for the head process", code="head_busy", fix="try again in a moment"
            )
        self.open += 1
        try:
            async with asyncio.timeout(CONNECT_S):
                _, line = await loop.create_unix_connection(lambda: Line(loop), self._path)
        except BlockingIOError:
            self.open -= 1
            raise UpstreamError(
                "the head process takes no more connections", code="head_busy", fix="try again in a moment"
            ) from None
        except (OSError, TimeoutError):
            self.open -= 1
            raise lost() from None
        except BaseException:
            self.open -= 1
            raise
        return line

    def give_back(self, line: Line) -> None:
        """The exchange has ended; what is not whole is dropped."""
        self.open -= 1
        if line.usable:
            line.idle_since_s = asyncio.get_running_loop().time()
            self._idle.append(line)
        else:
            line.close()

    def close(self) -> None:
        """Drop what is idle."""
        for line in self._idle:
            line.close()
        self._idle.clear()


def lost() -> UpstreamError:
    """The error of a head that is gone."""
    return UpstreamError("the head process cannot be reached", code="head_lost", fix="try again in a moment")
