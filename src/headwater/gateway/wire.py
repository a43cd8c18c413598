"""HTTP as this server speaks it, on bare ASGI: bodies with limits, headers that are sane, responses in one piece.

Knows nothing of calls or models.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

from headwater.core.errors import InvalidError, RefusedError
from headwater.core.limits import IDEMPOTENCY_KEY_CHARS_MAX
from headwater.gateway.errors import Failure, Headers, RequestError
from headwater.gateway.room import Place

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON: Final = b"application/json"
PROBLEM: Final = b"application/problem+json"
EVENT_STREAM: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
"""Headers of a stream of events that nobody in between may hold up."""

_DIGITS_MAX: Final = 18
_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]+")


class CallerGone(Exception):
    """The connection was closed before the request was whole; nobody waits for a response."""


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a header that may come once.

    Raises:
        RequestError: it came twice.
    """
    return one_header(scope["headers"], name)


def one_header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The value of a header that may come once; see `header`."""
    values = [value for key, value in headers if key == name]
    if len(values) > 1:
        raise RequestError(
            f"the header {name.decode()} came {len(values)} times",
            param=None,
            code="header_invalid",
            fix="send it once",
        )
    return values[0] if values else None


def bearer(scope: Scope) -> str:
    """The API key of a request.

    Raises:
        RefusedError: ``invalid_api_key`` when there is none, or not as a bearer token.
    """
    value = header(scope, b"authorization")
    scheme, _, secret = (value or b"").partition(b" ")
    if scheme.lower() != b"bearer" or not (secret := secret.strip()) or not secret.isascii():
        raise RefusedError(
            "no API key in the Authorization header",
            code="invalid_api_key",
            fix="send Authorization: Bearer hw_…",
        )
    return secret.decode("ascii")


def idempotency_key(scope: Scope) -> str | None:
    """The idempotency key of a request, if it has one."""
    value = header(scope, b"idempotency-key")
    return None if value is None else check_idempotency_key(value)


def check_idempotency_key(value: bytes) -> str:
    """An idempotency key as text.

    Raises:
        RequestError: ``idempotency_key_invalid``.
    """
    if len(value) > IDEMPOTENCY_KEY_CHARS_MAX or _PRINTABLE.fullmatch(value) is None:
        raise RequestError(
            "the Idempotency-Key is empty, too long or not printable ASCII",
            param="Idempotency-Key",
            code="idempotency_key_invalid",
            fix=f"use 1 to {IDEMPOTENCY_KEY_CHARS_MAX} printable characters",
        )
    return value.decode("ascii")


async def read_body(scope: Scope, receive: Receive, place: Place, *, timeout_s: float) -> bytes:
    """The whole body.

    Args:
        place: of this body, taken before it is read where its length is said.

    Raises:
        InvalidError: ``request_too_large``, ``request_timeout`` or ``content_encoding_unsupported``.
        UpstreamError: ``bodies_busy``.
        CallerGone: the connection was closed.
    """
    if (header(scope, b"content-encoding") or b"identity").lower() != b"identity":
        raise InvalidError(
            "the body is compressed", code="content_encoding_unsupported", fix="send it without Content-Encoding"
        )
    length = header(scope, b"content-length")
    if length is not None:
        place.grow(_number(length))
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, place)
    except TimeoutError:
        raise body_late(timeout_s) from None


async def _read(receive: Receive, place: Place) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise CallerGone
        piece = message.get("body", b"")
        size += len(piece)
        place.grow(size)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def body_late(timeout_s: float) -> InvalidError:
    """The error for a body that did not come in time."""
    return InvalidError(
        f"the body was not whole after {timeout_s:g} s", code="request_timeout", fix="send it in one go"
    )


def _number(length: bytes) -> int:
    """The length that a head says."""
    if not length.isdigit() or len(length) > _DIGITS_MAX:
        raise InvalidError(
            f"the length {length[:40].decode('latin-1')!r} is no number of bytes",
            code="request_too_large",
            fix="send a body, and its length in digits",
        )
    return int(length)


async def when_gone(receive: Receive, leave: Callable[[], None]) -> None:
    """Calls `leave` when the caller has closed the connection."""
    with contextlib.suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
    leave()


async def respond(send: Send, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
    """A response in one piece."""
    own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})


async def respond_failure(send: Send, failure: Failure, *, native: bool = False, headers: Headers = ()) -> None:
    """An error response: RFC 9457 on our own routes, OpenAI's envelope on OpenAI's."""
    body, content_type = (failure.problem(), PROBLEM) if native else (failure.envelope(), JSON)
    await respond(send, failure.status, body, content_type, (*failure.headers(), *headers))
