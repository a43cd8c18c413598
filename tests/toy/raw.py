"""Requests as their bytes, over a socket of their own."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import IO

from toy.desk import Desk


def body(model: str, **more: object) -> bytes:
    """A request's body."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], **more}).encode()


def raw(desk: Desk, content: bytes, *headers: str, secret: str | None = None) -> bytes:
    """A request as its bytes."""
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {secret or desk.secret}"]
    lines += [*headers, f"Content-Length: {len(content)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def answer(stream: IO[bytes]) -> tuple[int, dict[str, str], bytes]:
    """Read one response with a length: status, headers and body."""
    status = int(stream.readline().split()[1])
    headers: dict[str, str] = {}
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.decode().partition(": ")
        headers[name] = value
    return status, headers, stream.read(int(headers["content-length"]))


def connect(desk: Desk) -> socket.socket:
    """A connection."""
    return socket.create_connection(("127.0.0.1", desk.port), 10)


def until(done: Callable[[], bool]) -> None:
    """Wait, not for ever."""
    end = time.monotonic() + 10
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def at_rest(desk: Desk) -> bool:
    """Whether no call is at work."""
    assert desk.app.relays is not None
    return desk.app.relays.meter.state().held == 0
