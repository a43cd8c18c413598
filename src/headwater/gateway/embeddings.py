"""`POST /v1/embeddings` of a model in process: texts to vectors, charged and kept like every other call.

The vectors leave when the charge is durable. Nobody but the model supplied them, so the receipt's pool is the
residual's. `dimensions` keeps the first ones and makes the vectors of length one again.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

import msgspec

from headwater.gateway.answering import Answering
from headwater.gateway.errors import Headers
from headwater.gateway.limits import BYTES_PER_TOKEN, Rates, check_model
from headwater.gateway.marks import invalid
from headwater.gateway.metrics import Metrics
from headwater.gateway.requests import read_embedding
from headwater.gateway.wire import JSON, Scope, Send, idempotency_key, respond
from headwater.serving import EmbeddingModel
from headwater.store.key_store import KeyRecord

ROUTE: Final = "/v1/embeddings"


@dataclass(frozen=True, slots=True)
class EmbeddingRoute:
    """What the route runs on."""

    answering: Answering
    metrics: Metrics
    rates: Rates

    async def __call__(self, body: bytes, key: KeyRecord, scope: Scope, send: Send) -> None:
        """Serve one request whose body has been read; errors are raised."""
        request = read_embedding(body, route=ROUTE, idempotency_key=idempotency_key(scope))
        check_model(key, request.call.model)
        flow = self.answering.flow
        served = flow.parts.others.get(request.call.model)
        if isinstance(served, EmbeddingModel) and (request.dimensions or 0) > served.dimensions:
            raise invalid("dimensions", f"{served.name} has {served.dimensions} dimensions", "ask for as many or fewer")
        tokens = len(body) // BYTES_PER_TOKEN
        taken = None if served is None else self.rates.take(key, tokens, served.prices.price(tokens, 0))
        used = (0, 0)
        self.answering.enter()
        try:
            record, answer, replayed = await self.answering.embed(request.call, key)
            if not replayed:
                self.answering.answered(record.call_id)
                used = (answer.prompt_tokens, record.price_units or 0)
            bill = await self.answering.at_desk(lambda: self.answering.bill(record))
        finally:
            self.answering.leave()
            if taken is not None:
                taken.settle(*used)
        rows = msgspec.json.decode(answer.wire, type=list[list[float]])
        said: dict[str, Any] = {
            "object": "list",
            "model": record.model,
            "data": [
                {"object": "embedding", "index": number, "embedding": _written(row, request.dimensions, request.base64)}
                for number, row in enumerate(rows)
            ],
            "usage": {"prompt_tokens": answer.prompt_tokens, "total_tokens": answer.prompt_tokens},
            "headwater": bill.to_json(),
        }
        if replayed:
            more: Headers = ((b"idempotent-replayed", b"true"),)
        else:
            more = () if taken is None else taken.headers()
        own = ((b"headwater-receipt", record.call_id.encode()), *more)
        await respond(send, 200, msgspec.json.encode(said), JSON, own)
        self.metrics.call("replayed" if replayed else "answered")

    def quote(self, body: bytes) -> int:
        """What a request costs, nano units: all of it is known before it is answered. May take a while."""
        call = read_embedding(body, route=ROUTE, idempotency_key=None).call
        return self.answering.flow.embedding_price(call)[2]


def _written(row: list[float], dimensions: int | None, as_base64: bool) -> list[float] | str:
    """A vector on the wire: numbers, or the base64 of little-endian float32."""
    if dimensions is not None and dimensions < len(row):
        row = row[:dimensions]
        length = sqrt(sum(value * value for value in row))
        row = [value / length for value in row] if length else row
    if not as_base64:
        return row
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()
