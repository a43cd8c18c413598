"""What a worker serves: calls that go to an upstream by itself, everything else by way of the head.

A call is a worker's own when it is a POST to a relayed route, for a model that other servers answer, without sources,
by a key or a voucher that is right. What is not certain to be that is passed on as it came: the head decides it as it
would alone, and counts who guesses at keys. Belongs to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from headwater.core.errors import HeadwaterError, InvariantError
from headwater.gateway.caller import Response
from headwater.gateway.errors import failure_of, place_of
from headwater.gateway.key_cache import KeyCache
from headwater.gateway.lane import Lane
from headwater.gateway.limits import check_route
from headwater.gateway.metrics import Metrics
from headwater.gateway.outside import wants_sources
from headwater.gateway.passing import ROUTES, Request
from headwater.gateway.relay import Relay, RelayedModel, Relays
from headwater.gateway.reload import Retiring
from headwater.gateway.room import Place, Room
from headwater.gateway.sharing import Sharing
from headwater.gateway.unreadable import REFUSED
from headwater.gateway.vouchers import HEADER, Vouchers
from headwater.gateway.wire import CallerGone, Receive, Scope, Send, bearer, header, read_body, respond_failure
from headwater.gateway.workers.line import Lines
from headwater.gateway.workers.passage import Passage
from headwater.store.key_store import KeyRecord, KeyStore

DESK_THREADS: Final = 4

Result = TypeVar("Result")

_log = logging.getLogger("headwater.gateway")


@dataclass(frozen=True, slots=True)
class FrontParts:
    """Everything a worker's front runs on."""

    number: int  # of the worker, from 1
    keys: KeyStore
    relays: Relays
    sharing: Sharing
    lines: Lines  # to the head
    vouchers: Vouchers | None  # None where this process cannot read the chain
    vouchers_at_head: bool  # whether the head takes vouchers
    random_bytes: Callable[[int], bytes]
    stall_s: float
    body_timeout_s: float
    relayed_body_bytes_max: int


class Front:
    """The ASGI application of one worker, and its lane."""

    def __init__(self, parts: FrontParts) -> None:
        self._parts = parts
        self._desk = ThreadPoolExecutor(DESK_THREADS, thread_name_prefix="desk")
        self._checked = KeyCache(parts.keys, self._at_desk)
        self._retiring = Retiring()
        self.start_error: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # once it serves
        self.metrics = Metrics()
        self.passage = Passage(parts.lines)
        self.room = Room.of(parts.relayed_body_bytes_max)
        self.request_prefix = f"req_w{parts.number}_"
        relays = parts.relays
        self.relay = Relay(
            *(relays.models, relays.upstreams, relays.meter, self.metrics),
            at_desk=self._at_desk,
            rates=parts.sharing.rates,
            claims=parts.sharing.claims,
            sourced=_AtHead(self.passage),
            stall_s=parts.stall_s,
        )
        self.lane: Lane | None = Lane(
            *(self.relay, self._checked, self.metrics, parts.random_bytes),
            body_timeout_s=parts.body_timeout_s,
            stall_s=parts.stall_s,
            room=self.room,
            request_prefix=self.request_prefix,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    def take_over(self, relays: Relays) -> None:
        """Serve other models from now on; calls at work end where they began. On the event loop."""
        self._retiring.swap(self.relay, relays.models, relays.upstreams)

    # Requests

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        response = Response(send, self.request_prefix + self._parts.random_bytes(12).hex())
        own, place = False, self.room.place(known=all(name != HEADER for name, _ in scope["headers"]))
        try:
            body: bytes | None = None
            if (refused := scope.get(REFUSED)) is not None:
                own = True
                await respond_failure(response, refused)
            elif path in ROUTES and scope["method"] == "POST":
                key, body = await self._asked(path, scope, receive, place)
                if key is not None and body is not None:
                    own = True
                    await self.relay(body, key, scope, receive, response)
            if not own:
                await self.passage(scope, receive, send, body)
        except CallerGone:
            pass
        except Exception as error:
            own = True
            await self._fail(path, error, response)
        finally:
            place.give_back()
            if own:
                self._told(path, scope["method"], response)

    async def _asked(
        self, path: str, scope: Scope, receive: Receive, place: Place
    ) -> tuple[KeyRecord | None, bytes | None]:
        """Who asks, for a call that is this worker's own, and the body as far as it was read.

        Raises:
            HeadwaterError: the call is ours to refuse.
            CallerGone: the connection was closed.
        """
        key: KeyRecord | None = None
        try:
            voucher = header(scope, HEADER) if self._parts.vouchers_at_head else None
            if voucher is None:
                key = await self._checked.authenticate(bearer(scope))
        except HeadwaterError:
            return None, None  # the head says so, and counts it
        if voucher is not None and self._parts.vouchers is None:
            return None, None
        if key is not None:
            check_route(key, path)
        body = await read_body(scope, receive, place, timeout_s=self._parts.body_timeout_s)
        if await self.relay.aside(body, lambda: self.relay.read(body, path)) is None:
            return None, body
        if voucher is not None:
            key = await self._payer(voucher, path)
        return key, body

    async def _payer(self, voucher: bytes, path: str) -> KeyRecord:
        """Who pays by a voucher, which counts from now on."""
        vouchers = self._parts.vouchers
        assert vouchers is not None
        key = await self._at_desk(lambda: vouchers.take(voucher))
        check_route(key, path)
        return key

    async def _fail(self, path: str, error: Exception, response: Response) -> None:
        failure = failure_of(error)
        if failure.status == 500 or not isinstance(error, HeadwaterError):
            _log.error("%s failed with %s\n%s", response.request_id, type(error).__name__, place_of(error))
        if not response.started:
            openai = path in ROUTES or path == "/v1/models" or path.startswith("/v1/models/")
            await respond_failure(response, failure, native=not openai)

    def _told(self, path: str, method: str, response: Response) -> None:
        route, took_s = path if path in ROUTES else "other", response.took_s()
        self.metrics.request(route, response.status, took_s)
        _log.info("%s %s %d %.1f ms %s", method, route, response.status, 1000 * took_s, response.request_id)

    async def _at_desk(self, work: Callable[[], Result]) -> Result:
        """Run something short that may wait for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._desk, work)

    # Life

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self.loop = asyncio.get_running_loop()
                    await asyncio.to_thread(self.relay.meter.start)
                    self.relay.upstreams.watch()
                except Exception as error:
                    self.start_error = error
                    await send({"type": "lifespan.startup.failed", "message": type(error).__name__})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.relay.upstreams.aclose()
                await self.relay.meter.drain()
                await asyncio.to_thread(self._desk.shutdown)
                await asyncio.to_thread(self.relay.meter.close)
                self._parts.lines.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


class _AtHead:
    """Calls with sources: the head's."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage

    def wanted(self, raw: bytes, request: Request, model: RelayedModel) -> bool:
        """Whether a request is for the head."""
        return wants_sources(raw, request, model.attributed)

    def quote(self, raw: bytes, request: Request, model: RelayedModel, path: str) -> int:  # noqa: ARG002
        """Nobody asks a worker what such a call costs: who pays by x402 is the head's."""
        raise InvariantError(f"a worker was asked what a call of {model.name} costs", code="quote_at_worker")

    async def __call__(
        self,
        raw: bytes,
        request: Request,  # noqa: ARG002  # the head reads it for itself
        model: RelayedModel,  # noqa: ARG002
        key: KeyRecord,  # noqa: ARG002
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Pass such a request on."""
        await self._passage(scope, receive, send, raw)
