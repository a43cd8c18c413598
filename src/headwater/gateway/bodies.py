"""Bodies of native routes, bounded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request

from headwater.core.errors import InvalidError


def body_up_to(bytes_max: int) -> Callable[[Request], Awaitable[bytes]]:
    """A dependency that reads a request's body on the event loop; the route itself then waits for the disk on a thread.

    Raises:
        InvalidError: ``request_too_large``.
    """

    async def body(request: Request) -> bytes:
        raw = bytearray()
        async for part in request.stream():
            raw += part
            if len(raw) > bytes_max:
                raise InvalidError(f"more than {bytes_max} bytes", code="request_too_large", fix="send less at once")
        return bytes(raw)

    return body
