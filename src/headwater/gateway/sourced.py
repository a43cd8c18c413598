"""Calls with sources to a model of another server: admitted and attributed like our own, answered by that server.

    admit (licence gate, layout, ceiling reserved in the journal) -> ask -> pass on -> charge -> last bytes -> receipt

The answer passes through as it comes; its words are noted for the account, which is made behind it. Whatever happens,
the reservation is charged or given back: a caller who leaves a stream pays for what was passed on, an upstream that
fails costs nothing before its first word. With an idempotency key a stream is read to its end, and one that breaks is
not charged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

from headwater.attribution.evidence import Answer, read_answer
from headwater.core.errors import InvariantError, UpstreamError
from headwater.core.limits import REQUEST_SIZE_BYTES_MAX
from headwater.gateway.answering import Answering
from headwater.gateway.errors import Headers, failure_of
from headwater.gateway.frames import error_event
from headwater.gateway.gathering import Gathering
from headwater.gateway.limits import BYTES_PER_TOKEN, Rates, Taken
from headwater.gateway.metrics import Metrics
from headwater.gateway.outside import Asked, read_asked, wants_sources, write_asked
from headwater.gateway.passing import Request, StreamPass, UsageSaid, tokens_ceiling, usage_of, with_bill
from headwater.gateway.refusals import passed_headers, refusal
from headwater.gateway.relay import RelayedModel
from headwater.gateway.room import ASIDE_BYTES, too_large
from headwater.gateway.wire import EVENT_STREAM, JSON, Receive, Scope, Send, idempotency_key, respond, when_gone
from headwater.models.upstream import Exchange, Upstreams
from headwater.serving import EmbeddingModel, OutsideCall, OutsideModel
from headwater.store.call_store import CallRecord
from headwater.store.key_store import KeyRecord

Result = TypeVar("Result")

KEPT_BYTES_MAX: Final = 2 * 2**20
"""Of an answer that is kept to be given again; JSON may double it, and it stands beside its words."""


class AttributedModels(Mapping[str, OutsideModel]):
    """Models of other servers as the path of a call knows them, as they are when they are asked for."""

    def __init__(self, relayed: Callable[[], Mapping[str, RelayedModel]]) -> None:
        self._relayed = relayed

    def __getitem__(self, name: str) -> OutsideModel:
        attributed = self._relayed()[name].attributed
        if attributed is None:
            raise KeyError(name)
        return attributed

    def __iter__(self) -> Iterator[str]:
        return (name for name, model in self._relayed().items() if model.attributed is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Models(Mapping[str, OutsideModel | EmbeddingModel]):
    """Models of several kinds by name; the first that has a name is meant."""

    def __init__(self, *kinds: Mapping[str, OutsideModel | EmbeddingModel] | Mapping[str, OutsideModel]) -> None:
        self._kinds = kinds

    def __getitem__(self, name: str) -> OutsideModel | EmbeddingModel:
        for kind in self._kinds:
            if name in kind:
                return kind[name]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter({name: None for kind in self._kinds for name in kind})

    def __len__(self) -> int:
        return sum(1 for _ in self)


class SourcedRoute:
    """The lane. Belongs to one event loop."""

    def __init__(
        self, answering: Answering, upstreams: Callable[[], Upstreams], metrics: Metrics, rates: Rates
    ) -> None:
        self.answering, self._upstreams, self.metrics, self._rates = answering, upstreams, metrics, rates

    def wanted(self, raw: bytes, request: Request, model: RelayedModel) -> bool:
        """Whether a request is for this lane: it says something of sources, or its model always has some."""
        return wants_sources(raw, request, model.attributed)

    def quote(self, raw: bytes, request: Request, model: RelayedModel, path: str) -> int:
        """The most a request can cost, nano units."""
        limit = model.answer_tokens_max if request.max_tokens is None else request.max_tokens
        tokens_ceiling(request, model.answer_tokens_max)
        _check_text(request)
        asked = read_asked(raw, request, route=path, idempotency_key=None, answer_max=limit)
        return self.answering.flow.most_outside(asked.call)

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
        """Serve one request; errors before the first byte are raised."""
        path: str = scope["path"]
        limit = model.answer_tokens_max if request.max_tokens is None else request.max_tokens
        tokens_ceiling(request, model.answer_tokens_max)  # refuses what is too large
        _check_text(request)
        name = idempotency_key(scope)
        asked = await self._aside(
            request, lambda: read_asked(raw, request, route=path, idempotency_key=name, answer_max=limit)
        )
        most = request.prompt_bytes // BYTES_PER_TOKEN + limit * request.answers
        taken = self._rates.take(key, most, model.prices.price(request.prompt_bytes, limit * request.answers))
        at_work: _Sourced | None = None
        try:
            call = await self.answering.open(asked.call, key, outside=True)
            if isinstance(call, CallRecord):
                await self._replay(call, request, send)
                return
            assert isinstance(call, OutsideCall)
            at_work = _Sourced(self, call, request, taken)
            await self._answer(at_work, asked, path, receive, send)
        finally:
            if taken is not None and (at_work is None or not at_work.charged):
                taken.settle(0, 0)

    async def _answer(self, call: _Sourced, asked: Asked, path: str, receive: Receive, send: Send) -> None:
        usage = call.request.stream and call.request.shape != "responses"
        name, upstreams = call.open.served.name, self._upstreams()
        try:
            bodies = await self._aside(
                call.request,
                lambda: {
                    target.model: write_asked(asked, call.open.offered, target.model, include_usage=usage)
                    for target in upstreams.targets(name)
                },
            )
            exchange, _ = await upstreams.ask(name, path.removeprefix("/v1"), bodies, stream=call.request.stream)
            async with exchange:
                if exchange.status != 200:
                    await self.answering.settle(call.open.record.call_id)
                    await refusal(exchange, send)
                    self.metrics.call("failed")
                elif call.request.stream:
                    await call.stream(exchange, receive, send)
                else:
                    await call.whole(exchange, send)
        finally:
            if not call.charged:
                await self.answering.settle(call.open.record.call_id)

    async def _aside(self, request: Request, work: Callable[[], Result]) -> Result:
        """What `work` gives: now, or from a thread where it reads or writes a large body."""
        return work() if request.size_bytes <= ASIDE_BYTES else await self.answering.at_desk(work)

    async def _replay(self, record: CallRecord, request: Request, send: Send) -> None:
        if record.answer is None:
            raise InvariantError(f"{record.call_id} is answered and has no answer", code="answer_missing")
        answer = read_answer(record.answer)
        bill = (await self.answering.at_desk(lambda: self.answering.bill(record))).to_bytes()
        raw = answer.wire.encode()
        headers = ((b"headwater-receipt", record.call_id.encode()), (b"idempotent-replayed", b"true"))
        if not request.stream:
            await respond(send, 200, with_bill(raw, bill), JSON, headers)
        else:
            passing = _passing(request)
            body = passing.feed(raw) + passing.end(bill)
            await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM, *headers]})
            await send({"type": "http.response.body", "body": body})
        self.metrics.call("replayed")


class _Sourced:
    """One call on its way."""

    def __init__(self, route: SourcedRoute, call: OutsideCall, request: Request, taken: Taken | None) -> None:
        self._route, self.open, self.request, self._taken = route, call, request, taken
        self._kept = call.record.idempotency_key is not None
        self.charged = False

    async def whole(self, exchange: Exchange, send: Send) -> None:
        """A plain answer."""
        body = await exchange.whole()
        usage = usage_of(body)
        gathering = Gathering()
        gathering.whole(body)
        bill = await self._charge(usage, gathering, body, counted=len(body) // BYTES_PER_TOKEN)
        await respond(send, 200, with_bill(body, bill), JSON, self._headers(exchange))
        self._route.metrics.call("answered")

    async def stream(self, exchange: Exchange, receive: Receive, send: Send) -> None:
        """A stream, passed on as it comes. One that its upstream breaks is not charged."""
        passing, gathering = _passing(self.request), Gathering()
        gone = asyncio.Event()

        def leave() -> None:
            gone.set()
            exchange.abandon()

        watch = None if self._kept else asyncio.create_task(when_gone(receive, leave))
        raw: list[bytes] = []
        begun, size = False, 0
        try:
            while not gone.is_set():
                data = await exchange.read()
                if not data:
                    break
                ready = passing.feed(data)
                gathering.feed(data)
                if self._kept:
                    raw.append(data)
                    size += len(data)
                    _check_kept(size)
                if not begun:
                    begun = True
                    headers = [*EVENT_STREAM, *self._headers(exchange)]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                if ready:
                    await send({"type": "http.response.body", "body": ready, "more_body": True})
                if passing.finished:
                    break
            if gone.is_set():
                await self._cut(passing, gathering)
                return
            if not passing.finished:
                raise UpstreamError("the upstream ended its stream too early", code="upstream_broken", fix="try again")
            bill = await self._charge(passing.usage, gathering, b"".join(raw), counted=passing.deltas)
            await send({"type": "http.response.body", "body": passing.end(bill)})
            self._route.metrics.call("answered")
        except Exception as error:
            if gone.is_set():
                await self._cut(passing, gathering)
                return
            if not begun:
                raise
            await send({"type": "http.response.body", "body": error_event(failure_of(error))})
            self._route.metrics.call("failed")
        except asyncio.CancelledError:
            await self._cut(passing, gathering)
            raise
        finally:
            if watch is not None:
                watch.cancel()

    async def _cut(self, passing: StreamPass, gathering: Gathering) -> None:
        """The stream is left before its end: what was passed on is charged, if anything was."""
        if passing.passed and not self._kept and not self.charged:
            await self._charge(None, gathering, b"", counted=passing.passed, cut=True)
        self._route.metrics.call("left")

    def _headers(self, exchange: Exchange) -> Headers:
        receipt = (b"headwater-receipt", self.open.record.call_id.encode())
        return (receipt, *(passed_headers(exchange) if self._taken is None else self._taken.headers()))

    async def _charge(
        self, usage: UsageSaid | None, gathering: Gathering, raw: bytes, *, counted: int, cut: bool = False
    ) -> bytes:
        """Charge, wait until that is durable, and give the bill. What the upstream says it used is believed within
        what was reserved."""
        self.charged = True
        call = self.open
        said = usage or UsageSaid(min(call.prompt_tokens_max, self.request.prompt_bytes // BYTES_PER_TOKEN), counted)
        prompt, tokens = min(said.prompt, call.prompt_tokens_max), min(said.completion, call.answer_tokens_max)
        first, *others = gathering.choices(cut=cut)
        if self._kept:
            _check_kept(len(raw))
        answer = Answer(
            *(first.text, (), (), first.finish_reason, prompt),
            others=tuple(others),
            answer_tokens=tokens,
            wire=raw.decode("utf-8", "replace") if self._kept else "",
        )
        answering = self._route.answering
        record, bill = await _finished(answering, lambda: _charged(answering, call, answer))
        if self._taken is not None:
            self._taken.settle(prompt + tokens, record.price_units or 0)
        return bill


def _charged(answering: Answering, call: OutsideCall, answer: Answer) -> tuple[CallRecord, bytes]:
    try:
        record = answering.flow.charge(call, answer)
    except BaseException:
        answering.settle_now(call.record.call_id)
        raise
    answering.answered(record.call_id)
    return record, answering.bill(record, call.layout).to_bytes()


async def _finished(answering: Answering, work: Callable[[], tuple[CallRecord, bytes]]) -> tuple[CallRecord, bytes]:
    """Run a charge to its end, even if nobody waits for it any more."""
    return await asyncio.shield(asyncio.ensure_future(answering.at_desk(work)))


def _passing(request: Request) -> StreamPass:
    return StreamPass(request.shape, include_usage=request.include_usage, one=request.answers == 1)


def _check_text(request: Request) -> None:
    """Refuse more text than is read and attributed; pictures are neither."""
    if request.text_bytes > REQUEST_SIZE_BYTES_MAX:
        raise too_large(request.text_bytes, REQUEST_SIZE_BYTES_MAX, "what a call with sources says beside its pictures")


def _check_kept(size: int) -> None:
    if size > KEPT_BYTES_MAX:
        raise UpstreamError(
            f"an answer of more than {KEPT_BYTES_MAX} bytes cannot be kept",
            code="upstream_too_large",
            fix="ask without Idempotency-Key",
        )
