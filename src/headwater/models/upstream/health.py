"""Asks an upstream now and then whether it is well, so that a caller's request is not what finds out that it is not.

What is asked is a path below the upstream's base URL, such as ``/models``; any status from 200 to 299 is well. Knows
nothing of breakers: whoever asks decides what a bad answer means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from headwater.core.errors import UpstreamError
from headwater.models.upstream.connection import Headers
from headwater.models.upstream.pool import Pool


async def ask_health(pool: Pool, path: str, headers: Headers, within_s: float) -> str | None:
    """What is wrong with an upstream, a stable code; None when it is well."""
    origin = pool.origin
    extra = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
    request = b"GET %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (
        *((origin.path + path).encode("ascii"), origin.authority.encode("ascii")),
        extra,
    )
    try:
        async with asyncio.timeout(within_s):
            async with await pool.request(request) as exchange:
                await exchange.whole()
                return None if 200 <= exchange.status < 300 else f"status_{exchange.status}"
    except TimeoutError:
        return "upstream_timeout"
    except UpstreamError as error:
        return error.code


async def watch_health(
    pool: Pool, path: str, headers: Headers, every_s: float, told: Callable[[str | None], None]
) -> None:
    """Ask again and again, until cancelled.

    Args:
        every_s: between two questions, and the longest one may take.
        told: what came of each.
    """
    while True:
        told(await ask_health(pool, path, headers, every_s))
        await asyncio.sleep(every_s)
