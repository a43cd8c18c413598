"""The fast lane: calls that go to an upstream, without ASGI, coroutines or copies between socket and relay.

A request enters it when its head says that it can be nothing else: POST to a relayed route, a length, a key
that was checked a moment ago. Everything else, and everything odd, takes the ASGI way, which does the same
at more cost. Here is what a call looks like between the server's parser (`http.py`) and the relay.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from headwater.core.errors import HeadwaterError
from headwater.gateway.caller import GONE
from headwater.gateway.errors import Headers, failure_of, place_of
from headwater.gateway.key_cache import KeyCache
from headwater.gateway.limits import check_route
from headwater.gateway.metrics import Metrics
from headwater.gateway.passing import ROUTES
from headwater.gateway.room import Room
from headwater.gateway.wire import JSON, CallerGone, body_late, one_header
from headwater.store.key_store import KeyRecord

if TYPE_CHECKING:
    from headwater.gateway.http import HttpProtocol
    from headwater.gateway.relay import Relay

PATHS: Final = {path.encode(): path for path in ROUTES}
"""Routes of the lane, as they stand in a request line."""

_ODD: Final = frozenset(
    (b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"payment-voucher", b"upstream-authorization")
)
"""Headers that the ASGI way sees to."""

_STREAM: Final = (
    b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache, no-transform\r\n"
    b"x-accel-buffering: no\r\ntransfer-encoding: chunked\r\n"
)
_HEAD: Final = (
    b"HTTP/1.1 %d %b\r\n%b%b%b%bx-request-id: %b\r\nopenai-processing-ms: %d\r\nopenai-version: 2020-10-01\r\n\r\n"
)
_REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}

_log = logging.getLogger("headwater.gateway")


class LaneCaller:
    """One request on a connection; the relay's `Caller`, and what the server knows of a request at work."""

    __slots__ = (
        "_began",
        "_headers",
        "_lane",
        "_leave",
        "_pieces",
        "_place",
        "_protocol",
        "disconnected",
        "headers",
        "keep_alive",
        "key",
        "path",
        "request_id",
        "response_complete",
        "started",
        "status",
        "timer",
        "whole",
    )

    def __init__(
        self,
        lane: Lane,
        protocol: HttpProtocol,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        key: KeyRecord,
        size_bytes: int,
    ) -> None:
        self._place = lane.room.place()
        self._place.grow(size_bytes)
        self._lane, self._protocol, self.headers = lane, protocol, headers
        self.path, self.key = path, key
        self.keep_alive = True
        self.started = self.response_complete = self.disconnected = self.whole = False
        self.status = GONE
        self.timer: asyncio.TimerHandle | None = None  # for the rest of the body
        self.request_id = lane.request_prefix + lane.random_bytes(12).hex()
        self._pieces: list[bytes] = []
        self._leave: Callable[[], None] | None = None
        self._began = time.monotonic()

    # The server's side

    def add(self, data: bytes) -> None:
        """A piece of the body; its length was found fitting before."""
        self._pieces.append(data)

    def body(self) -> bytes:
        """The whole body, once."""
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def lost(self) -> None:
        """The connection is closed."""
        self.disconnected = True
        self._stop_timer()
        if not self.whole:
            self.over()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def complete(self) -> None:
        """The body is whole."""
        self.whole = True
        self._stop_timer()

    def over(self) -> None:
        """Nothing of the body is needed any more."""
        self._pieces = []
        self._place.give_back()

    def took_s(self) -> float:
        """Seconds since the request's head was read."""
        return time.monotonic() - self._began

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    # The relay's side

    def header(self, name: bytes) -> bytes | None:
        """See `Caller`."""
        return one_header(self.headers, name)

    async def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """See `Caller`."""
        length = b"content-type: %b\r\ncontent-length: %d\r\n" % (JSON, len(body))
        self._write(self._head(status, length, headers) + body)
        self._done()

    async def begin(self, headers: Headers = ()) -> None:
        """See `Caller`."""
        self._write(self._head(200, _STREAM, headers))

    def put(self, data: bytes) -> bool:
        """See `Caller`."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._protocol.flow.write_paused

    async def drained(self) -> None:
        """See `Caller`."""
        await self._protocol.drained(self._lane.stall_s)

    async def end(self, data: bytes) -> None:
        """See `Caller`."""
        self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
        self._done()

    def watch(self, leave: Callable[[], None]) -> None:
        """See `Caller`."""
        if self.disconnected:
            leave()
        else:
            self._leave = leave

    def unwatch(self) -> None:
        """See `Caller`."""
        self._leave = None

    def _head(self, status: int, own: bytes, headers: Headers) -> bytes:
        self.started, self.status = True, status
        more = b"".join([b"%b: %b\r\n" % pair for pair in headers])
        return _HEAD % (
            status,
            _REASONS.get(status, b""),
            self._protocol.default_head(),
            own,
            more,
            b"" if self.keep_alive else b"connection: close\r\n",
            self.request_id.encode(),
            round(1000 * self.took_s()),
        )

    def _write(self, data: bytes) -> None:
        if not self.disconnected:
            self._protocol.transport.write(data)

    def _done(self) -> None:
        self.response_complete = True
        self._protocol.lane_done(self)

    def cut(self) -> None:
        """End a response that cannot be finished: the connection closes, so nobody takes it for whole."""
        if not self.response_complete:
            self.response_complete, self.keep_alive = True, False
            self._protocol.lane_done(self)


class Lane:
    """Admits and answers; belongs to one event loop.

    Args:
        body_timeout_s: how long the rest of a body may take.
        stall_s: how long a stream may be left unread.
        room: of this process, for bodies.
        request_prefix: how the ids of its requests begin.
    """

    def __init__(
        self,
        relay: Relay,
        keys: KeyCache,
        metrics: Metrics,
        random_bytes: Callable[[int], bytes],
        *,
        body_timeout_s: float,
        stall_s: float,
        room: Room,
        request_prefix: str = "req_",
    ) -> None:
        self.request_prefix, self.room = request_prefix, room
        self._relay, self._keys, self._metrics, self.random_bytes = relay, keys, metrics, random_bytes
        self.body_timeout_s, self.stall_s = body_timeout_s, stall_s

    def admit(self, headers: Sequence[tuple[bytes, bytes]]) -> tuple[KeyRecord, int] | None:
        """The key that a request may be answered for, and its body's length, from its head alone; None sends it the
        ASGI way."""
        secret = length = None
        for name, value in headers:
            if name == b"authorization":
                if secret is not None or value[:7].lower() != b"bearer ":
                    return None
                secret = value[7:]
            elif name == b"content-length":
                length = value
            elif name in _ODD or (name == b"connection" and value.lower() != b"keep-alive"):
                return None
        if secret is None or length is None or not length.isdigit() or not self.room.fits(size := int(length)):
            return None
        key = self.known(secret)
        return None if key is None else (key, size)

    def known(self, secret: bytes) -> KeyRecord | None:
        """The key whose secret this is, if it was checked a moment ago."""
        return self._keys.known(secret)

    async def answer(self, caller: LaneCaller, hand_over: Callable[[LaneCaller, bytes], None]) -> None:
        """Answer a request whose body is whole.

        Args:
            hand_over: gives the request to the ASGI way, for what is not relayed.
        """
        try:
            check_route(caller.key, caller.path)
            raw = caller.body()
            request = await self._relay.aside(raw, lambda: self._relay.read(raw, caller.path))
            if request is None:
                caller.over()  # it takes its place anew
                hand_over(caller, raw)
                return
            await self._relay.answer(raw, request, caller.key, caller)
        except CallerGone:
            pass
        except Exception as error:
            await self.fail(caller, error)
        self._end(caller)

    async def fail(self, caller: LaneCaller, error: Exception) -> None:
        """Tell of an error, if nothing was told yet."""
        failure = failure_of(error)
        if failure.status == 500 or not isinstance(error, HeadwaterError):
            _log.error("%s failed with %s\n%s", caller.request_id, type(error).__name__, place_of(error))
        if not caller.started:
            await caller.respond(failure.status, failure.envelope(), failure.headers())

    async def late(self, caller: LaneCaller) -> None:
        """The body did not come in time."""
        caller.keep_alive = False
        await self.fail(caller, body_late(self.body_timeout_s))
        self._end(caller)

    def _end(self, caller: LaneCaller) -> None:
        caller.over()
        caller.cut()
        took_s = caller.took_s()
        self._metrics.request(caller.path, caller.status, took_s)
        if _log.isEnabledFor(logging.INFO):
            _log.info("POST %s %d %.1f ms %s", caller.path, caller.status, 1000 * took_s, caller.request_id)
