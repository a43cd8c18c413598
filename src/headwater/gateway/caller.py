"""Whoever asks and is answered: one interface for the relay, over ASGI or straight on a connection.

A whole answer leaves in one piece; a stream begins, passes on and ends. Everything here adds the headers
that each response has, and remembers how the response went, for the log and the counters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from headwater.gateway.errors import Headers
from headwater.gateway.wire import EVENT_STREAM, JSON, Message, Receive, Scope, Send, header, respond, when_gone

GONE: Final = 499
"""The status in log and counters of a request whose caller left before there was one; nginx's number."""

_VERSION: Final = (b"openai-version", b"2020-10-01")


class Caller(Protocol):
    """One request's other end."""

    @property
    def path(self) -> str:
        """The path of the request, which is one of the routes."""
        ...

    def header(self, name: bytes) -> bytes | None:
        """A header of the request, by its name in lower case.

        Raises:
            RequestError: ``header_invalid``, it came twice.
        """
        ...

    async def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """A whole answer of JSON."""
        ...

    async def begin(self, headers: Headers = ()) -> None:
        """The head of a stream of events."""
        ...

    def put(self, data: bytes) -> bool:
        """A piece of the stream; whether more may follow at once, or only after `drained`."""
        ...

    async def drained(self) -> None:
        """Wait while the caller does not read, and not for ever: one that never does is as good as gone."""
        ...

    async def end(self, data: bytes) -> None:
        """The last piece of the stream."""
        ...

    def watch(self, leave: Callable[[], None]) -> None:
        """Have `leave` called, once, if the caller closes the connection before `unwatch`."""
        ...

    def unwatch(self) -> None:
        """It does not matter any more."""
        ...


class Response:
    """Passes ASGI messages on, adds the headers every response has, and remembers how it went."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.request_id = request_id
        self.started = False
        self.status = GONE
        self._began = time.monotonic()

    def took_s(self) -> float:
        """Seconds since the request's head was read."""
        return time.monotonic() - self._began

    async def __call__(self, message: Message) -> None:
        """Send one message."""
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                (b"openai-processing-ms", str(round(1000 * self.took_s())).encode()),
                _VERSION,
            ]
        await self._send(message)


class AsgiCaller:
    """A caller behind an ASGI server.

    Args:
        stall_s: how long a stream may be left unread.
    """

    __slots__ = ("_leave", "_pieces", "_receive", "_scope", "_send", "_stall_s", "_watch")

    def __init__(self, scope: Scope, receive: Receive, send: Send, stall_s: float) -> None:
        self._scope, self._receive, self._send, self._stall_s = scope, receive, send, stall_s
        self._pieces: list[bytes] = []  # put and not sent yet
        self._leave: Callable[[], None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        """As the server read it."""
        path: str = self._scope["path"]
        return path

    def header(self, name: bytes) -> bytes | None:
        """See `Caller`."""
        return header(self._scope, name)

    async def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """See `Caller`."""
        await respond(self._send, status, body, JSON, headers)

    async def begin(self, headers: Headers = ()) -> None:
        """See `Caller`."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM, *headers]})

    def put(self, data: bytes) -> bool:
        """See `Caller`."""
        self._pieces.append(data)
        return False

    async def drained(self) -> None:
        """See `Caller`."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        try:
            async with asyncio.timeout(self._stall_s):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            if self._leave is not None:
                self._leave()

    async def end(self, data: bytes) -> None:
        """See `Caller`."""
        await self._send({"type": "http.response.body", "body": b"".join([*self._pieces, data])})

    def watch(self, leave: Callable[[], None]) -> None:
        """See `Caller`."""
        self._leave = leave
        self._watch = asyncio.create_task(when_gone(self._receive, leave))

    def unwatch(self) -> None:
        """See `Caller`."""
        self._leave = None
        if self._watch is not None:
            self._watch.cancel()
