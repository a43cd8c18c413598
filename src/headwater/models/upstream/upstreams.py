"""Several OpenAI-compatible upstreams, by model name, in order of preference.

A call goes to the first upstream of its model whose breaker allows it, and to the next one, or to all of
them again, only as long as nothing was answered: unreachable, no head in time, or a status that says "not
now". After the first byte it is never sent again. One that its health check finds unwell is asked last. The operator's
keys are put in here, or a caller's own, and leave this module only towards their own upstream. Knows
nothing of prices or callers.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import UpstreamError
from headwater.models.upstream.breaker import Breaker
from headwater.models.upstream.connection import Headers
from headwater.models.upstream.health import watch_health
from headwater.models.upstream.pool import Exchange, Limits, Origin, Pool, write_body, write_head

_NOT_NOW: Final = frozenset((500, 502, 503, 504, 529))
_BUSY: Final = 429
PAUSED: Final = "upstream_paused"
_GARBAGE: Final = "upstream_garbage"
_NOT_AGAIN: Final = (PAUSED, _GARBAGE, "upstream_timeout")  # who was silent for its whole time may still be at it
_NO_STREAM: Final = (b"application/json", b"text/html")
"""What an answer is called that is whole, or a page, and no stream of events."""

RETRY_S: Final = 0.2
"""How long to wait, about, before all targets of a model are gone through again."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One server and how it is reached."""

    name: str
    origin: Origin
    limits: Limits
    secret: str | None = None  # its API key; never logged, never shown
    health: str | None = None  # path below the base URL that is asked now and then; None: it is not
    health_every_s: float = 10.0

    def __repr__(self) -> str:
        return f"Upstream({self.name!r}, {self.origin.authority!r})"


@dataclass(frozen=True, slots=True)
class Target:
    """A model as one upstream calls it."""

    upstream: str
    model: str


@dataclass(frozen=True, slots=True)
class OwnSecret:
    """A caller's own key for one upstream; never logged, never kept."""

    upstream: str
    secret: str

    def __repr__(self) -> str:
        return f"OwnSecret({self.upstream!r})"


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """How one upstream is doing; for /readyz and /metrics."""

    name: str
    open: int  # connections
    failures: int  # in a row
    paused: bool
    health: str  # "ok", "not checked", or the code of what is wrong


class _Line:
    """An upstream at work: its pool, its breaker and the headers every request to it has."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.breaker = Breaker()
        self.pool: Pool | None = None
        self.watched: asyncio.Task[None] | None = None
        self.ill: str | None = None  # what its health check found last
        self._heads: dict[str, bytes] = {}  # of requests, by route; there are few
        secret = upstream.secret
        self.headers: Headers = (
            (b"accept", b"application/json, text/event-stream"),
            (b"user-agent", b"headwater"),
            *(((b"authorization", b"Bearer " + secret.encode("ascii")),) if secret else ()),
        )

    def opened(self) -> Pool:
        """The pool, on this event loop."""
        if self.pool is None:
            self.pool = Pool(self.upstream.origin, self.upstream.limits)
        return self.pool

    def head(self, route: str) -> bytes:
        """The head of every request to a route."""
        known = self._heads.get(route)
        if known is None:
            known = self._heads[route] = write_head(self.upstream.origin, route, self.headers)
        return known

    def head_for(self, own: OwnSecret, route: str) -> bytes:
        """The same with a caller's own key, which is not kept."""
        secret = b"Bearer " + own.secret.encode("ascii")
        others = (pair for pair in self.headers if pair[0] != b"authorization")
        return write_head(self.upstream.origin, route, (*others, (b"authorization", secret)))

    def health(self) -> str:
        """As `UpstreamState.health`."""
        return self.ill or ("not checked" if self.watched is None else "ok")

    def failed(self, before: set[_Line], now_s: float) -> None:
        """A call failed here; tell the breaker, unless the same call did so before."""
        if self not in before or self.breaker.trying:
            self.breaker.failed(now_s)
        before.add(self)

    def found(self, ill: str | None) -> None:
        """A health check came to its end."""
        self.ill = ill
        if ill is None:
            self.breaker.rested()


