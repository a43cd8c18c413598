"""An upstream that breaks every rule it can: raw bytes on a socket, chosen by the model's name."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

WORDS = ["A ", "river ", "begins."]
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
SSE, JSON = b"text/event-stream", b"application/json"
LIFE_S = 20.0  # of a behaviour that would never end


def plain(said: str, usage: object = None, **more: object) -> bytes:
    """A chat completion."""
    message = {"role": "assistant", "content": said}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    counted = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12} if usage is None else usage
    whole = {"id": "up", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": counted}
    return json.dumps({**whole, **more}).encode()


def response(body: bytes, headers: str = "", status: str = "200 OK", kind: bytes = JSON) -> bytes:
    """A whole HTTP response."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind.decode()}\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def event(text: str, finish: str | None = None) -> bytes:
    """One event of a stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish, "logprobs": None}
    head = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(head).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Rogue:
    """The server. `seen` holds (path, body) of every request, `accepted` counts connections."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.accepted = 0
        self.gone = threading.Event()  # a caller hung up on something endless
        self.begun = threading.Event()
        self.hold = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self.hold.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError, ValueError):
            reader = connection.makefile("rb")
            while line := reader.readline():
                path, length = line.split()[1].decode(), 0
                while (header := reader.readline()) not in (b"\r\n", b""):
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                raw = reader.read(length)
                body = json.loads(raw) if raw else {}
                self.seen.append((path, body))
                behave: Callable[[Rogue, socket.socket, bool], bool] = BEHAVIOURS[body.get("model", "fine")]
                if not behave(self, connection, bool(body.get("stream"))):
                    return


def _answers(raw: Callable[[bool], bytes], *, keep: bool = True) -> Callable[[Rogue, socket.socket, bool], bool]:
    def behave(_: Rogue, connection: socket.socket, stream: bool) -> bool:
        connection.sendall(raw(stream))
        return keep

    return behave


def _stream(*pieces: bytes) -> bytes:
    return CHUNKED % SSE + b"".join(chunk(piece) for piece in pieces)


def _fine(stream: bool) -> bytes:
    words = [event(word) for word in WORDS]
    return _stream(*words, event("", "stop"), b"data: [DONE]\n\n") + b"0\r\n\r\n" if stream else response(plain("fine"))


def _mid_chunk(stream: bool) -> bytes:
    start = _stream(event("A ")) if stream else CHUNKED % JSON
    return start + b"ff\r\n" + b'{"id": "up", '


def _twice(stream: bool) -> bytes:
    return _fine(stream) + response(plain("SMUGGLED"))


def _redirect(_: bool) -> bytes:
    return response(b"", "location: http://127.0.0.1:9/v1/away\r\n", "302 Found")


def _two_lengths(_: bool) -> bytes:
    body = plain("two lengths")
    return response(body, "content-length: 5\r\n")


def _length_and_chunks(_: bool) -> bytes:
    body = plain("both")
    return response(chunk(body) + b"0\r\n\r\n", "transfer-encoding: chunked\r\n")


def _cut_json(_: bool) -> bytes:
    return response(plain("cut")[:-20])


def _usage(usage: object) -> Callable[[bool], bytes]:
    def raw(stream: bool) -> bytes:
        if not stream:
            return response(plain("lied", usage))
        last = {
            "id": "up",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": usage,
        }
        told = b"data: " + json.dumps(last).encode() + b"\n\n"
        return _stream(event("lied"), event("", "stop"), told, b"data: [DONE]\n\n") + b"0\r\n\r\n"

    return raw


def _endless(first: Callable[[bool], bytes], piece: bytes, pause_s: float = 0.0) -> Any:
    """Sends `piece` again and again, until it is left."""

    def behave(rogue: Rogue, connection: socket.socket, stream: bool) -> bool:
        until = time.monotonic() + LIFE_S
        try:
            connection.sendall(first(stream))
            while time.monotonic() < until:
                connection.sendall(piece)
                if pause_s:
                    time.sleep(pause_s)
        except OSError:
            rogue.gone.set()
        return False

    return behave


def _held(rogue: Rogue, connection: socket.socket, stream: bool) -> bool:
    """Begins a stream, or nothing at all, and waits."""
    if stream:
        connection.sendall(_stream(event("A ")))
    rogue.begun.set()
    rogue.hold.wait(LIFE_S)
    connection.sendall(chunk(event("", "stop")) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n" if stream else _fine(False))
    return True


def _kind(stream: bool) -> bytes:
    return CHUNKED % (SSE if stream else JSON)


BEHAVIOURS: dict[str, Callable[[Rogue, socket.socket, bool], bool]] = {
    "fine": _answers(_fine),
    "held": _held,
    "mid-chunk": _answers(_mid_chunk, keep=False),
    "bad-chunk": _answers(lambda stream: _kind(stream) + b"zz\r\nhello\r\n0\r\n\r\n", keep=False),
    "twice": _answers(_twice),
    "redirect": _answers(_redirect),
    "two-lengths": _answers(_two_lengths),
    "length-and-chunks": _answers(_length_and_chunks),
    "no-http": _answers(lambda _: b"SSH-2.0-OpenSSH_9.9\r\n", keep=False),
    "cut-json": _answers(_cut_json),
    "no-object": _answers(lambda _: response(b"[1, 2, 3]")),
    "deep-json": _answers(lambda _: response(b"[" * 200_000)),
    "no-utf8": _answers(lambda _: response(b'{"choices": "\xff\xfe"}')),
    "split-head": _answers(lambda _: b"HTTP/1.1 200 OK\r\nx: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\n{}"),
    "usage-negative": _answers(_usage({"prompt_tokens": -5, "completion_tokens": -7, "total_tokens": -12})),
    "usage-huge": _answers(_usage({"prompt_tokens": 10**30, "completion_tokens": 10**30, "total_tokens": 1})),
    "usage-words": _answers(_usage({"prompt_tokens": "9", "completion_tokens": [3], "total_tokens": None})),
    "usage-list": _answers(_usage([1, 2])),
    "usage-float": _answers(_usage({"prompt_tokens": 1e300, "completion_tokens": 0.5, "total_tokens": True})),
    "never-ends": _endless(_kind, chunk(b": still here\n\n"), 0.02),
    "dribbles-head": _endless(lambda _: b"HTTP/1.1 200 OK\r\nx-slow: ", b"x", 0.02),
    "floods-head": _endless(lambda _: b"HTTP/1.1 200 OK\r\n", b"x-flood: " + b"y" * 8_000 + b"\r\n"),
    "floods-body": _endless(_kind, chunk(b"y" * 2**20)),
    "floods-words": _endless(_kind, chunk(event("word " * 10) * 200)),
}


@contextmanager
def rogue() -> Iterator[Rogue]:
    """A running one."""
    server = Rogue()
    try:
        yield server
    finally:
        server.close()
