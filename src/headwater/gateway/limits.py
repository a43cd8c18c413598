"""What a key may do per minute, and which routes and models it is for: looked at in memory, before every call.

Each limit per minute is one number, the instant until which a key has used up what it was given (the generic cell
rate algorithm): a call moves it ahead by its share of a minute, and is refused when that would be more than a
minute from now. So a minute's worth may come at once, then as it drips. What a call may use at most is taken before
it, what it did not use is given back after it; a call larger than a whole minute waits until nothing is used up, and
is paid off before the next. One process, one count. Knows nothing of credit or budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from headwater.core.errors import RefusedError
from headwater.core.instants import SECOND_NS
from headwater.core.money import format_units
from headwater.gateway.errors import Headers
from headwater.store.key_store import KeyRecord

MINUTE_NS: Final = 60 * SECOND_NS
KEYS_MAX: Final = 10_000
"""Keys whose rates are remembered before those that have nothing used up are dropped."""

BYTES_PER_TOKEN: Final = 4
"""By which a request's tokens are guessed where nobody has counted them; never by which more is held."""

_WHAT: Final = ("requests", "tokens", "money")
_ROUTES: Final = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "chat",
    "/v1/responses": "chat",
    "/v1/embeddings": "embeddings",
    "/v1/receipts": "receipts",
    "/v1/account": "receipts",
    "/v1/feedback": "feedback",
    "/v1/consent": "feedback",
    "/v1/contributions": "feedback",
    "/v1/admin": "admin",
}


class RateError(RefusedError):
    """A key has used up a limit per minute; `retry_after_s` is when the same call would pass."""

    def __init__(self, message: str, *, retry_after_s: int, headers: Headers) -> None:
        super().__init__(message, code="rate_limit_exceeded", fix=f"try again in {retry_after_s} s")
        self.retry_after_s, self.headers = retry_after_s, headers


class Taken:
    """What a call has taken of its key's minute."""

    __slots__ = ("_limits", "_tokens", "_units", "_until")

    def __init__(self, until: list[int], limits: tuple[int | None, ...], tokens: int, units: int) -> None:
        self._until, self._limits, self._tokens, self._units = until, limits, tokens, units

    def settle(self, tokens: int, units: int) -> None:
        """The call used so much: the rest is given back. 0 and 0 for one that was not charged."""
        for place, over in ((1, self._tokens - tokens), (2, self._units - units)):
            limit = self._limits[place]
            if limit is not None:
                self._until[place] -= over * MINUTE_NS // limit
        self._tokens, self._units = tokens, units

    def headers(self, now_ns: int | None = None) -> Headers:
        """`x-ratelimit-*` as OpenAI's clients read them; money as a decimal amount."""
        return _headers(self._until, self._limits, time.monotonic_ns() if now_ns is None else now_ns)


class Rates:
    """The rates of all keys; belongs to one event loop."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._until: dict[str, list[int]] = {}  # by key id: requests, tokens, money

    def take(self, key: KeyRecord, tokens: int, units: int) -> Taken | None:
        """Take a call's most out of a key's minute; None for a key without such limits.

        Args:
            tokens: that it may use.
            units: nano units that it may cost.

        Raises:
            RateError: too much for now; nothing was taken.
        """
        given = key.limits
        if not given.rated:
            return None
        limits = (given.requests_per_minute, given.tokens_per_minute, given.units_per_minute)
        now_ns = self._now_ns()
        until = self._until.get(key.key_id)
        if until is None:
            until = self._entry(key.key_id, now_ns)
        moved = list(until)
        wait_ns, short = 0, 0
        for place, (limit, amount) in enumerate(zip(limits, (1, tokens, units), strict=True)):
            if limit is None:
                continue
            share_ns = amount * MINUTE_NS // limit
            begin = max(until[place], now_ns)
            late_ns = begin + min(share_ns, MINUTE_NS) - now_ns - MINUTE_NS
            if late_ns > wait_ns:
                wait_ns, short = late_ns, place
            moved[place] = begin + share_ns
        if wait_ns:
            limit = limits[short]
            assert limit is not None
            raise RateError(
                f"{key.key_id} may use {_amount(short, limit)} {_WHAT[short]} a minute",
                retry_after_s=-(-wait_ns // SECOND_NS),
                headers=_headers(until, limits, now_ns),
            )
        until[:] = moved
        return Taken(until, limits, tokens, units)

    def _entry(self, key_id: str, now_ns: int) -> list[int]:
        if len(self._until) >= KEYS_MAX:
            self._until = {known: until for known, until in self._until.items() if max(until) > now_ns}
        return self._until.setdefault(key_id, [now_ns] * 3)


def check_route(key: KeyRecord, path: str) -> None:
    """Refuse a key that is not for a route; one that is on no list is for every key.

    Raises:
        RefusedError: ``route_not_permitted``.
    """
    limits = key.limits
    route = _ROUTES.get(path) or _ROUTES.get("/".join(path.split("/", 3)[:3]))
    if route is not None and not limits.permits_route(route):
        raise RefusedError(
            f"{key.key_id} is not for {route}", code="route_not_permitted", fix="use a key that may ask this route"
        )


def check_model(key: KeyRecord, model: str) -> None:
    """Refuse a key that is not for a model.

    Raises:
        RefusedError: ``model_not_permitted``.
    """
    if not key.limits.permits_model(model):
        raise RefusedError(
            f"{key.key_id} is not for the model {model[:80]!r}",
            code="model_not_permitted",
            fix=f"ask for {', '.join(key.limits.models)}"[:500],
        )


def _headers(until: list[int], limits: tuple[int | None, ...], now_ns: int) -> Headers:
    found: list[tuple[bytes, bytes]] = []
    for place, (what, limit) in enumerate(zip(_WHAT, limits, strict=True)):
        if limit is None:
            continue
        used_ns = max(0, until[place] - now_ns)
        left = max(0, MINUTE_NS - used_ns) * limit // MINUTE_NS
        for name, text in (
            ("limit", _amount(place, limit)),
            ("remaining", _amount(place, left)),
            ("reset", f"{used_ns // 1_000_000}ms"),
        ):
            found.append((f"x-ratelimit-{name}-{what}".encode(), text.encode()))
    return tuple(found)


def _amount(place: int, amount: int) -> str:
    return format_units(amount) if _WHAT[place] == "money" else str(amount)
