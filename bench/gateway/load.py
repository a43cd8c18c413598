"""A load client on the bare event loop: a number of connections, each asking as soon as it was answered."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass

from bench.gateway.upstream import SLOW_TOKENS

PROMPT = "Summarise in a few words what stands between a caller and a model, and what it costs. " * 11


@dataclass(frozen=True, slots=True)
class Run:
    """What one run of the load saw."""

    seconds: float
    latencies_s: tuple[float, ...]  # of each answer that was whole
    first_s: tuple[float, ...]  # to the first byte of each
    failures: int

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies_s) / self.seconds

    def latency_ms(self, quantile: float) -> float:
        """A quantile of the latency."""
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] if ordered else float("nan")

    def first_ms(self, quantile: float) -> float:
        """A quantile of the time to the first byte."""
        ordered = sorted(self.first_s)
        return 1000 * ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def request(host: str, key: str, *, stream: bool, slow: bool = False, model: str = "gpt-4o-mini") -> bytes:
    """The bytes of a call of about 1.1 KB; a slow one has the mock upstream take its time."""
    limit = SLOW_TOKENS if slow else 200
    body: dict[str, object] = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": limit}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    raw = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


class _Caller(asyncio.Protocol):
    """One connection that calls again and again."""

    def __init__(self, ask: bytes, until_s: float, stream: bool) -> None:
        self._ask, self._until_s, self._stream = ask, until_s, stream
        self._buffer = b""
        self.latencies: list[float] = []
        self.first: list[float] = []
        self.failures = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.failures += 1
            self.done.set_result(None)

    def _next(self) -> None:
        self._buffer = b""
        self._began = time.perf_counter()
        if self._began >= self._until_s and (self.latencies or self.failures):
            self.done.set_result(None)
            self._transport.close()
            return
        self._transport.write(self._ask)

    def data_received(self, data: bytes) -> None:
        if not self._buffer:
            self._first = time.perf_counter() - self._began
        self._buffer += data
        if not self._whole():
            return
        if self._buffer.startswith(b"HTTP/1.1 200") and (not self._stream or b"[DONE]" in self._buffer):
            self.latencies.append(time.perf_counter() - self._began)
            self.first.append(self._first)
        else:
            self.failures += 1
        self._next()

    def _whole(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self._buffer[:end].lower()
        place = head.find(b"content-length:")
        if place >= 0:
            return len(self._buffer) >= end + 4 + int(head[place + 15 :].split(b"\r\n", 1)[0])
        return self._buffer.endswith(b"0\r\n\r\n")


async def load(port: int, key: str, *, connections: int, seconds: float, stream: bool, slow: bool = False) -> Run:
    """Call for some seconds over some connections; each calls once at least."""
    loop = asyncio.get_running_loop()
    ask = request(f"127.0.0.1:{port}", key, stream=stream, slow=slow)
    began = time.perf_counter()
    callers = [_Caller(ask, began + seconds, stream) for _ in range(connections)]
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(caller.done for caller in callers))
    took = time.perf_counter() - began
    return Run(
        took,
        tuple(s for caller in callers for s in caller.latencies),
        tuple(s for caller in callers for s in caller.first),
        sum(caller.failures for caller in callers),
    )
