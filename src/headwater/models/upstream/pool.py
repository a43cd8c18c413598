"""Connections to one upstream, kept and reused: the newest idle one first, a bounded number in all.

A request is sent again only where nothing of it can have been answered: when no connection could be
made, or a kept one turned out to be closed before a byte came. Time limits are the caller's to choose;
every one of them ends in an error that says which.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import urlsplit

from headwater.core.errors import InvalidError, UpstreamError
from headwater.models.upstream.connection import Connection, Headers, Stale

_log = logging.getLogger("headwater.upstream")

ANSWER_BYTES_MAX: Final = 64 * 2**20
TICK_S: Final = 0.25
"""How often time limits are looked at."""

IDLE_S: Final = 30.0
"""How long an unused connection is kept; most servers close theirs later."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an upstream listens."""

    host: str
    port: int
    tls: bool
    path: str  # in front of every route, without a slash at the end: "/v1"

    @classmethod
    def parse(cls, base_url: str) -> Self:
        """The origin of a base URL such as ``https://host/v1``.

        Raises:
            InvalidError: ``upstream_url_invalid``.
        """
        try:
            parts = urlsplit(base_url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        fine = parts.scheme in ("http", "https") and parts.hostname and not (parts.username or parts.password)
        if not fine or parts.query or parts.fragment or any(c <= " " or c > "~" for c in base_url):
            raise InvalidError(
                f"{base_url[:200]!r} is not the base URL of an upstream",
                code="upstream_url_invalid",
                fix="write it like https://host:port/v1, without user, query or fragment",
            )
        tls = parts.scheme == "https"
        return cls(str(parts.hostname), port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """Host and port as the Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each step may take, in seconds, and how many connections there may be."""

    connect_s: float = 5.0
    head_s: float = 300.0  # from the request to the response's head: a slow model thinks for minutes
    silence_s: float = 120.0  # between two pieces of a stream
    connections: int = 1_024


class Exchange:
    """One request and its response. Leave it by `async with`: what was not read to the end is dropped."""

    __slots__ = ("_connection", "_limits", "_pool", "headers", "status")

    def __init__(self, pool: Pool, connection: Connection, limits: Limits) -> None:
        self._pool, self._connection, self._limits = pool, connection, limits
        self.status: int = connection.status
        self.headers: Headers = connection.headers

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its name in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    async def read(self) -> bytes:
        """What has come of the body; empty at the end.

        Raises:
            UpstreamError: ``upstream_broken`` or ``upstream_timeout``.
        """
        self._connection.expect_within(self._limits.silence_s, "the upstream fell silent")
        return await self._connection.read()

    async def pour(self, take: Callable[[bytes], bool]) -> bool:
        """Give what comes of the body to `take`, which says whether it wants more; whether the body has ended.

        Raises:
            UpstreamError: as `read`.
        """
        self._connection.expect_within(self._limits.silence_s, "the upstream fell silent")
        return await self._connection.pour(take)

    async def whole(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: ``upstream_broken``, ``upstream_timeout`` or ``upstream_too_large``.
        """
        self._connection.expect_within(self._limits.silence_s, "the upstream fell silent")
        return await self._connection.whole(ANSWER_BYTES_MAX)

    def abandon(self) -> None:
        """Nobody wants the rest: the connection is dropped, and whoever reads is told that it broke."""
        self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pool._give_back(self._connection)


class Pool:
    """Connections to `origin`. Belongs to one event loop."""

    def __init__(self, origin: Origin, limits: Limits | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.origin, self.limits = origin, limits or Limits()
        self._tls = (tls or ssl.create_default_context()) if origin.tls else None
        self._idle: deque[tuple[Connection, float]] = deque()
        self._open: set[Connection] = set()
        self._room = asyncio.Semaphore(self.limits.connections)
        self._closed = False
        self._watch: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """Connections there are, idle ones included."""
        return len(self._open)

    async def request(self, request: bytes) -> Exchange:
        """Send a whole request and wait for the head of its response.

        Args:
            request: request line, headers and body, as `write_request` makes them.

        Raises:
            UpstreamError: ``upstream_unreachable``, ``upstream_timeout`` or ``upstream_broken``.
        """
        await self._room.acquire()
        connection: Connection | None = None
        try:
            while True:
                connection = self._take() or await self._connect()
                try:
                    connection.expect_within(self.limits.head_s, "the upstream did not answer")
                    connection.send(request)
                    await connection.head()
                except Stale:
                    self._drop(connection)
                    continue
                return Exchange(self, connection, self.limits)
        except BaseException:
            if connection is not None:
                self._drop(connection)
            self._room.release()
            raise

    async def aclose(self) -> None:
        """Close every connection, those at work too."""
        self._closed = True
        for connection in list(self._open):
            self._drop(connection)
        self._idle.clear()
        if self._watch is not None:
            self._watch.cancel()

    def _take(self) -> Connection | None:
        now_s = asyncio.get_running_loop().time()
        while self._idle and now_s - self._idle[0][1] > IDLE_S:
            self._drop(self._idle.popleft()[0])
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                return connection
            self._drop(connection)
        return None

    def _give_back(self, connection: Connection) -> None:
        self._room.release()
        if connection.usable and not self._closed:
            self._idle.append((connection, asyncio.get_running_loop().time()))
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        origin = self.origin
        try:
            async with asyncio.timeout(self.limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(loop), origin.host, origin.port, ssl=self._tls
                )
        except TimeoutError:
            raise _unreachable(origin, f"no connection in {self.limits.connect_s:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise _untrusted(origin, error.verify_message) from None
        except (OSError, ssl.SSLError) as error:
            raise _unreachable(origin, getattr(error, "strerror", None) or type(error).__name__) from None
        self._open.add(connection)
        if self._watch is None:
            self._watch = loop.call_later(TICK_S, self._end_late)
        return connection

    def _end_late(self) -> None:
        """One timer for all connections: an exchange that is overdue ends with its error, up to a tick late."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in list(self._open):
            connection.end_if_late(now_s)
        self._watch = loop.call_later(TICK_S, self._end_late) if self._open else None


def write_request(origin: Origin, route: str, headers: Headers, body: bytes) -> bytes:
    """The bytes of a POST of JSON; see `write_head`."""
    return write_body(write_head(origin, route, headers), body)


def write_head(origin: Origin, route: str, headers: Headers) -> bytes:
    """The head of a POST of JSON, but for the length of its body.

    Args:
        route: below the origin's path, such as ``/chat/completions``.
        headers: further headers; values are the operator's, never a caller's.
    """
    head = f"POST {origin.path}{route} HTTP/1.1\r\nhost: {origin.authority}\r\ncontent-type: application/json\r\n"
    return head.encode("ascii") + b"".join([name + b": " + value + b"\r\n" for name, value in headers])


def write_body(head: bytes, body: bytes) -> bytes:
    """A whole request, from what `write_head` gave and its body."""
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


def _unreachable(origin: Origin, why: str) -> UpstreamError:
    _log.warning("%s cannot be reached: %s", origin.authority, why)
    return UpstreamError(
        "the upstream of this model cannot be reached",  # callers are not told where it is
        code="upstream_unreachable",
        fix="try again; the operator may have to start it",
    )


def _untrusted(origin: Origin, why: str) -> UpstreamError:
    _log.error("the certificate of %s is not trusted: %s", origin.authority, why)
    return UpstreamError(
        "the upstream of this model shows a certificate that is not trusted",
        code="upstream_untrusted",
        fix="tell the operator: it takes a certificate of a known authority, or SSL_CERT_FILE with its own",
    )
