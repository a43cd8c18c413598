"""Calls that another server answers: hold the ceiling, pass the bytes on, charge what was used.

The way of such a call is short on purpose: one level of the request is read, the answer's usage is
searched for, and the last bytes leave when the receipt is on the disk. What an upstream says it used is
believed within what was held for the call, never beyond. A caller who leaves a stream pays for what was
passed on; a call that did not answer costs nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import msgspec

from headwater.core.canonical import digest, refuse_deep
from headwater.core.errors import HeadwaterError, InvalidError, MissingError, RefusedError, UpstreamError
from headwater.core.limits import CALL_RECORD_SIZE_BYTES_MAX, REQUEST_DEPTH_MAX
from headwater.core.money import format_units
from headwater.gateway.caller import GONE, AsgiCaller, Caller
from headwater.gateway.errors import Headers, failure_of
from headwater.gateway.frames import error_event
from headwater.gateway.keeping import Claims, Keeper, Keeping
from headwater.gateway.limits import BYTES_PER_TOKEN, Rates, Taken, check_model
from headwater.gateway.metrics import Metrics
from headwater.gateway.passing import (
    ROUTES,
    Request,
    StreamPass,
    UsageSaid,
    read_request,
    tokens_ceiling,
    usage_of,
    with_bill,
)
from headwater.gateway.refusals import passed_headers, refusal_of
from headwater.gateway.room import ASIDE_BYTES
from headwater.gateway.tracing import Outcome, Watched
from headwater.gateway.wire import Receive, Scope, Send, check_idempotency_key, header
from headwater.meter import RECALL_PAUSES_S, Meter
from headwater.metered import Charged, Hold, Used
from headwater.models.upstream import Exchange, OwnSecret, Upstreams
from headwater.receipts import Issued
from headwater.serving import OutsideModel
from headwater.splits import Prices
from headwater.store.kept_store import KeptAnswer
from headwater.store.key_store import KeyRecord

Result = TypeVar("Result")

_LEASE_TRIES: Final = 8
_OWN_KEY_CHARS_MAX: Final = 4_096


OWN_KEY: Final = b"upstream-authorization"
"""The header in which a caller sends a key of its own for the upstream."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """That callers may pay a model's upstream themselves, and what their calls cost here then."""

    upstream: str
    prices: Prices


@dataclass(frozen=True, slots=True)
class RelayedModel:
    """A model name that callers may use and that upstreams answer."""

    name: str
    prices: Prices
    answer_tokens_max: int  # of one answer, when its caller names no limit and at most
    digest: str  # of what the operator says about it; receipts carry it where weights cannot be digested
    attributed: OutsideModel | None = None  # how its calls with sources are served; None: they cannot be
    own_key: OwnKey | None = None  # None: callers cannot bring a key of their own


@dataclass(frozen=True, slots=True)
class Relays:
    """Models that other servers answer, and what their calls run on."""

    models: Mapping[str, RelayedModel]
    upstreams: Upstreams
    meter: Meter


