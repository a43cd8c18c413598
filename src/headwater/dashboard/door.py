"""The gateway's door inside this process: a page asks it for who has signed in, as any caller would over HTTP.

The gateway's limits, budgets, licences and errors hold unchanged, and its metrics count the call.
"""

from __future__ import annotations

import json
from typing import Any, Final

from starlette.responses import Response

from headwater.gateway import Gateway
from headwater.gateway.inside import PAYER
from headwater.gateway.wire import Message, Scope

_KEPT: Final = (b"content-type", b"content-length", b"idempotency-key")
_STANDARD: Final = ("type", "asgi", "http_version", "scheme", "client", "server", "root_path")


class Passed(Response):
    """A response that the gateway writes itself, piece by piece; what the browser sends is the request's body."""

    def __init__(self, gateway: Gateway, key_id: str, path: str) -> None:
        self._gateway, self._key_id, self._path = gateway, key_id, path
        self.background = None
        self.status_code = 200

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Have the gateway serve it."""
        await self._gateway(inner_scope(scope, self._key_id, self._path, scope["headers"]), receive, send)


async def ask_gateway(gateway: Gateway, scope: Scope, key_id: str, path: str, body: object) -> tuple[int, Any]:
    """(status, JSON) of a small request to the gateway."""
    raw = json.dumps(body).encode()
    sent = False
    status, pieces = 500, list[bytes]()

    async def receive() -> Message:
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            pieces.append(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(raw)).encode())]
    await gateway(inner_scope(scope, key_id, path, headers), receive, send)
    return status, json.loads(b"".join(pieces) or b"{}")


def inner_scope(scope: Scope, key_id: str, path: str, headers: list[tuple[bytes, bytes]]) -> Scope:
    """The scope of a request to the gateway, without cookies or anything else of the page's."""
    return {
        **{name: scope[name] for name in _STANDARD if name in scope},
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name, value) for name, value in headers if name in _KEPT],
        PAYER: key_id,
    }
