"""Requests on their way through uvicorn, where its own way is not enough.

A caller of HTTP/1.0 knows no chunks: what has no length is sent as it comes and ends with the connection. A caller
who is refused while it still sends is listened to for a moment, since closing at once would take the answer from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

LINGER_S: Final = 1.0
"""How long a connection is still read after its last answer, at most."""


class OldCycle(RequestResponseCycle):
    """A request of HTTP/1.0 and its response. The connection lives on if its caller asked so and a length is known."""

    _unframed = False

    async def send(self, message: Any) -> None:
        """See ASGI."""
        if not self.response_started and message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            bodiless = self.scope["method"] == "HEAD" or message["status"] in (204, 304)
            if b"content-length" not in names and not bodiless:
                self._unframed, self.chunked_encoding, self.keep_alive = True, False, False
            elif self.keep_alive and b"connection" not in names:
                headers.append((b"connection", b"keep-alive"))
            message = {**message, "headers": [pair for pair in headers if pair[0].lower() != b"transfer-encoding"]}
        elif self._unframed and self.response_started and not self.response_complete:
            self.expected_content_length = len(message.get("body", b""))  # each piece is as long as it is
        await super().send(message)


class Lingering:
    """A transport whose closing gives the other side time to read what it was told."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Send no more now, and close a little later."""
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(LINGER_S, self._transport.close)


class Deaf:
    """Takes the place of a parser on a connection that is not read any more: counts what comes, and no more."""

    def __init__(self, came: Callable[[int], None]) -> None:
        self._came = came

    def feed_data(self, data: bytes) -> None:
        """See `httptools.HttpRequestParser`."""
        self._came(len(data))


def lingering(transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> asyncio.Transport:
    """A transport that lingers when it is closed; otherwise the same one."""
    return cast(asyncio.Transport, Lingering(transport, loop))