class Sourced(Protocol):
    """The lane of calls with sources: admitted, attributed and kept like those of a model in process."""

    def wanted(self, raw: bytes, request: Request, model: RelayedModel) -> bool:
        """Whether a request is for it: the one place that decides."""
        ...

    def quote(self, raw: bytes, request: Request, model: RelayedModel, path: str) -> int:
        """The most such a request can cost, nano units."""
        ...

    async def __call__(
        self,
        raw: bytes,
        request: Request,
        model: RelayedModel,
        key: KeyRecord,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve such a request; errors before the first byte are raised."""
        ...


class Relay:
    """The route. Belongs to one event loop."""

    def __init__(
        self,
        models: Mapping[str, RelayedModel],
        upstreams: Upstreams,
        meter: Meter,
        metrics: Metrics,
        at_desk: Callable[[Callable[[], Any]], Awaitable[Any]],
        rates: Rates,
        claims: Claims | None = None,
        sourced: Sourced | None = None,
        stall_s: float = 30.0,
    ) -> None:
        self._sourced, self._stall_s = sourced, stall_s
        self.models, self.upstreams, self.meter, self.rates = models, upstreams, meter, rates
        self.metrics, self._at_desk = metrics, at_desk
        self._keeper = Keeper(meter.parts.store.kept, at_desk, claims)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of payers that need a lease
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="bodies")
        self.currency = meter.parts.policy.currency

    def take_over(self, models: Mapping[str, RelayedModel], upstreams: Upstreams) -> Upstreams:
        """Serve other models from now on; gives the upstreams there were, for calls at work there to end."""
        before = self.upstreams
        self.models, self.upstreams = models, upstreams
        return before

    def answers(self, raw: bytes) -> bool:
        """Whether a body names one of these models; quick, and false for what is not JSON."""
        try:
            refuse_deep(raw, REQUEST_DEPTH_MAX)
            return _decode_name(raw).model in self.models
        except (HeadwaterError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
            return False

    def read(self, raw: bytes, path: str) -> Request | None:
        """A request that `answer` may be given; None for one that is not, or not certainly, to be passed on."""
        try:
            request = read_request(raw, ROUTES[path])
        except InvalidError:
            return None
        model = self.models.get(request.model)
        if model is None or (self._sourced is not None and self._sourced.wanted(raw, request, model)):
            return None
        return request

    async def aside(self, raw: bytes, work: Callable[[], Result]) -> Result:
        """What `work` gives: now, or from a thread where the body that it reads or writes is large: one at a time, so
        that what is short need not wait for them."""
        if len(raw) <= ASIDE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)

    def quote(self, raw: bytes, path: str) -> tuple[int, bool]:
        """(the most a request can cost in nano units, whether it costs exactly that)."""
        request = read_request(raw, ROUTES[path])
        model = self._model(request)
        if self._sourced is not None and self._sourced.wanted(raw, request, model):
            return self._sourced.quote(raw, request, model, path), False
        prices = model.prices
        ceiling = prices.price(*tokens_ceiling(request, model.answer_tokens_max))
        return ceiling, not (prices.input_token_units or prices.output_token_units)

    async def __call__(self, raw: bytes, key: KeyRecord, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body has been read; errors before the first byte are raised."""
        request = await self.aside(raw, lambda: read_request(raw, ROUTES[scope["path"]]))
        model = self._model(request)
        said, sourced = header(scope, OWN_KEY), self._sourced
        if sourced is not None and await self.aside(raw, lambda: sourced.wanted(raw, request, model)):
            if said is not None:
                raise _no_own_key(f"a call of {model.name} with sources", "ask without sources")
            check_model(key, model.name)
            await sourced(raw, request, model, key, scope, receive, send)
            return
        own = None if said is None else _own_secret(said, model)
        await self.answer(raw, request, key, AsgiCaller(scope, receive, send, self._stall_s), own)

    async def answer(
        self, raw: bytes, request: Request, key: KeyRecord, caller: Caller, own: OwnSecret | None = None
    ) -> None:
        """Pass a request on and its answer back; errors before the first byte are raised.

        Args:
            own: the caller's own key for the upstream; its model's other prices count then.
        """
        model = self._model(request)
        if own is not None and model.own_key is not None:
            model = replace(model, prices=model.own_key.prices)
        check_model(key, model.name)
        given = caller.header(b"idempotency-key")
        if given is None:
            await self._serve(raw, request, model, key, caller, own=own)
            return
        name = check_idempotency_key(given)
        keeping = await self._keeper.begin(key, name, caller.path, raw, stream=request.stream)
        if isinstance(keeping, KeptAnswer):
            await self._replay(keeping, caller)
            return
        try:
            await self._serve(raw, request, model, key, caller, keeping, own)
        finally:
            self._keeper.end(key, name)

    def _model(self, request: Request) -> RelayedModel:
        model = self.models.get(request.model)
        if model is None:
            raise MissingError(
                f"the model {request.model[:80]!r} does not exist", code="model_not_found", fix="see GET /v1/models"
            )
        return model

    async def _replay(self, kept: KeptAnswer, caller: Caller) -> None:
        if kept.answer is None:
            raise MissingError(
                f"the answer of {kept.call_id} has been erased",
                code="answer_forgotten",
                fix="send the request with a new idempotency key to have it answered again",
            )
        if self.meter.owes(kept.call_id):
            await self.meter.charge_kept(kept.call_id, kept.receipt, kept.signature)
        own = ((b"headwater-receipt", kept.call_id.encode()), (b"idempotent-replayed", b"true"))
        if kept.stream:
            await caller.begin(own)
            await caller.end(kept.answer)
        else:
            await caller.respond(200, kept.answer, own)
        self.metrics.call("replayed")

    async def _serve(
        self,
        raw: bytes,
        request: Request,
        model: RelayedModel,
        key: KeyRecord,
        caller: Caller,
        keeping: Keeping | None = None,
        own: OwnSecret | None = None,
    ) -> None:
        prompt_max, answer_max = tokens_ceiling(request, model.answer_tokens_max)
        targets = self.upstreams.targets(model.name)
        bodies, asked = await self.aside(
            raw, lambda: ({target.model: request.body(target.model) for target in targets}, digest(raw))
        )
        ceiling = model.prices.price(prompt_max, answer_max)
        taken = self.rates.take(key, prompt_max // BYTES_PER_TOKEN + answer_max, ceiling)
        try:
            hold = await self._hold(key, ceiling)
        except BaseException:
            if taken is not None:
                taken.settle(0, 0)
            raise
        call = _Call(self, request, model, hold, asked, (prompt_max, answer_max), taken, keeping)
        watched = None if self.metrics.observer is None else Watched(self.metrics.observer, caller, model.name)
        call.watched = watched
        try:
            exchange, target = await self.upstreams.ask(
                model.name, caller.path.removeprefix("/v1"), bodies, own, stream=request.stream
            )
            del bodies  # an answer may take minutes
            if watched is not None:
                watched.provider = target.upstream
            async with exchange:
                if exchange.status != 200:
                    await caller.respond(*await refusal_of(exchange, own_key=own is not None))
                    call.ended("failed", exchange.status, "upstream_refused")
                elif request.stream:
                    await call.stream(exchange, caller)
                else:
                    await call.whole(exchange, caller)
        except Exception as error:
            if watched is not None:
                failure = failure_of(error)
                watched.ended("failed", failure.status, failure.code)
            raise
        finally:
            if not call.settled:
                self.meter.release(hold)
                if taken is not None:
                    taken.settle(0, 0)

    async def _hold(self, key: KeyRecord, units: int) -> Hold:
        hold = self.meter.hold(key, units)
        if hold is not None:
            return hold
        # A lease covers many calls, so one at a time asks for one; who waited meanwhile finds what it needs.
        turn = self._turns.setdefault(key.key_id, asyncio.Lock())
        async with turn:
            return await self._lease(key, units)

    async def _lease(self, key: KeyRecord, units: int) -> Hold:
        pauses = iter(RECALL_PAUSES_S)
        for _ in range(_LEASE_TRIES):
            hold = self.meter.hold(key, units)
            if hold is not None:
                return hold
            try:
                await self._at_desk(lambda: self.meter.lease(key, units))
            except RefusedError as error:
                # Another process may hold what this one needs and not use it.
                pause_s = next(pauses, None)
                if pause_s is None or not await self._at_desk(partial(self.meter.recall, key, error)):
                    raise
                await asyncio.sleep(pause_s)
        raise UpstreamError(
            "the credit of this key is in use by too many calls at once",
            code="credit_busy",
            fix="try again in a moment",
        )

    def bill(self, charged: Charged) -> bytes:
        """Our object in an answer."""
        return msgspec.json.encode(
            {
                "receipt": charged.call_id,
                "receipt_id": charged.receipt_id,
                "status": "final",
                "price": format_units(charged.price_units),
                "currency": self.currency,
                "sources": [],
            }
        )


class _Call:
    """One call on its way."""

    __slots__ = (
        *("_hold", "_keeping", "_max", "_model", "_relay", "_request", "_request_digest", "_taken"),
        *("settled", "watched"),
    )

    def __init__(
        self,
        relay: Relay,
        request: Request,
        model: RelayedModel,
        hold: Hold,
        request_digest: str,
        most: tuple[int, int],
        taken: Taken | None,
        keeping: Keeping | None,
    ) -> None:
        self._relay, self._request, self._model, self._hold = relay, request, model, hold
        self._request_digest, self._max, self._taken = request_digest, most, taken
        self._keeping = keeping
        self.settled = False
        self.watched: Watched | None = None

    def ended(self, outcome: Outcome, status: int = 200, error: str | None = None) -> None:
        """Count the call, and tell of it whoever watches."""
        self._relay.metrics.call(outcome)
        if self.watched is not None:
            self.watched.ended(outcome, status, error)

    async def whole(self, exchange: Exchange, caller: Caller) -> None:
        """A plain answer."""
        body = await exchange.whole()
        usage = usage_of(body)
        final = partial(with_bill, body)
        answer = await self._charge(usage, body, final, counted=len(body) // BYTES_PER_TOKEN)
        await caller.respond(200, answer, self._headers(exchange))
        self.ended("answered")

    async def stream(self, exchange: Exchange, caller: Caller) -> None:
        """A stream, passed on as it comes. One that its upstream breaks is not charged.

        With an idempotency key it is read to its end even if nobody listens, because the retry will ask for all of
        it.
        """
        passing = StreamPass(
            self._request.shape, include_usage=self._request.include_usage, one=self._request.answers == 1
        )
        hasher = _Digest()
        gone = False

        def leave() -> None:
            nonlocal gone
            gone = True
            exchange.abandon()

        if self._keeping is None:
            caller.watch(leave)
        sent: list[bytes] = []  # what is to be kept
        begun, size = False, 0

        def take(data: bytes) -> bool:
            nonlocal size
            hasher.update(data)
            ready = passing.feed(data)
            if self._keeping is not None:
                sent.append(ready)
                size += len(data)
                if size > CALL_RECORD_SIZE_BYTES_MAX:
                    raise UpstreamError(
                        f"a stream of more than {CALL_RECORD_SIZE_BYTES_MAX} bytes cannot be kept",
                        code="upstream_too_large",
                        fix="ask without Idempotency-Key",
                    )
            free = not ready or caller.put(ready)
            return free and not passing.finished and not gone

        try:
            first = await exchange.read()
            if first and not gone:
                begun = True
                if self.watched is not None:
                    self.watched.begun(self._request.stream)
                await caller.begin(self._headers(exchange))
                ended, wanted = False, take(first)
                while not (ended or gone or passing.finished):
                    if wanted:
                        ended = await exchange.pour(take)
                    if not (gone or passing.finished):
                        await caller.drained()
                    wanted = True
            if gone:
                await self._cut(passing, hasher)
                return
            if not passing.finished:
                raise UpstreamError("the upstream ended its stream too early", code="upstream_broken", fix="try again")
            last = await self._charge(passing.usage, hasher, passing.end, counted=passing.deltas, before=sent)
            await caller.end(last)
            self.ended("answered")
        except Exception as error:
            if gone:
                if not self.settled:
                    await self._cut(passing, hasher)
                return
            if not begun:
                raise
            failure = failure_of(error)
            await caller.end(error_event(failure))
            self.ended("failed", 200, failure.code)
        except asyncio.CancelledError:
            if not self.settled:
                await self._cut(passing, hasher)
            raise
        finally:
            caller.unwatch()

    async def _cut(self, passing: StreamPass, hasher: _Digest) -> None:
        """The stream is left before its end: what was passed on is charged, if anything was."""
        if passing.passed and self._keeping is None:
            await self._charge(None, hasher, lambda _: b"", counted=passing.passed)
        self.ended("left", GONE)

    def _headers(self, exchange: Exchange) -> Headers:
        receipt = (b"headwater-receipt", self._hold.call_id.encode())
        # A key with limits of its own is told those, not the operator's towards the upstream.
        return (receipt, *(passed_headers(exchange) if self._taken is None else self._taken.headers()))

    async def _charge(
        self,
        usage: UsageSaid | None,
        answer: bytes | _Digest,
        final: Callable[[bytes], bytes],
        *,
        counted: int,
        before: Sequence[bytes] = (),
    ) -> bytes:
        """Charge, wait until the receipt is durable, and give the answer's last bytes.

        Args:
            final: those, with our object in them; called once.
            before: what was sent already, to be kept with them.
        """
        self.settled = True  # from here on the meter settles it, whatever happens to this task
        used = self._used(usage, answer, counted)
        if self.watched is not None:
            self.watched.charged(self._hold.call_id, used, self._relay.currency)
        if self._taken is not None:
            self._taken.settle(used.prompt_tokens + used.completion_tokens, used.price_units)
        relay, keeping = self._relay, self._keeping
        if keeping is None:
            return final(relay.bill(await relay.meter.charge(self._hold, used)))
        last = b""

        async def keep(issued: Issued, charged: Charged) -> None:
            nonlocal last
            last = final(relay.bill(charged))
            await keeping.keep(charged.call_id, issued, b"".join([*before, last]))

        await relay.meter.charge(self._hold, used, keep)
        return last

    def _used(self, usage: UsageSaid | None, answer: bytes | _Digest, counted: int) -> Used:
        prompt_max, answer_max = self._max
        said = usage or UsageSaid(min(prompt_max, self._request.prompt_bytes // BYTES_PER_TOKEN), counted)
        prompt, completion = min(said.prompt, prompt_max), min(said.completion, answer_max)
        within = (prompt, completion) == (said.prompt, said.completion)
        return Used(
            model=self._model.name,
            model_digest=self._model.digest,
            request_digest=self._request_digest,
            answer_digest=digest(answer) if isinstance(answer, bytes) else answer.text(),
            prompt_tokens=prompt,
            completion_tokens=completion,
            price_units=min(self._model.prices.price(prompt, completion), self._hold.units),
            usage_from="count" if usage is None else "upstream" if within else "bound",
        )


class _Digest:
    """SHA-256 of a stream as it came, written like `digest`."""

    __slots__ = ("_state", "update")

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self.update = self._state.update

    def text(self) -> str:
        return "sha256:" + self._state.hexdigest()


def _own_secret(said: bytes, model: RelayedModel) -> OwnSecret:
    """A caller's own key, for the upstream it may be sent to."""
    if model.own_key is None:
        raise _no_own_key(model.name, "leave Upstream-Authorization out; GET /v1/models says which models take a key")
    scheme, _, secret = said.decode("latin-1").partition(" ")
    secret = secret.strip()
    fine = secret.isascii() and secret.isprintable() and " " not in secret and len(secret) <= _OWN_KEY_CHARS_MAX
    if scheme.lower() != "bearer" or not secret or not fine:
        raise InvalidError(
            "Upstream-Authorization is no bearer key",
            code="own_key_invalid",
            fix="write: Bearer KEY, in one line of ASCII",
        )
    return OwnSecret(model.own_key.upstream, secret)


def _no_own_key(what: str, fix: str) -> InvalidError:
    return InvalidError(f"{what} takes no key of the caller's for its upstream", code="own_key_not_taken", fix=fix)


class _Name(msgspec.Struct):
    model: Any = None


_decode_name = msgspec.json.Decoder(_Name).decode