class Upstreams:
    """Where each model is asked. Pools are opened on the event loop that asks first.

    Args:
        targets: by model, in order of preference.
        retries: how often all targets of a model are gone through again, when none of them would answer.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        targets: Mapping[str, Sequence[Target]],
        retries: Mapping[str, int] | None = None,
    ) -> None:
        self._retries = dict(retries or {})
        self._lines = {upstream.name: _Line(upstream) for upstream in upstreams}
        self._targets = {model: tuple(wanted) for model, wanted in targets.items()}

    def targets(self, model: str) -> tuple[Target, ...]:
        """Where `model` is asked, in order of preference."""
        return self._targets[model]

    def state(self) -> tuple[UpstreamState, ...]:
        """How they are doing."""
        now_s = time.monotonic()  # the event loop's clock
        return tuple(
            UpstreamState(
                *(name, line.pool.open if line.pool else 0, line.breaker.failures, line.breaker.paused(now_s)),
                health=line.health(),
            )
            for name, line in self._lines.items()
        )

    def watch(self) -> None:
        """Begin the health checks of those upstreams that have one, on this event loop; `aclose` ends them."""
        for line in self._lines.values():
            one = line.upstream
            if one.health is not None and line.watched is None:
                checking = watch_health(line.opened(), one.health, line.headers, one.health_every_s, line.found)
                line.watched = asyncio.get_running_loop().create_task(checking)

    async def ask(
        self, model: str, route: str, bodies: Mapping[str, bytes], own: OwnSecret | None = None, *, stream: bool = False
    ) -> tuple[Exchange, Target]:
        """Send a request to the first upstream that can take it.

        Args:
            route: below the base URL, such as ``/chat/completions``.
            bodies: the request's body by the name the model has upstream.
            own: the caller's own key, which is sent instead of the operator's, and to its own upstream alone.
            stream: a stream of events is asked for; who answers 200 with something else has not answered.

        Returns:
            The exchange, whose status may still be an error of the caller's making, and who answered.

        Raises:
            UpstreamError: nobody could be reached; ``upstream_paused`` when all are being left alone,
                ``upstream_garbage`` when the last one sent no stream.
        """
        targets = self._targets[model]
        if own is not None:
            targets = tuple(target for target in targets if target.upstream == own.upstream)
        if len(targets) > 1 and any(self._lines[target.upstream].ill for target in targets):
            targets = tuple(sorted(targets, key=lambda target: self._lines[target.upstream].ill is not None))
        left = self._retries.get(model, 0)
        failed: set[_Line] = set()
        while True:
            try:
                found = await self._ask(targets, route, bodies, own, failed, stream=stream, last=not left)
                if found is not None:
                    return found
            except UpstreamError as error:
                if not left or error.code in _NOT_AGAIN:
                    raise
            left -= 1
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))  # so that they do not all come back at once

    async def _ask(
        self,
        targets: Sequence[Target],
        route: str,
        bodies: Mapping[str, bytes],
        own: OwnSecret | None,
        failed: set[_Line],
        *,
        stream: bool,
        last: bool,
    ) -> tuple[Exchange, Target] | None:
        """Go through the targets once; None when all said "not now" and it is not the `last` time.

        Args:
            failed: by this call so far; its breaker hears of each of them once.
        """
        unreached: UpstreamError | None = None
        refused = False
        for place, target in enumerate(targets):
            line = self._lines[target.upstream]
            loop = asyncio.get_running_loop()
            if not line.breaker.allows(loop.time()):
                continue
            pool = line.pool or line.opened()
            head = line.head(route) if own is None else line.head_for(own, route)
            try:
                exchange = await pool.request(write_body(head, bodies[target.model]))
            except UpstreamError as error:
                line.failed(failed, loop.time())
                unreached = error
                continue
            except BaseException:
                line.breaker.abandoned()
                raise
            not_now = exchange.status in _NOT_NOW
            if stream and exchange.status == 200 and (exchange.header(b"content-type") or b"").startswith(_NO_STREAM):
                unreached = UpstreamError(
                    "the upstream answered with something else than a stream", code=_GARBAGE, fix="tell the operator"
                )
                line.failed(failed, loop.time())
                async with exchange:
                    continue
            if not_now:
                line.failed(failed, loop.time())
            else:
                line.breaker.succeeded()
            more = place + 1 < len(targets)
            if (not_now and (more or not last)) or (exchange.status == _BUSY and more):
                refused = True
                async with exchange:
                    continue
            return exchange, target
        if refused and not last:
            return None
        raise unreached or UpstreamError(
            "every upstream of this model is being left alone after failures",
            code=PAUSED,
            fix="try again in a moment",
        )

    def unwatch(self) -> None:
        """End the health checks."""
        for line in self._lines.values():
            if line.watched is not None:
                line.watched.cancel()
                line.watched = None

    async def aclose(self) -> None:
        """Close every connection."""
        self.unwatch()
        for line in self._lines.values():
            if line.pool is not None:
                await line.pool.aclose()
