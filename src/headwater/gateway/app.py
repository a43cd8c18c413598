"""The gateway as one ASGI application: OpenAI's routes bare, ours on FastAPI, one lifespan for both.

Starting settles what a dead process left behind and takes up the receipts that are still owed.
Stopping refuses new calls, finishes those at work, and gives attribution a while; what it does not
reach waits in the journal for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from headwater.core.errors import HeadwaterError, InvalidError, MissingError
from headwater.core.ids import ReceiptId
from headwater.core.instants import SECOND_NS
from headwater.core.limits import RELAYED_BODY_BYTES_DEFAULT, REQUEST_SIZE_BYTES_MAX
from headwater.flow import EmbeddingModel, Flow, ServedModel
from headwater.gateway import chat
from headwater.gateway.answering import Answering
from headwater.gateway.caller import Response
from headwater.gateway.chat import TextRoute
from headwater.gateway.embeddings import EmbeddingRoute
from headwater.gateway.errors import Failure, MethodError, failure_of, place_of
from headwater.gateway.frames import fingerprint
from headwater.gateway.guesses import Guesses
from headwater.gateway.inside import PAYER, key_inside
from headwater.gateway.key_cache import KeyCache
from headwater.gateway.lane import Lane
from headwater.gateway.limits import check_route
from headwater.gateway.metrics import Metrics
from headwater.gateway.native import Routes, Service, native_app
from headwater.gateway.passing import ROUTES
from headwater.gateway.proxies import Proxies
from headwater.gateway.relay import OWN_KEY, Relay, RelayedModel, Relays
from headwater.gateway.room import Place, Room, too_large
from headwater.gateway.sharing import Sharing
from headwater.gateway.sourced import AttributedModels, Models, SourcedRoute
from headwater.gateway.unreadable import REFUSED
from headwater.gateway.vouchers import HEADER, Vouchers
from headwater.gateway.wire import (
    CallerGone,
    Receive,
    Scope,
    Send,
    bearer,
    header,
    read_body,
    respond,
    respond_failure,
)
from headwater.gateway.worker import AttributionWorker
from headwater.models.upstream import Upstreams
from headwater.store.key_store import KeyRecord, KeyStore

if TYPE_CHECKING:
    from headwater.gateway.x402 import Payments

MODELS: Final = "/v1/models"

_NATIVE: Final = re.compile(
    r"/v1/(receipts|account|accounts|feedback|consent|contributions|contributors|datanets|reviews|disputes|enrolments"
    r"|epochs|telemetry|payments|webhooks|quote|admin)(/|$)"
)
_log = logging.getLogger("headwater.gateway")


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """How much the gateway does at once, and how long it waits."""

    parallel: int = 2  # answers generated at once
    waiting_max: int = 32  # admitted calls that wait for a place
    stall_s: float = 30.0  # a stream left unread for so long is cut
    body_timeout_s: float = 30.0
    relayed_body_bytes_max: int = RELAYED_BODY_BYTES_DEFAULT  # of a call to another server's model
    drain_s: float = 30.0  # attribution's time at shutdown
    failed_keys_per_minute: int = 60  # wrong API keys that one address may try; 0: no bound
    trusted_proxies: tuple[str, ...] = ()  # addresses and networks whose X-Forwarded-For is believed


class Gateway:
    """The ASGI application. Its parts are public for the process that runs it."""

    def __init__(
        self,
        flow: Flow,
        keys: KeyStore,
        options: GatewayOptions,
        bundle: Callable[[ReceiptId], bytes] | None = None,
        relays: Relays | None = None,
        vouchers: Vouchers | None = None,
        more: Sequence[Routes] = (),
        payments: Payments | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.vouchers, self.payments = vouchers, payments
        if relays is not None:
            attributed = AttributedModels(lambda: self.relay.models if self.relay else relays.models)
            flow = Flow(replace(flow.parts, others=Models(attributed, flow.parts.others)))
        self.flow, self.keys, self.options = flow, keys, options
        if payments is not None:
            flow.before_charge = payments.settle
            if relays is not None:
                relays.meter.before_charge = payments.settle_soon
        self.loop: asyncio.AbstractEventLoop | None = None  # once it serves
        self.start_error: Exception | None = None  # why the lifespan did not begin
        self.metrics = Metrics()
        self.worker = AttributionWorker(flow.attribute, owed=flow.resume, busy=lambda: self.answering.busy())
        self.sharing = sharing or Sharing.alone()
        self.answering = Answering(
            flow,
            parallel=options.parallel,
            waiting_max=options.waiting_max,
            stall_s=options.stall_s,
            answered=self.worker.submit,
            make_room=(lambda *_: False) if relays is None else relays.meter.make_room,
            claims=self.sharing.claims,
        )
        self._checked = KeyCache(keys, self.answering.at_desk)
        self._rates = self.sharing.rates
        self.guesses = Guesses(options.failed_keys_per_minute, proxies=Proxies(options.trusted_proxies))
        self._texts = TextRoute(self.answering, self.metrics, self._rates)
        self._embeddings = EmbeddingRoute(self.answering, self.metrics, self._rates)
        self.relays = relays
        self.room = Room.of(None if relays is None else options.relayed_body_bytes_max)
        self.relay: Relay | None = None
        self.lane: Lane | None = None  # takes the relay's calls from a server without ASGI in between
        if relays is not None:
            self.relay = Relay(
                *(relays.models, relays.upstreams, relays.meter, self.metrics),
                at_desk=self.answering.at_desk,
                rates=self._rates,
                claims=self.sharing.claims,
                sourced=SourcedRoute(self.answering, self._upstreams, self.metrics, self._rates),
                stall_s=options.stall_s,
            )
            self.lane = Lane(
                *(self.relay, self._checked, self.metrics, flow.parts.random_bytes),
                body_timeout_s=options.body_timeout_s,
                stall_s=options.stall_s,
                room=self.room,
            )
        self._native = native_app(Service(flow, keys, self.answering, self.worker, self.metrics, bundle, self), more)

    def _upstreams(self) -> Upstreams:
        assert self.relay is not None
        return self.relay.upstreams

    @property
    def model_names(self) -> tuple[str, ...]:
        """Every model that may be asked for."""
        parts = self.flow.parts
        return tuple(sorted({*parts.models, *parts.others, *(self.relay.models if self.relay else ())}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the lifespan."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._native(scope, receive, send)

    # Requests

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = Response(send, "req_" + self.flow.parts.random_bytes(12).hex())
        path: str = scope["path"]
        native = _NATIVE.match(path) is not None or not path.startswith("/v1/")
        route = "other"
        try:
            if (refused := scope.get(REFUSED)) is not None:
                await respond_failure(response, refused)
            elif native:
                await self._native(scope, receive, response)
                route = getattr(scope.get("route"), "path", "other")
            else:
                route = await self._openai(path, scope, receive, response)
        except CallerGone:
            pass
        except Exception as error:
            route = _template(path)
            await self._fail(error, response, native)
        finally:
            took_s = response.took_s()
            self.metrics.request(route, response.status, took_s)
            _log.info(
                "%s %s %d %.1f ms %s", scope["method"], route, response.status, 1000 * took_s, response.request_id
            )

    async def _openai(self, path: str, scope: Scope, receive: Receive, send: Send) -> str:
        if path in ROUTES:
            if scope["method"] != "POST":
                raise MethodError(scope["method"], "POST")
            voucher = header(scope, HEADER) if self.vouchers is not None else None
            unnamed = voucher is None and PAYER not in scope and header(scope, b"authorization") is None
            if self.payments is not None and unnamed:
                with self.room.place(known=False) as place:
                    await self._paid(self.payments, path, place, scope, receive, send)
                return path
            inside = await self.answering.at_desk(lambda: key_inside(scope, self.keys)) if PAYER in scope else None
            secret = "" if voucher is not None or inside is not None else bearer(scope)
            if voucher is None:
                key = inside or await self._known(scope, secret)
                check_route(key, path)
            with self.room.place(known=voucher is None) as place:
                body = await read_body(scope, receive, place, timeout_s=self.options.body_timeout_s)
                relay = await self._relayed_by(body)
                if voucher is not None:
                    key = await self._payer(voucher, path)
                if secret and relay is None:
                    key = await self.answering.at_desk(lambda: self.keys.authenticate(secret))  # as it is now
                await self._answer(path, body, relay, key, scope, receive, send)
            return path
        if path == MODELS or path.startswith(MODELS + "/"):
            if scope["method"] not in ("GET", "HEAD"):
                raise MethodError(scope["method"], "GET, HEAD")
            await self._models(path.removeprefix(MODELS).removeprefix("/"), scope, send)
            return _template(path)
        failure = Failure(
            404, "route_unknown", f"no route {scope['method']} {path[:200]}; see /docs for those there are"
        )
        await respond_failure(send, failure)
        return "other"

    async def _relayed_by(self, body: bytes) -> Relay | None:
        """What answers a call by another server; None for a call of a model in process.

        Raises:
            InvalidError: ``request_too_large``, for a model in process.
        """
        relay = self.relay
        if relay is not None and await relay.aside(body, lambda: relay.answers(body)):
            return relay
        if len(body) > REQUEST_SIZE_BYTES_MAX:
            raise too_large(len(body), REQUEST_SIZE_BYTES_MAX, "the body of a call that no other server answers")
        return None

    async def _answer(
        self, path: str, body: bytes, relay: Relay | None, key: KeyRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if relay is not None:
            await relay(body, key, scope, receive, send)
            return
        if header(scope, OWN_KEY) is not None:
            raise InvalidError(
                "no upstream answers this model, so none takes a key",
                code="own_key_not_taken",
                fix="leave Upstream-Authorization out; GET /v1/models says which models take a key",
            )
        if path in chat.ROUTES:
            await self._texts(body, key, scope, receive, send)
        else:
            await self._embeddings(body, key, scope, send)

    async def _paid(
        self, payments: Payments, path: str, place: Place, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a caller without a key for the payment that came with the request, or say what it costs."""
        body = await read_body(scope, receive, place, timeout_s=self.options.body_timeout_s)
        relay = await self._relayed_by(body)

        async def answer(key: KeyRecord, scope: Scope, send: Send) -> None:
            check_route(key, path)
            await self._answer(path, body, relay, key, scope, receive, send)

        await payments.serve(await self._quote(path, body, relay), scope, send, answer)

    async def _quote(self, path: str, body: bytes, relay: Relay | None) -> tuple[int, bool]:
        """The most a call costs, and whether it costs exactly that. May read the registry."""
        if relay is not None:
            return await self.answering.at_desk(lambda: relay.quote(body, path))
        if path in chat.ROUTES:
            return self._texts.quote(body, path), False
        return await self.answering.at_desk(lambda: self._embeddings.quote(body)), True

    async def _known(self, scope: Scope, secret: str) -> KeyRecord:
        """The key whose secret this is; an address that keeps guessing is told 429."""
        if (found := self._checked.fresh(secret)) is not None:
            return found
        with self.guesses.counted(scope):
            return await self._checked.authenticate(secret)

    async def _payer(self, voucher: bytes, path: str) -> KeyRecord:
        """Who pays by a voucher, within the limits that its key record may have been given."""
        vouchers = self.vouchers
        assert vouchers is not None
        key = await self.answering.at_desk(lambda: vouchers.take(voucher))
        check_route(key, path)
        return key

    async def _models(self, name: str, scope: Scope, send: Send) -> None:
        key = await self._known(scope, bearer(scope))
        models: dict[str, dict[str, Any]] = {m: self._model(served) for m, served in self.flow.parts.models.items()}
        models |= {m: self._embedding(o) for m, o in self.flow.parts.others.items() if isinstance(o, EmbeddingModel)}
        if self.relay is not None:
            models |= {m: self._relayed(relayed) for m, relayed in self.relay.models.items()}
        models = {name: model for name, model in models.items() if key.limits.permits_model(name)}
        if not name:
            body: dict[str, Any] = {"object": "list", "data": [models[m] for m in sorted(models)]}
        elif name in models:
            body = models[name]
        else:
            raise MissingError(
                f"the model {name[:80]!r} does not exist", code="model_not_found", fix="see GET /v1/models"
            )
        await respond(send, 200, msgspec.json.encode(body))

    def _model(self, served: ServedModel) -> dict[str, Any]:
        return {
            "id": served.name,
            "object": "model",
            "created": self._created_s(served),
            "owned_by": "headwater",
            "headwater": {
                "currency": self.flow.parts.policy.currency,
                **served.prices.as_json(),
                "context_tokens": served.backend.context_tokens_max,
                "sources": served.sources,
                "prompt": served.prompt,
                "fingerprint": fingerprint(served.backend.digest),
            },
        }

    def _embedding(self, model: EmbeddingModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": 0,
            "owned_by": "headwater",
            "headwater": {
                "currency": self.flow.parts.policy.currency,
                **model.prices.as_json(),
                "dimensions": model.dimensions,
                "fingerprint": fingerprint(model.digest),
            },
        }

    def _relayed(self, model: RelayedModel) -> dict[str, Any]:
        return {
            "id": model.name,
            "object": "model",
            "created": 0,
            "owned_by": "upstream",
            "headwater": {
                "currency": self.flow.parts.policy.currency,
                **model.prices.as_json(),
                "own_key": None if model.own_key is None else model.own_key.prices.as_json(),
                "answer_tokens_max": model.answer_tokens_max,
                "sources": 0 if model.attributed is None else model.attributed.sources,
                "prompt": None if model.attributed is None else model.attributed.prompt,
            },
        }

    def _created_s(self, served: ServedModel) -> int:
        """When the base model was registered; 0 for one that is not."""
        if served.base_model is None:
            return 0
        return self.flow.parts.registry.get(served.base_model).registered_at_ns // SECOND_NS

    async def _fail(self, error: Exception, response: Response, native: bool) -> None:
        failure = failure_of(error)
        if failure.status == 500 or not isinstance(error, HeadwaterError):
            _log.error("%s failed with %s\n%s", response.request_id, type(error).__name__, place_of(error))
        if not response.started:
            await respond_failure(response, failure, native=native)

    # Life

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self.loop = asyncio.get_running_loop()
                    self.worker.start(await asyncio.to_thread(self.flow.resume))
                    if self.payments is not None:
                        await asyncio.to_thread(self.payments.recover)
                    if self.relays is not None:
                        await asyncio.to_thread(self.relays.meter.start)
                        self.relays.upstreams.watch()
                except Exception as error:
                    self.start_error = error
                    await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                if self.relays is not None:
                    assert self.relay is not None
                    await self.relay.upstreams.aclose()
                    await self.relays.meter.drain()
                await asyncio.to_thread(self._stop)
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _stop(self) -> None:
        self.answering.close()
        if self.payments is not None:
            self.payments.close()
        if self.relays is not None:
            self.relays.meter.close()
        if not self.worker.drain(self.options.drain_s):
            _log.warning("attribution was not finished; the journal has %d calls", self.worker.state().waiting)


