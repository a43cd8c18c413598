"""What an upstream said instead of an answer, as a caller is told it, and those of its headers that are passed on."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from headwater.gateway.errors import Failure, Headers
from headwater.gateway.wire import JSON, Send, respond
from headwater.models.upstream import Exchange

_OPERATORS_FAULT: Final = (401, 403)


async def refusal(exchange: Exchange, send: Send) -> None:
    """Pass an upstream's refusal on; see `refusal_of`."""
    status, body, headers = await refusal_of(exchange)
    await respond(send, status, body, JSON, headers)


async def refusal_of(exchange: Exchange, *, own_key: bool = False) -> tuple[int, bytes, Headers]:
    """An upstream's refusal as the caller is told it: the caller's faults as they came, the operator's without text.

    Args:
        own_key: the call was sent with the caller's own key, so a refused key is the caller's fault.
    """
    body = await exchange.whole()
    status = exchange.status
    if (status in _OPERATORS_FAULT and not own_key) or not 400 <= status < 500:
        failure = Failure(502, "upstream_failed", f"the upstream answered with status {status}")
        return 502, failure.envelope(), (*failure.headers(), *passed_headers(exchange))
    try:
        fine = isinstance(msgspec.json.decode(body, type=_Error).error, dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        fine = False
    if not fine:
        body = Failure(status, "upstream_refused", f"the upstream refused with status {status}").envelope()
    retried = b"true" if status in (408, 429) else b"false"
    return status, body, ((b"x-should-retry", retried), *passed_headers(exchange))


class _Error(msgspec.Struct):
    error: Any


def passed_headers(exchange: Exchange) -> Headers:
    """Headers of the upstream that clients act on."""
    return tuple((name, value) for name, value in exchange.headers if name in _PASSED)


_PASSED: Final = frozenset(
    [
        b"retry-after",
        *(
            b"x-ratelimit-" + kind + what
            for kind in (b"limit-", b"remaining-", b"reset-")
            for what in (b"requests", b"tokens")
        ),
    ]
)
