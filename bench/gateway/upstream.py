"""A mock upstream: answers as a model server does, at the least cost a process can have.

    python -m bench.gateway.upstream PORT

It serves the gateways that are measured, so it must not be what limits them: one protocol on the bare
event loop, answers made beforehand, a stream of 54 events 2 ms apart.
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import cycle

EVENTS = 54
GAP_S = 0.002
SLOW_GAP_S = 0.2
SLOW_TOKENS = 777
"""The `max_tokens` of a request whose stream comes slowly."""

FAILING_TOKENS, GARBAGE_TOKENS, BROKEN_TOKENS = 778, 779, 780
"""And of those that are answered with 503, with what is no JSON, or not to the end."""
WORDS = (
    "The quick answer of a server that is not a model but takes its place in a measurement of what stands before it. "
)


def _answer(completion_tokens: int) -> bytes:
    message = {"role": "assistant", "content": WORDS * 5, "refusal": None}
    body = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 180,
            "completion_tokens": completion_tokens,
            "total_tokens": 180 + completion_tokens,
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def _event(delta: dict[str, object], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return _chunk([choice])


def _chunk(choices: list[dict[str, object]], usage: dict[str, int] | None = None) -> bytes:
    body: dict[str, object] = {
        "id": "chatcmpl-mock",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": choices,
    }
    if usage is not None:
        body["usage"] = usage
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


STREAM = [
    _event({"role": "assistant", "content": ""}),
    *(_event({"content": f"word{i} "}) for i in range(EVENTS - 3)),
    _event({}, "stop"),
]
USAGE = _chunk([], {"prompt_tokens": 180, "completion_tokens": EVENTS - 3, "total_tokens": 177 + EVENTS})
DONE = b"data: [DONE]\n\n"


def _plain(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _piece(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_ANSWERS = cycle([_plain(_answer(tokens)) for tokens in range(70, 170)])  # so that no two prices in a row are alike
_MODELS = _plain(b'{"object":"list","data":[{"id":"gpt-4o-mini","object":"model","created":1,"owned_by":"mock"}]}')
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


_WRONG = {
    FAILING_TOKENS: b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}",
    GARBAGE_TOKENS: _plain(b"<html>"),
    BROKEN_TOKENS: _HEAD + _piece(STREAM[0]) + _piece(STREAM[1]),
}


class Mock(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            length = 0
            place = head.find(b"content-length:")
            if place >= 0:
                length = int(head[place + 15 :].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + length:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + length], self._buffer[end + 4 + length :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if b'"max_tokens":77' in body or b'"max_tokens":780' in body:
            for tokens, wrong in _WRONG.items():
                if b'"max_tokens":%d' % tokens in body:
                    self.transport.write(wrong)
                    if tokens == BROKEN_TOKENS:
                        self.transport.close()
                    return
        if head.startswith(b"get "):
            self.transport.write(_MODELS)
        elif b'"stream":true' in body or b'"stream": true' in body:
            gap_s = SLOW_GAP_S if b'"max_tokens":%d' % SLOW_TOKENS in body else GAP_S
            usage = b'"include_usage":true' in body or b'"include_usage": true' in body
            self._task = asyncio.get_running_loop().create_task(self._stream(usage, gap_s))
        else:
            self.transport.write(next(_ANSWERS))

    async def _stream(self, usage: bool, gap_s: float) -> None:
        self.transport.write(_HEAD)
        for event in STREAM:
            self.transport.write(_piece(event))
            await asyncio.sleep(gap_s)
        self.transport.write((_piece(USAGE) if usage else b"") + _piece(DONE) + b"0\r\n\r\n")


async def main(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(int(sys.argv[1])))
