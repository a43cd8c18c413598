"""One kept-alive HTTP/1.1 connection to an upstream: bytes out, a parsed response in, nothing in between.

A general client costs ten times what the rest of a call costs; this one speaks only what a model
server is asked: a request with a body, a response that is short or a long stream. One exchange at a
time, back-pressure by pausing the socket, limits on heads and bodies. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import httptools

from headwater.core.errors import UpstreamError
from headwater.core.known_head import KnownHead

HEAD_BYTES_MAX: Final = 64 * 2**10
WAITING_BYTES_MAX: Final = 256 * 2**10
"""Bytes of a stream that may wait for the reader before the socket is paused."""

Headers = tuple[tuple[bytes, bytes], ...]

_BODILESS: Final = (204, 304)
"""Responses whose length, if they name one, is not that of a body of theirs."""


class Stale(Exception):
    """A kept-alive connection turned out to be closed before a byte of the response came: try another."""


class Connection(asyncio.Protocol):
    """The protocol of one connection. `send` begins an exchange; `head` and `read` follow it."""

    __slots__ = (
        "_begins",
        "_body",
        "_done",
        "_error",
        "_first",
        "_head_bytes",
        "_headers",
        "_keep",
        "_known",
        "_late_s",
        "_loop",
        "_missing",
        "_overdue",
        "_parser",
        "_paused",
        "_started",
        "_take",
        "_transport",
        "_waiter",
        "_waiting",
        "exchanges",
        "headers",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._body: deque[bytes] = deque()
        self._headers: list[tuple[bytes, bytes]] = []
        self._error: Exception | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._paused = self._keep = self._started = False
        self._done = True
        self._waiting = self._head_bytes = self._missing = self._begins = 0
        self._parser: httptools.HttpResponseParser | None = None  # from the first byte of a response that needs it
        self._known: KnownHead[tuple[int, Headers]] = KnownHead()  # of responses that leave the connection open
        self._first = b""  # of the response, as the parser was given it
        self._late_s, self._overdue = 0.0, ("", 0.0)
        self.exchanges = 0
        self.status = 0
        self.headers: Headers = ()

    # Our side

    def expect_within(self, seconds: float, otherwise: str) -> None:
        """Something must come within so many seconds, or the exchange ends with `otherwise`; see `end_if_late`."""
        self._late_s, self._overdue = self._loop.time() + seconds, (otherwise, seconds)

    def end_if_late(self, now_s: float) -> None:
        """End the exchange if it is overdue."""
        if not self._done and now_s > self._late_s:
            what, seconds = self._overdue
            self.fail(
                UpstreamError(f"{what} within {seconds:g} s", code="upstream_timeout", fix="try again, or ask for less")
            )

    @property
    def usable(self) -> bool:
        """Whether another exchange may begin on it."""
        transport = self._transport
        return self._done and self._error is None and transport is not None and not transport.is_closing()

    @property
    def complete(self) -> bool:
        """Whether the whole response has been read from the socket."""
        return self._done

    def send(self, request: bytes) -> None:
        """Begin an exchange with the bytes of a whole request."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise Stale if self.exchanges else _broken("the upstream closed at once")
        self._parser = None
        self._body.clear()
        self._headers, self.headers, self.status = [], (), 0
        self._done = self._keep = self._started = False
        self._waiting = self._head_bytes = self._missing = 0
        self.exchanges += 1
        transport.write(request)

    async def head(self) -> None:
        """Wait for the status and the headers.

        Raises:
            Stale: the connection was closed before any byte came, and it had been used before.
            UpstreamError: ``upstream_broken``.
        """
        while not self.status:
            self._raise()
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body, waiting for at least one byte; empty at the end.

        Raises:
            UpstreamError: ``upstream_broken`` when the connection ends before the body does.
        """
        while not self._body:
            if self._done:
                return b""
            self._raise()
            await self._wait()
        data = self._body.popleft() if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._waiting = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Give what comes of the body to `take`, as it comes and without a task in between; whether it has ended.

        Args:
            take: says whether it wants more; what it raises ends this, and the exchange.

        Raises:
            UpstreamError: as `read`.
        """
        if self._body and not take(await self.read()):
            return self._done
        self._take = take
        try:
            while self._take is not None and not self._done:
                self._raise()
                await self._wait()
            if self._take is not None and self._error is not None and not self._body:
                self._raise()
        finally:
            self._take = None
        return self._done

    def _give(self, take: Callable[[bytes], bool]) -> None:
        data = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._waiting = 0
        try:
            wanted = take(data)
        except Exception as error:
            self.fail(error)
            return
        if not wanted:
            self._take = None

    async def whole(self, bytes_max: int) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: ``upstream_broken``, or ``upstream_too_large`` beyond `bytes_max`.
        """
        first = await self.read()
        if self._done and not self._body:
            self._check_size(len(first), bytes_max)
            return first
        pieces, size = [first], len(first)
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            self._check_size(size, bytes_max)
        return b"".join(pieces)

    def close(self) -> None:
        """Drop the connection; whatever is under way on it ends."""
        if self._transport is not None:
            self._transport.abort()

    def _check_size(self, size: int, bytes_max: int) -> None:
        if size > bytes_max:
            self.close()
            raise UpstreamError(
                f"the upstream's answer is larger than {bytes_max} bytes", code="upstream_too_large", fix="ask for less"
            )

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def fail(self, error: Exception) -> None:
        """End whatever is under way with `error`, and the connection with it."""
        if self._error is None:
            self._error = error
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self._transport = cast(asyncio.Transport, transport)  # the loop's own kind is no subclass everywhere

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._done:
            self.fail(_broken("the upstream sent bytes nobody asked for"))
            return
        began, self._started = not self._started, True
        if self.status:
            self._late_s = self._loop.time() + self._overdue[1]
        known = self._again(data) if began else self._parser is None
        if known:
            self._rest(data[self._begins :] if began else data)
        elif not self._parse(data):
            return
        take = self._take
        if take is not None:
            if self._body:
                self._give(take)
            if self._take is not None and not self._done:
                return
        if self._waiting > WAITING_BYTES_MAX and not self._paused and self._transport is not None and not self._done:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def _again(self, data: bytes) -> bool:
        """Take a response that begins with the head of the last one here; False when the parser has to read it."""
        at = self._known.match(data)
        if at is None or self._known.found is None:
            return False
        self._missing, self._begins = at
        self.status, self.headers = self._known.found
        self._keep = True
        return True

    def _rest(self, data: bytes) -> None:
        """The body of such a response, or more of it."""
        more, data = len(data) > self._missing, data[: self._missing]
        self._missing -= len(data)
        if data:
            self.on_body(data)
        self._done = not self._missing
        if more:
            self.fail(_broken("the upstream sent bytes nobody asked for"))

    def _parse(self, data: bytes) -> bool:
        """Have the parser read what came; False when the exchange is over for that."""
        if self._parser is None:
            self._parser, self._first = httptools.HttpResponseParser(self), data
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.fail(_broken(f"the upstream does not speak HTTP: {error}"))
            return False
        self._first = b""
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.fail(_broken(f"the upstream's headers exceed {HEAD_BYTES_MAX} bytes"))
                return False
        return True

    def eof_received(self) -> None:
        """The other side will send no more."""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The socket is closed."""
        self._transport = None
        if self._done:
            return
        if not self._started:
            self._error = self._error or (Stale() if self.exchanges > 1 else _broken("the upstream closed at once"))
        elif self.status and self._ends_at_close():
            self._done = True  # a body without a length ends with its connection
        else:
            self._error = self._error or _broken("the connection to the upstream broke before its answer ended")
        self._wake()

    def _ends_at_close(self) -> bool:
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    # The parser's side

    def on_message_begin(self) -> None:
        """A response begins; of a second one, which nobody asked for, nothing is kept, nor is the connection."""
        if self._done:
            self.fail(_broken("the upstream sent bytes nobody asked for"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole; an interim response (1xx) is passed over."""
        assert self._parser is not None
        first, self._first = self._first, b""
        status = self._parser.get_status_code()
        if self._done:
            return
        if status < 200:
            self._headers = []
            return
        self.status, self.headers = status, tuple(self._headers)
        self._keep = self._parser.should_keep_alive()
        if first and self._keep and self._known.learning:
            lengths = [value for name, value in self._headers if name == b"content-length"]
            if len(lengths) == 1 and status not in _BODILESS:
                self._known.learn(first, lengths[0], (status, self.headers))

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._done:
            return
        self._body.append(data)
        self._waiting += len(data)

    def on_message_complete(self) -> None:
        """The response is whole."""
        if not self.status or self._done:
            return
        self._done = True
        if not self._keep and self._transport is not None:
            self._transport.close()


def _broken(message: str) -> UpstreamError:
    return UpstreamError(message, code="upstream_broken", fix="try again, or ask the operator to look at the upstream")
