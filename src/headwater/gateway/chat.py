"""Texts from a model in process, on the three routes that ask for them: admitted, answered, plain or as a stream, and
never hanging on to a caller who has left.

An error before the first byte is an HTTP status, after it an event that ends the stream. The last
bytes of an answer leave only after its charge is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import msgspec

from headwater.attribution.evidence import Answer, read_answer
from headwater.core.errors import InvariantError
from headwater.core.instants import SECOND_NS
from headwater.flow import OpenCall
from headwater.gateway.answering import Answering, Delivered
from headwater.gateway.caller import GONE
from headwater.gateway.channel import Channel, ReaderGone
from headwater.gateway.completion_frames import CompletionWriter
from headwater.gateway.errors import Headers, failure_of
from headwater.gateway.frames import KEEP_ALIVE, Bill, ChatWriter, Heading, Tokens, Writer, error_event, fingerprint
from headwater.gateway.limits import BYTES_PER_TOKEN, Rates, Taken, check_model
from headwater.gateway.metrics import Metrics
from headwater.gateway.requests import TextRequest, read_chat, read_completion, read_response
from headwater.gateway.response_frames import ResponseWriter
from headwater.gateway.tracing import LocalCost, Outcome, ScopeAsked, Watched
from headwater.gateway.wire import (
    EVENT_STREAM,
    JSON,
    CallerGone,
    Receive,
    Scope,
    Send,
    idempotency_key,
    respond,
    when_gone,
)
from headwater.models.backend import FinishReason, Piece, TokenLogprob
from headwater.store.call_store import CallRecord
from headwater.store.key_store import KeyRecord

ROUTE: Final = "/v1/chat/completions"
_READ: Final = {ROUTE: read_chat, "/v1/completions": read_completion, "/v1/responses": read_response}
ROUTES: Final = frozenset(_READ)
QUIET_S: Final = 10.0
"""Silence on a stream after which a comment is sent, so that nobody in between takes it for dead."""

Spent = tuple[int, int]  # tokens, nano units


@dataclass(frozen=True, slots=True)
class TextRoute:
    """What the routes run on."""

    answering: Answering
    metrics: Metrics
    rates: Rates

    async def __call__(self, body: bytes, key: KeyRecord, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body has been read; errors before the first byte are raised."""
        route: str = scope["path"]
        read = _READ[route]
        request = read(body, route=route, idempotency_key=idempotency_key(scope), seed=_seeds(self.answering))
        check_model(key, request.call.model)
        taken = self._take(request, key, len(body))
        self.answering.enter()
        holding = True
        try:
            call = await self.answering.open(request.call, key)
            if isinstance(call, CallRecord):
                await self._replay(call, request, route, send)
                return
            assert isinstance(call, OpenCall)
            channel = self.answering.start(call)
            holding = False
            await self._answer(call, channel, request, scope, receive, send, taken)
        finally:
            if holding:
                self.answering.leave()
                if taken is not None:
                    taken.settle(0, 0)

    def quote(self, body: bytes, route: str) -> int:
        """The most a request can cost, nano units."""
        call = _READ[route](body, route=route, idempotency_key=None, seed=_seeds(self.answering)).call
        return self.answering.flow.most(call.model, call.sampling.max_tokens * call.answers)

    def _take(self, request: TextRequest, key: KeyRecord, size_bytes: int) -> Taken | None:
        """Take the call's most, as far as it is known before the prompt is made, out of the key's minute."""
        served = self.answering.flow.parts.models.get(request.call.model)
        if served is None or not key.limits.rated:
            return None
        prompt, answer = size_bytes // BYTES_PER_TOKEN, request.call.sampling.max_tokens * request.call.answers
        return self.rates.take(key, prompt + answer, served.prices.price(prompt, answer))

    # A new answer

    async def _answer(
        self,
        call: OpenCall,
        channel: Channel[Delivered],
        request: TextRequest,
        scope: Scope,
        receive: Receive,
        send: Send,
        taken: Taken | None,
    ) -> None:
        writer = _writer(scope["path"], _heading(call.record, call.served.digest), request)
        # A caller who retries with an idempotency key will ask for the whole of a plain answer again: finish it.
        keep = request.call.idempotency_key is not None and not request.stream
        leave = channel.detach if keep else channel.close
        observer = self.metrics.observer
        watched = None if observer is None else Watched(observer, ScopeAsked(scope), call.served.name)
        gone = asyncio.create_task(when_gone(receive, leave))
        try:
            prompt_tokens = len(call.prompt)
            headers = (*_receipt_header(call.record), *(() if taken is None else taken.headers()))
            if request.stream:
                first = None if watched is None else partial(watched.begun, True)
                used = await _stream(channel, writer, prompt_tokens, headers, send, first)
            else:
                body, used = await _whole(channel, gone, writer, prompt_tokens)
                await respond(send, 200, body, JSON, headers)
            if taken is not None:
                taken.settle(*used)  # no step of the event loop after the last bytes were handed over
            if watched is not None:
                spent = LocalCost(prompt_tokens, used[0] - prompt_tokens, used[1])
                watched.charged(call.record.call_id, spent, call.record.asset)
            self._ended(watched, "answered")
        except (ReaderGone, CallerGone):
            self._ended(watched, "left", GONE)
        except asyncio.CancelledError:
            leave()
            self._ended(watched, "left", GONE)
            raise
        except BaseException as error:
            if taken is not None:
                taken.settle(0, 0)
            failure = failure_of(error)
            self._ended(watched, "failed", failure.status, failure.code)
            raise
        finally:
            leave()
            gone.cancel()

    def _ended(self, watched: Watched | None, outcome: Outcome, status: int = 200, error: str | None = None) -> None:
        self.metrics.call(outcome)
        if watched is not None:
            watched.ended(outcome, status, error)

    # An answer given before

    async def _replay(self, record: CallRecord, request: TextRequest, route: str, send: Send) -> None:
        answer, bill = await self.answering.at_desk(lambda: _given(self.answering, record))
        served = self.answering.flow.parts.models.get(record.model)
        writer = _writer(route, _heading(record, served.digest if served else ""), request)
        tokens = Tokens(answer.prompt_tokens, answer.tokens)
        headers = (*_receipt_header(record), (b"idempotent-replayed", b"true"))
        pieces = pieces_of(answer)
        if request.stream:
            body = writer.begin() + writer.write(pieces[:-1]) + writer.end(pieces[-1], tokens, bill)
            await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM, *headers]})
            await send({"type": "http.response.body", "body": body})
        else:
            await respond(send, 200, writer.whole(pieces, tokens, bill), JSON, headers)
        self.metrics.call("replayed")