def _template(path: str) -> str:
    """A path without what the caller put into it."""
    known = (
        *(chat.ROUTE, MODELS, "/v1/receipts/", "/v1/account", "/v1/feedback", "/v1/consent", "/v1/contributions/"),
        *(
            "/v1/admin/",
            "/v1/datanets/",
            "/v1/reviews/",
            "/v1/disputes/",
            "/v1/telemetry",
            "/v1/webhooks/",
            "/v1/payments/",
        ),
    )
    found = next((route for route in known if path.startswith(route)), "other")
    return found if path == found or found == "other" else found.rstrip("/") + "/{id}"


def create_app(
    flow: Flow,
    keys: KeyStore,
    *,
    options: GatewayOptions | None = None,
    bundle: Callable[[ReceiptId], bytes] | None = None,
    relays: Relays | None = None,
    vouchers: Vouchers | None = None,
    more: Sequence[Routes] = (),
    payments: Payments | None = None,
    sharing: Sharing | None = None,
) -> Gateway:
    """The gateway over `flow` and `keys`, ready for any ASGI server.

    It owns its threads and the attribution worker, not the stores: whoever opened those closes them afterwards.

    Args:
        options: how much is done at once.
        bundle: makes the file with which a stranger checks a receipt; without it that route does not exist.
        relays: models that other servers answer.
        vouchers: takes vouchers of a Credit contract instead of API keys.
        more: adds native routes, such as the operator's; each is called with the application and the service.
        payments: takes payments by x402 from callers without a key.
        sharing: what it has in common with other processes; without it, it is alone.
    """
    return Gateway(flow, keys, options or GatewayOptions(), bundle, relays, vouchers, more, payments, sharing)
