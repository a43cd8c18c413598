"""An upstream that does as its model's name says: well, badly, slowly or not at all. A real server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["Credit ", "goes ", "where ", "it ", "is ", "due", "."]
USAGE = {"prompt_tokens": 9, "completion_tokens": len(WORDS), "total_tokens": 9 + len(WORDS)}


class Upstream(ThreadingHTTPServer):
    """The server; `asked` holds the body of every request, `left` counts callers that hung up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.left = threading.Event()
        self.hold = threading.Event()
        self.health = 200  # the status of GET

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        """A health check."""
        self._json({"path": self.path}, self.server.health)

    def do_POST(self) -> None:
        """Answer as the model's name says."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers.get("authorization"))
        behaviour = body["model"]
        if behaviour.startswith("status-"):
            self._json({"error": {"message": "no", "type": "x", "param": None, "code": "mine"}}, int(behaviour[7:]))
        elif behaviour == "once-503" and self.server.asked.count(body) % 2:
            self._json({"error": {"message": "not now", "type": "x", "param": None, "code": "mine"}}, 503)
        elif behaviour == "locked" and self.server.keys[-1] != "Bearer theirs":
            self._json({"error": {"message": "no such key", "type": "x", "param": None, "code": "mine"}}, 401)
        elif behaviour == "garbage":
            self._raw(b"<html>", "text/html")
        elif behaviour == "silent":
            self.server.hold.wait(20)
        elif behaviour == "deaf":
            self.close_connection = True
        elif body.get("stream"):
            try:
                self._stream(body, behaviour)
            except OSError:
                self.server.left.set()
        else:
            usage = {**USAGE, "completion_tokens": 10**9} if behaviour == "liar" else USAGE
            self._json(_answer(self.path, body, None if behaviour == "mute" else usage))

    def _json(self, value: object, status: int = 200) -> None:
        self._raw(json.dumps(value).encode(), "application/json", status)

    def _raw(self, raw: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(raw)))
        if status == 429:
            self.send_header("retry-after", "7")
        self.end_headers()
        self.wfile.write(raw)

    def _stream(self, body: dict[str, Any], behaviour: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        end = "\r\n\r\n" if behaviour == "crlf" else "\n\n"
        for event in _events(body, self.path):
            if behaviour == "truncated" and '"stop"' in event:
                self.close_connection = True
                return
            self._piece((event + end).encode(), split=behaviour == "split")
            if behaviour == "slowly":
                time.sleep(0.1)
            if behaviour == "endless":
                while True:
                    self._piece((_events(body, self.path)[1] + end).encode())
                    time.sleep(0.01)
        self.wfile.write(b"0\r\n\r\n")

    def _piece(self, data: bytes, *, split: bool = False) -> None:
        for part in [data[i : i + 7] for i in range(0, len(data), 7)] if split else [data]:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.flush()


def _words(body: dict[str, Any]) -> list[str]:
    """What it says: its own words, or for `echo` and `always` everything that it read in the last message."""
    if body["model"] not in ("echo", "always"):
        return WORDS
    content = (body.get("messages") or [{"content": ""}])[-1].get("content") or ""
    if isinstance(content, list):
        content = " ".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return [word + " " for word in content.split(" ")]


def _calls_tools(body: dict[str, Any]) -> bool:
    """Whether it calls a tool: `tools` always, `tools-once` until it has a result."""
    told = any(message.get("role") == "tool" for message in body.get("messages") or ())
    return body["model"] == "tools" or (body["model"] == "tools-once" and not told)


CALLS = [
    {"index": 0, "id": "call_1", "type": "function", "function": {"name": "gauge", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"station": '}},
    {"index": 0, "function": {"arguments": '"Upper Fall"}'}},
]


def _answer(path: str, body: dict[str, Any], usage: dict[str, int] | None) -> dict[str, Any]:
    model = body["model"]
    if path.endswith("/embeddings"):
        vector = {"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}
        return {"object": "list", "model": model, "data": [vector], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    if path.endswith("/responses"):
        said = {"input_tokens": 9, "output_tokens": 7, "total_tokens": 16}
        return {
            "id": "resp_1",
            "object": "response",
            "status": "completed",
            "model": model,
            "output": [],
            "usage": said,
        }
    said = "".join(_words(body))
    message = {"role": "assistant", "content": said, "refusal": None, "reasoning_content": "kept"}
    choice: dict[str, Any] = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    if _calls_tools(body):
        function = {"name": "gauge", "arguments": '{"station": "Upper Fall"}'}
        call = {"id": "call_1", "type": "function", "function": function}
        choice["message"] = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        choice["finish_reason"] = "tool_calls"
    if path.endswith("/v1/completions"):
        choice = {"index": 0, "text": "".join(WORDS), "logprobs": None, "finish_reason": "stop"}
    kind = "chat.completion" if "chat" in path else "text_completion"
    found = {"id": "up-1", "object": kind, "created": 1, "model": model, "choices": [choice]}
    return found if usage is None else {**found, "usage": usage}


def _events(body: dict[str, Any], path: str) -> list[str]:
    if path.endswith("/responses"):
        said = {
            "usage": {"input_tokens": 9, "output_tokens": 7, "total_tokens": 16},
            "id": "resp_1",
            "status": "completed",
        }
        deltas = [
            {"type": "response.output_text.delta", "delta": word, "sequence_number": i} for i, word in enumerate(WORDS)
        ]
        last = {"type": "response.completed", "sequence_number": 99, "response": said, "finish": 1}
        return [f"event: {event['type']}\ndata: {json.dumps(event)}" for event in [*deltas, last]]
    head = {"id": "up-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return "data: " + json.dumps({**head, "choices": [choice]})

    if _calls_tools(body):
        first = event({"role": "assistant", "content": None})
        events = [first, *(event({"tool_calls": [call]}) for call in CALLS), event({}, "tool_calls")]
    else:
        first = event({"role": "assistant", "content": ""})
        events = [first, *(event({"content": word}) for word in _words(body)), event({}, "stop")]
    if (body.get("stream_options") or {}).get("include_usage"):
        events.append("data: " + json.dumps({**head, "choices": [], "usage": USAGE, "finish": 1}))
    return [*events, "data: [DONE]"]


def models_file(url: str, names: Iterable[str]) -> str:
    """An upstreams file with models of one server, each under the name of its behaviour and at a price by request."""
    tables = "".join(
        f'[model."{name}"]\ntargets = [{{ upstream = "real", model = "{name}" }}]\nrequest_price = "0.001"\n'
        for name in names
    )
    return f'[upstream.real]\nbase_url = "{url}"\n{tables}'


@contextmanager
def upstream() -> Iterator[Upstream]:
    """A running upstream."""
    server = Upstream()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.hold.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
