"""`POST /v1/chat/completions`: admit, answer, plain or as a stream, and never hang on to a caller who has left.

An error before the first byte is an HTTP status, after it an event that ends the stream. The last
bytes of an answer leave only after its charge is durable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Final

from headwater.attribution.evidence import Answer, read_answer
from headwater.core.errors import InvariantError
from headwater.core.instants import SECOND_NS
from headwater.flow import OpenCall
from headwater.gateway.answering import Answering, Delivered
from headwater.gateway.channel import Channel, ReaderGone
from headwater.gateway.errors import Headers, failure_of
from headwater.gateway.frames import (
    KEEP_ALIVE,
    Bill,
    ChunkWriter,
    Heading,
    Tokens,
    completion,
    error_event,
    fingerprint,
)
from headwater.gateway.limits import BYTES_PER_TOKEN, Rates, Taken, check_model
from headwater.gateway.metrics import Metrics
from headwater.gateway.requests import ChatRequest, read_chat
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
from headwater.store.call_store import CallRecord
from headwater.store.key_store import KeyRecord

ROUTE: Final = "/v1/chat/completions"
QUIET_S: Final = 10.0
"""Silence on a stream after which a comment is sent, so that nobody in between takes it for dead."""

Spent = tuple[int, int]  # tokens, nano units


@dataclass(frozen=True, slots=True)
class ChatRoute:
    """What the route runs on."""

    answering: Answering
    metrics: Metrics
    rates: Rates

    async def __call__(self, body: bytes, key: KeyRecord, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose body has been read; errors before the first byte are raised."""
        request = read_chat(body, route=ROUTE, idempotency_key=idempotency_key(scope), seed=_seeds(self.answering))
        check_model(key, request.call.model)
        taken = self._take(request, key, len(body))
        self.answering.enter()
        holding = True
        try:
            call = await self.answering.open(request.call, key)
            if isinstance(call, CallRecord):
                await self._replay(call, request, send)
                return
            channel = self.answering.start(call)
            holding = False
            await self._answer(call, channel, request, receive, send, taken)
        finally:
            if holding:
                self.answering.leave()
                if taken is not None:
                    taken.settle(0, 0)

    def _take(self, request: ChatRequest, key: KeyRecord, size_bytes: int) -> Taken | None:
        """Take the call's most, as far as it is known before the prompt is made, out of the key's minute."""
        served = self.answering.flow.parts.models.get(request.call.model)
        if served is None or not key.limits.rated:
            return None
        prompt, answer = size_bytes // BYTES_PER_TOKEN, request.call.sampling.max_tokens
        return self.rates.take(key, prompt + answer, served.prices.price(prompt, answer))

    # A new answer

    async def _answer(
        self,
        call: OpenCall,
        channel: Channel[Delivered],
        request: ChatRequest,
        receive: Receive,
        send: Send,
        taken: Taken | None,
    ) -> None:
        heading = _heading(call.record, call.served.backend.digest)
        # A caller who retries with an idempotency key will ask for the whole of a plain answer again: finish it.
        keep = request.call.idempotency_key is not None and not request.stream
        leave = channel.detach if keep else channel.close
        gone = asyncio.create_task(when_gone(receive, leave))
        try:
            prompt_tokens = len(call.prompt)
            headers = (*_receipt_header(call.record), *(() if taken is None else taken.headers()))
            if request.stream:
                writer = ChunkWriter(heading, include_usage=request.include_usage)
                used = await _stream(channel, writer, prompt_tokens, headers, send)
            else:
                body, used = await _whole(channel, gone, heading, prompt_tokens)
                await respond(send, 200, body, JSON, headers)
            if taken is not None:
                taken.settle(*used)  # no step of the event loop after the last bytes were handed over
            self.metrics.call("answered")
        except (ReaderGone, CallerGone):
            self.metrics.call("left")
        except asyncio.CancelledError:
            leave()
            self.metrics.call("left")
            raise
        except BaseException:
            if taken is not None:
                taken.settle(0, 0)
            self.metrics.call("failed")
            raise
        finally:
            leave()
            gone.cancel()

    # An answer given before

    async def _replay(self, record: CallRecord, request: ChatRequest, send: Send) -> None:
        answer, bill = await self.answering.at_desk(lambda: _given(self.answering, record))
        served = self.answering.flow.parts.models.get(record.model)
        heading = _heading(record, served.backend.digest if served else "")
        tokens = Tokens(answer.prompt_tokens, len(answer.token_ids))
        headers = (*_receipt_header(record), (b"idempotent-replayed", b"true"))
        if request.stream:
            writer = ChunkWriter(heading, include_usage=request.include_usage)
            body = writer.role() + writer.texts([answer.text]) + writer.end(answer.finish_reason, tokens, bill)
            await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM, *headers]})
            await send({"type": "http.response.body", "body": body})
        else:
            await respond(
                send, 200, completion(heading, answer.text, answer.finish_reason, tokens, bill), JSON, headers
            )
        self.metrics.call("replayed")


async def _whole(
    channel: Channel[Delivered], gone: asyncio.Task[None], heading: Heading, prompt_tokens: int
) -> tuple[bytes, Spent]:
    """The body of a plain answer, or `CallerGone` as soon as nobody waits for it."""
    collected = asyncio.create_task(_collect(channel, heading, prompt_tokens))
    try:
        await asyncio.wait((collected, gone), return_when=asyncio.FIRST_COMPLETED)
        if collected.done():
            return collected.result()
        raise CallerGone
    finally:
        collected.cancel()


async def _collect(channel: Channel[Delivered], heading: Heading, prompt_tokens: int) -> tuple[bytes, Spent]:
    texts: list[str] = []
    count = 0
    while batch := await channel.take():
        for item in batch:
            texts.append(item.piece.text)
            count += len(item.piece.token_ids)
            if item.bill is not None:
                reason = item.piece.finish_reason or "stop"
                body = completion(heading, "".join(texts), reason, Tokens(prompt_tokens, count), item.bill)
                return body, (prompt_tokens + count, item.bill.price_units)
    raise _unfinished()


async def _stream(
    channel: Channel[Delivered], writer: ChunkWriter, prompt_tokens: int, headers: Headers, send: Send
) -> Spent:
    batches = _batches(channel)
    first = await anext(batches)  # an error up to here is still an HTTP status
    await send({"type": "http.response.start", "status": 200, "headers": [*EVENT_STREAM, *headers]})
    begun = False
    count = 0

    async def write(body: bytes, *, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})

    try:
        batch = first
        while True:
            frames = KEEP_ALIVE if not batch else b"" if begun else writer.role()
            begun = begun or bool(batch)
            frames += writer.texts([item.piece.text for item in batch])
            count += sum(len(item.piece.token_ids) for item in batch)
            bill, reason = _ending(batch)
            if bill is not None:
                await write(frames + writer.end(reason, Tokens(prompt_tokens, count), bill), more=False)
                return prompt_tokens + count, bill.price_units
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


def _ending(batch: list[Delivered]) -> tuple[Bill | None, str]:
    for item in batch:
        if item.bill is not None:
            return item.bill, item.piece.finish_reason or "stop"
    return None, ""


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
