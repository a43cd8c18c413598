"""The head's application as workers ask it: the same one, told who the caller is by the field that workers write.

It is served on a Unix socket that only this user can reach; a request there without that field is refused, so that
nobody is taken for somebody else by an oversight.
"""

from __future__ import annotations

from typing import Final

from headwater.core.errors import HeadwaterError, InvalidError
from headwater.gateway.errors import failure_of
from headwater.gateway.lane import Lane
from headwater.gateway.serve import App
from headwater.gateway.unreadable import REFUSED
from headwater.gateway.wire import Receive, Scope, Send, respond_failure
from headwater.gateway.workers.framing import CALLER, Origin


class Behind:
    """Serves `app` behind workers."""

    lane: Final[Lane | None] = None  # workers answer what a lane would

    def __init__(self, app: App) -> None:
        self._app = app

    @property
    def start_error(self) -> Exception | None:
        """Why its lifespan did not begin."""
        return self._app.start_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that a worker passed on, or the lifespan."""
        if scope["type"] != "http" or REFUSED in scope:
            await self._app(scope, receive, send)
            return
        said = [value for name, value in scope["headers"] if name == CALLER]
        try:
            if len(said) != 1:
                raise InvalidError(f"{len(said)} callers", code="caller_invalid", fix="ask through a worker")
            origin = Origin.from_field(said[0])
        except HeadwaterError as error:
            await respond_failure(send, failure_of(error), native=True)
            return
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != CALLER]
        scope["client"], scope["server"], scope["scheme"] = origin.client, origin.server, origin.scheme
        await self._app(scope, receive, send)
