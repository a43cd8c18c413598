"""Passes a request on to the head process and its response back, as they come.

Both ways at once and piece by piece: a caller who is slow slows the head, a head that is slow slows the caller, and
whoever hangs up first ends it for both. A request is sent again only when a kept connection was closed before any of
the request's body was taken from the caller.
"""

from __future__ import annotations

import asyncio

from headwater.core.errors import UpstreamError
from headwater.gateway.unreadable import REFUSED
from headwater.gateway.wire import CallerGone, Receive, Scope, Send, respond_failure
from headwater.gateway.workers.framing import Body, body_of, request_head, response_headers
from headwater.gateway.workers.line import Line, Lines, Stale, lost


class Passage:
    """The way to the head. Belongs to one event loop."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.passed = 0  # requests, whatever came of them

    async def __call__(self, scope: Scope, receive: Receive, send: Send, body: bytes | None = None) -> None:
        """Pass one request on.

        Args:
            body: of a request that was read already.

        Raises:
            UpstreamError: ``head_lost`` or ``head_busy``, before a response has begun.
            InvalidError: ``request_ambiguous``.
            CallerGone: the caller hung up, or the response cannot be ended: the connection is to be closed.
        """
        if (refused := scope.get(REFUSED)) is not None:  # it could not be read, so there is nothing to pass on
            await respond_failure(send, refused)
            return
        self.passed += 1
        framing = body_of(scope["headers"]) if body is None else Body(len(body))
        for fresh in (False, True):
            line = await self._lines.take(fresh=fresh)
            try:
                await _exchange(line, scope, receive, send, framing, body)
                return
            except Stale:
                if fresh or line.taken:
                    raise lost() from None
            except BaseException:
                line.close()
                raise
            finally:
                self._lines.give_back(line)


async def _exchange(line: Line, scope: Scope, receive: Receive, send: Send, framing: Body, body: bytes | None) -> None:
    line.begin(
        request_head(scope, framing),
        bodiless=scope["method"] == "HEAD",
        body=not framing.empty,
        chunked=framing.length is None,
    )
    begun = asyncio.Event()  # the response has
    sending = asyncio.create_task(_upload(line, receive, framing, body, begun))
    response = asyncio.create_task(_download(line, send, begun))
    try:
        await asyncio.wait((sending, response), return_when=asyncio.FIRST_COMPLETED)
        if not response.done():  # the caller left, or its body broke off
            sending.result()
            raise CallerGone
        response.result()
    finally:
        for task in (sending, response):
            task.cancel()
        await asyncio.wait((sending, response))
        for task in (sending, response):
            if not task.cancelled():
                task.exception()  # told already, or of no interest any more


async def _upload(line: Line, receive: Receive, framing: Body, body: bytes | None, begun: asyncio.Event) -> None:
    """Send the body, then wait; ends when the caller has gone.

    Raises:
        CallerGone: its body is not of the length it said.
    """
    if body is not None:
        await line.push(body)
        line.finish()
    elif not framing.empty:
        # Asking for a body that is held back tells the caller to send it: that is the head's to say.
        if framing.awaited and not await line.wanted():
            await begun.wait()  # from then on asking tells nobody anything
        if not await _send(line, receive, framing.length):
            return
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(line: Line, receive: Receive, length: int | None) -> bool:
    """Send the body as it comes; false when the caller left before it was whole."""
    more, left = True, length
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        line.taken = True
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        if left is not None:
            left -= len(piece)
            if left < 0 or (left and not more):
                raise CallerGone
        await line.push(piece)
    line.finish()
    return True


async def _download(line: Line, send: Send, begun: asyncio.Event) -> None:
    await line.head()
    await send({"type": "http.response.start", "status": line.status, "headers": list(response_headers(line.headers))})
    begun.set()
    try:
        while data := await line.read():
            await send({"type": "http.response.body", "body": data, "more_body": not line.ended})
            if line.ended:
                return
    except UpstreamError:
        raise CallerGone from None  # it has begun: all that is left is to close the connection
    await send({"type": "http.response.body", "body": b""})
