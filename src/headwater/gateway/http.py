"""Connections of callers: uvicorn's HTTP/1.1 with bounded heads, and the fast lane beside its ASGI way.

Uvicorn keeps the listener, the lifespan, signals and the drain. A request that the lane admits is collected and
answered right here; any other, also one that comes while another is at work on its connection, gets uvicorn's own
cycle. What uvicorn knows of a request at work (whether it is complete, whether the connection lives on) both have.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headwater.gateway.cycles import Deaf, OldCycle, lingering
from headwater.gateway.errors import Failure, failure_of
from headwater.gateway.lane import PATHS, Lane, LaneCaller
from headwater.gateway.unreadable import App, check_framing, head_too_large, refusing, unreadable

HEAD_BYTES_MAX: Final = 64 * 2**10
HEADERS_MAX: Final = 100
DRAINED_BYTES_MAX: Final = 8 * 2**20
"""Of a body that goes on after its request was refused, beyond the largest there may be."""
DRAINED_S: Final = 10.0
FIELD_BYTES_MAX: Final = 1_024
"""Of the field that a worker adds to what it passes on."""
_OF_UPGRADES: Final = frozenset((b"connection", b"upgrade", b"http2-settings"))

_dated: tuple[list[tuple[bytes, bytes]], bytes] = ([], b"")


class HasLane(Protocol):
    """An application with a fast lane, or without."""

    @property
    def lane(self) -> Lane | None:
        """The lane."""
        ...


class HttpProtocol(HttpToolsProtocol):
    """One connection. Refuses heads that are too large; the parser itself would collect them for ever."""

    _head_bytes = _came = 0  # of a head's fields, and in all that was read since it began
    _fields = 0
    _taken = _drained = 0  # of a body, before its answer and after it
    _drained_since_s = 0.0
    _fields_max = HEADERS_MAX
    _head_bytes_max = HEAD_BYTES_MAX
    _in_head = True
    _at_work: LaneCaller | None = None
    _running: RequestResponseCycle | None = None  # what uvicorn answers, which is not its newest when more are waiting
    _collecting: LaneCaller | None = None
    _declined = b""
    """The head of a request that asks for another protocol, as if it did not."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The socket is open."""
        super().connection_made(transport)
        self._lane = cast(HasLane, self.config.app).lane
        if self.client is None:  # a Unix socket: a worker has counted already, and adds a field of its own
            self._fields_max, self._head_bytes_max = HEADERS_MAX + 1, HEAD_BYTES_MAX + FIELD_BYTES_MAX

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        if self._at_work is not None:
            self._at_work.lost()
            self._at_work = None
        if isinstance(self.cycle, LaneCaller):  # the last one here; uvicorn would tell it as one of its own
            self.cycle = cast(Any, None)
        running, self._running = self._running, None
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._in_head:
            self._came += len(data)
            if self._came > self._head_bytes_max + len(data):
                self._refuse(failure_of(head_too_large(HEAD_BYTES_MAX, HEADERS_MAX)))  # it never ends
                return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._read_on(data, upgrade)
        except HttpParserError as error:
            self._refuse(unreadable(error, data))
            return
        collecting = self._collecting
        if collecting is not None and collecting.timer is None and self._lane is not None:
            collecting.timer = self.loop.call_later(self._lane.body_timeout_s, self._late, collecting)

    def _read_on(self, data: bytes, upgrade: HttpParserUpgrade | None) -> None:
        """Read a request that asks for another protocol, and what comes behind it. No other is spoken, and saying
        nothing of the wish declines it."""
        rest = memoryview(data)
        try:
            while upgrade is not None:
                head, self._declined = self._declined, b""
                rest = rest[upgrade.args[0] :]
                self.parser = HttpRequestParser(self)  # the old one would leave out the body, and read no more
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)
                upgrade = None
                try:
                    self.parser.feed_data(rest)
                except HttpParserUpgrade as another:
                    upgrade = another
        except HttpParserError as error:
            self._refuse(unreadable(error, bytes(rest)))

    def _drain(self, size: int) -> None:
        """A body goes on after its answer: read for a while, so that its sender reads the answer, and not for ever."""
        now_s = self.loop.time()
        self._drained, self._drained_since_s = self._drained + size, self._drained_since_s or now_s
        honest = 0 if self._lane is None else self._lane.room.body_bytes_max - self._taken
        if self._drained > max(honest, 0) + DRAINED_BYTES_MAX or now_s - self._drained_since_s > DRAINED_S:
            self.transport.close()

    # The parser's side

    def on_message_begin(self) -> None:
        """A request begins; what ASGI wants of it is made when it is wanted."""
        self._in_head, self._head_bytes, self._came, self._fields = True, 0, 0, 0
        self._taken, self._drained, self._drained_since_s = 0, 0, 0.0
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came; too many, or too much of them, end the connection with 431."""
        self._fields += 1
        self._head_bytes += len(name) + len(value)
        if self._fields > self._fields_max or self._head_bytes > self._head_bytes_max:
            raise head_too_large(HEAD_BYTES_MAX, HEADERS_MAX)
        if self._in_head:  # otherwise it is a trailer of a chunked body, and nobody's header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: this is where a request takes its way."""
        self._in_head = False
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._declined = self._without_upgrade()
            return
        path = PATHS.get(self.url)
        if path is not None and self._lane is not None and self.parser.get_method() == b"POST":
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.parser.get_http_version() == "1.1":
                admitted = self._lane.admit(self.headers)
                if admitted is not None:
                    self._collecting = self._at_work = LaneCaller(self._lane, self, path, self.headers, *admitted)
                    self.cycle = cast(Any, self._at_work)
                    return
        version = self.parser.get_http_version()
        check_framing(version, self.url, self.headers)
        self._make_scope()
        super().on_headers_complete()
        if version == "1.0":  # its task has not begun
            self.cycle.__class__ = OldCycle
            self.cycle.keep_alive, self.cycle.waiting_for_100_continue = self.parser.should_keep_alive(), False

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        if self._collecting is not None:
            self._collecting.add(body)
        elif not isinstance(self.cycle, LaneCaller):  # otherwise it comes after its request was refused
            super().on_body(body)
            if self.cycle is not None and self.cycle.response_complete:
                self._drain(len(body))
            else:
                self._taken += len(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self._declined:
            return
        caller = self._collecting
        if caller is None:
            if not isinstance(self.cycle, LaneCaller):
                super().on_message_complete()
            return
        self._complete(caller)

    def _complete(self, caller: LaneCaller) -> None:
        self._collecting = None
        caller.complete()
        assert self._lane is not None
        self._start(self._lane.answer(caller, self._hand_over))

    def _refuse(self, failure: Failure) -> None:
        """Tell of a request that cannot be read, after those before it; nothing more is read of this connection."""
        last, in_head = self.cycle, self._in_head
        self.parser, self._in_head, self._declined = cast(HttpRequestParser, Deaf(self._drain)), False, b""
        idle = last is None or last.response_complete
        if last is not None and not in_head and getattr(last, "more_body", False):  # it is the rest of its body
            queued = [pair for pair in self.pipeline if pair[0] is last]
            if queued:
                self.pipeline.remove(queued[0])
            elif last.response_started:
                self.transport.close()
                return
            else:
                last.disconnected = idle = True
                last.message_event.set()
        super().on_message_begin()
        nothing = {"method": "-", "path": "/v1/", "raw_path": b"/v1/", "query_string": b""}
        cast(dict[str, Any], self.scope).update(nothing)
        self.cycle = self._asgi_cycle(lingering(self.transport, self.loop), keep_alive=False)
        app = cast(Any, refusing(cast(App, self.app), failure))
        if idle:
            self._start_asgi_task(self.cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

    def _asgi_cycle(self, transport: asyncio.Transport, *, keep_alive: bool) -> RequestResponseCycle:
        """Uvicorn's cycle for the scope there is, of a request that is whole."""
        cycle = RequestResponseCycle(
            scope=self.scope,
            transport=transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.more_body = False
        return cycle

    def _without_upgrade(self) -> bytes:
        """The head of the request that is read, without its wish to change the protocol, as Java's client has it."""
        closes = any(b"close" in value.lower() for name, value in self.headers if name == b"connection")
        fields = [pair for pair in self.headers if pair[0] not in _OF_UPGRADES]
        fields += [(b"connection", b"close")] if closes else []
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        return line + b"".join([b"%b: %b\r\n" % pair for pair in fields]) + b"\r\n"

    def _make_scope(self) -> None:
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers

    # The lane's side

    def default_head(self) -> bytes:
        """The headers every response begins with, as bytes; uvicorn makes them anew each second."""
        global _dated
        known, raw = _dated
        if known is not self.server_state.default_headers:
            known = self.server_state.default_headers
            raw = b"".join([b"%b: %b\r\n" % pair for pair in known])
            _dated = (known, raw)
        return raw

    def lane_done(self, caller: LaneCaller) -> None:
        """A response is whole, or will never be."""
        if caller is not self._at_work:
            return
        self._at_work = None
        if not caller.keep_alive:
            self.transport.close()
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self.pipeline and not self.transport.is_closing():
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    async def drained(self, stall_s: float) -> None:
        """Wait until the caller reads again; one that does not for so long is cut off."""
        try:
            async with asyncio.timeout(stall_s):
                await self.flow.drain()
        except TimeoutError:
            self.transport.abort()
            await self.flow.drain()  # until the loss of the connection has been told

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _start(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _late(self, caller: LaneCaller) -> None:
        if caller is self._collecting and self._lane is not None:
            self._collecting = None
            self._start(self._lane.late(caller))

    def _hand_over(self, caller: LaneCaller, body: bytes) -> None:
        """Give a request that was collected to uvicorn's cycle, as if it had never been in the lane."""
        self._at_work = None
        queued = self.cycle is not cast(Any, caller)  # a later request is waiting already
        held = (self.url, self.headers, self.expect_100_continue, self.scope)
        self.url, self.headers, self.expect_100_continue = caller.path.encode(), [], False
        super().on_message_begin()
        self.headers += caller.headers
        scope = self.scope
        scope["method"], scope["path"], scope["raw_path"] = "POST", caller.path, caller.path.encode()
        scope["query_string"] = b""
        cycle = self._asgi_cycle(self.transport, keep_alive=caller.keep_alive)
        cycle.body, cycle.disconnected = bytearray(body), caller.disconnected
        cycle.message_event.set()
        self.url, self.headers, self.expect_100_continue, self.scope = held  # a next head may have been read in part
        if not queued:
            self.cycle = cycle
        self._start_asgi_task(cycle, self.app)