def pieces_of(answer: Answer) -> tuple[Piece, ...]:
    """An answer that was given, as pieces to give it again."""
    likely = msgspec.json.decode(answer.wire, type=list[TokenLogprob]) if answer.wire else []
    pieces, start = [], 0
    for number, choice in enumerate(answer.choices):
        end = start + len(choice.token_ids)
        pieces.append(Piece(choice.text, choice.token_ids, None, tuple(likely[start:end]), number))
        reason = cast("FinishReason", choice.finish_reason)
        pieces.append(Piece("", (), reason, (), number, last=number + 1 == len(answer.choices)))
        start = end
    return tuple(pieces)


def _writer(route: str, heading: Heading, request: TextRequest) -> Writer:
    logprobs = request.call.sampling.logprobs is not None
    if route == ROUTE:
        return ChatWriter(heading, include_usage=request.include_usage, logprobs=logprobs, tools=request.tools)
    if route == "/v1/completions":
        return CompletionWriter(heading, include_usage=request.include_usage, logprobs=logprobs)
    return ResponseWriter(heading, request.echoed, request.tools)


async def _whole(
    channel: Channel[Delivered], gone: asyncio.Task[None], writer: Writer, prompt_tokens: int
) -> tuple[bytes, Spent]:
    """The body of a plain answer, or `CallerGone` as soon as nobody waits for it."""
    collected = asyncio.create_task(_collect(channel, writer, prompt_tokens))
    try:
        await asyncio.wait((collected, gone), return_when=asyncio.FIRST_COMPLETED)
        if collected.done():
            return collected.result()
        raise CallerGone
    finally:
        collected.cancel()


async def _collect(channel: Channel[Delivered], writer: Writer, prompt_tokens: int) -> tuple[bytes, Spent]:
    pieces: list[Piece] = []
    while batch := await channel.take():
        for item in batch:
            pieces.append(item.piece)
            if item.bill is not None:
                count = sum(len(piece.token_ids) for piece in pieces)
                body = writer.whole(pieces, Tokens(prompt_tokens, count), item.bill)
                return body, (prompt_tokens + count, item.bill.price_units)
    raise _unfinished()


async def _stream(
    channel: Channel[Delivered],
    writer: Writer,
    prompt_tokens: int,
    headers: Headers,
    send: Send,
    first: Callable[[], None] | None,
) -> Spent:
    batches = _batches(channel)
    batch = await anext(batches)  # an error up to here is still an HTTP status
    if first is not None:
        first()
    await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM, *headers]})
    begun = False
    count = 0

    async def write(body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})

    try:
        while True:
            frames = KEEP_ALIVE if not batch else b"" if begun else writer.begin()
            begun = begun or bool(batch)
            count += sum(len(item.piece.token_ids) for item in batch)
            last = batch[-1] if batch and batch[-1].bill is not None else None
            frames += writer.write([item.piece for item in batch if item is not last])
            if last is not None and last.bill is not None:
                await write(frames + writer.end(last.piece, Tokens(prompt_tokens, count), last.bill), more=False)
                return prompt_tokens + count, last.bill.price_units
            if frames:
                await write(frames)
            batch = await anext(batches)
    except Exception as error:
        if isinstance(error, ReaderGone):
            raise
        await write(error_event(failure_of(error)), more=False)
        raise
    finally:
        await batches.aclose()


async def _batches(channel: Channel[Delivered]) -> AsyncGenerator[list[Delivered]]:
    """Pieces as they come; an empty batch after every stretch of silence."""
    while True:
        try:
            async with asyncio.timeout(QUIET_S):
                batch = await channel.take()
        except TimeoutError:
            yield []
            continue
        if not batch:
            raise _unfinished()
        yield batch


def _given(answering: Answering, record: CallRecord) -> tuple[Answer, Bill]:
    if record.answer is None:
        raise InvariantError(f"{record.call_id} is answered and has no answer", code="answer_missing")
    return read_answer(record.answer), answering.bill(record)


def _heading(record: CallRecord, model_digest: str) -> Heading:
    return Heading(record.call_id, record.created_at_ns // SECOND_NS, record.model, fingerprint(model_digest))


def _receipt_header(record: CallRecord) -> Headers:
    return ((b"headwater-receipt", record.call_id.encode()),)


def _seeds(answering: Answering) -> Callable[[], int]:
    return lambda: int.from_bytes(answering.flow.parts.random_bytes(4), "big")


def _unfinished() -> InvariantError:
    return InvariantError("the answer ended without a finish reason", code="answer_unfinished")
