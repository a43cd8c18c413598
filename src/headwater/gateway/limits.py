"""What a key may do per minute, and which routes and models it is for: looked at in memory, before every call.

Each limit per minute is one number, the instant until which a key has used up what it was given (the generic cell
rate algorithm): a call moves it ahead by its share of a minute, and is refused when that would be more than a
minute from now. So a minute's worth may come at once, then as it drips. What a call may use at most is taken before
it, what it did not use is given back after it; a call larger than a whole minute waits until nothing is used up, and
is paid off before the next. One process counts in memory (`OwnRates`), several in one table
(`shared_rates`), both by `moved`. Knows nothing of credit or budgets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

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
    # what a key reads of its own calls, and where it is told of them
    "/v1/receipts": "receipts",
    "/v1/account": "receipts",
    "/v1/webhooks": "receipts",
    # what a caller says, gives, judges or claims
    "/v1/feedback": "feedback",
    "/v1/consent": "feedback",
    "/v1/contributions": "feedback",
    "/v1/datanets": "feedback",
    "/v1/reviews": "feedback",
    "/v1/disputes": "feedback",
    "/v1/enrolments": "feedback",
    "/v1/telemetry": "feedback",
    "/v1/admin": "admin",
}
"""What a key must be for, by the first two parts of a path. Models, prices and paying in (`/v1/payments`) are for every
key: they tell nothing of anybody's calls and spend nothing."""


class RateError(RefusedError):
    """A key has used up a limit per minute; `retry_after_s` is when the same call would pass."""

    def __init__(self, message: str, *, retry_after_s: int, headers: Headers) -> None:
        super().__init__(message, code="rate_limit_exceeded", fix=f"try again in {retry_after_s} s")
        self.retry_after_s, self.headers = retry_after_s, headers


Limits = tuple[int | None, int | None, int | None]
"""What a key is given a minute: requests, tokens, nano units; None for no limit."""


class Account(Protocol):
    """The instants until which a key has used up its limits (requests, tokens, money), wherever they are kept."""

    def until(self) -> Sequence[int]:
        """They as they are now."""
        ...

    def give_back(self, tokens_ns: int, money_ns: int) -> None:
        """Move the last two back by so much; ahead, when it is below 0."""
        ...


class Taken:
    """What a call has taken of its key's minute."""

    __slots__ = ("_account", "_limits", "_tokens", "_units")

    def __init__(self, account: Account, limits: Limits, tokens: int, units: int) -> None:
        self._account, self._limits, self._tokens, self._units = account, limits, tokens, units

    def settle(self, tokens: int, units: int) -> None:
        """The call used so much: the rest is given back. 0 and 0 for one that was not charged."""
        _, tokens_limit, units_limit = self._limits
        tokens_ns = 0 if tokens_limit is None else (self._tokens - tokens) * MINUTE_NS // tokens_limit
        money_ns = 0 if units_limit is None else (self._units - units) * MINUTE_NS // units_limit
        if tokens_ns or money_ns:
            self._account.give_back(tokens_ns, money_ns)
        self._tokens, self._units = tokens, units

    def headers(self, now_ns: int | None = None) -> Headers:
        """`x-ratelimit-*` as OpenAI's clients read them; money as a decimal amount."""
        return _headers(self._account.until(), self._limits, time.monotonic_ns() if now_ns is None else now_ns)


class Rates(Protocol):
    """The rates of all keys; used by one event loop."""

    def take(self, key: KeyRecord, tokens: int, units: int) -> Taken | None:
        """Take a call's most out of a key's minute; None for a key without such limits.

        Args:
            tokens: that it may use.
            units: nano units that it may cost.

        Raises:
            RateError: too much for now; nothing was taken.
        """
        ...


class OwnRates:
    """The rates of all keys that one process serves; as `Rates`."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._accounts: dict[str, _OwnAccount] = {}  # by key id

    def take(self, key: KeyRecord, tokens: int, units: int) -> Taken | None:
        """As `Rates.take`."""
        given = key.limits
        if not given.rated:
            return None
        limits = (given.requests_per_minute, given.tokens_per_minute, given.units_per_minute)
        now_ns = self._now_ns()
        account = self._accounts.get(key.key_id)
        if account is None:
            account = self._account(key.key_id, now_ns)
        account.values = moved(account.values, limits, (1, tokens, units), now_ns, key.key_id)
        return Taken(account, limits, tokens, units)

    def _account(self, key_id: str, now_ns: int) -> _OwnAccount:
        if len(self._accounts) >= KEYS_MAX:
            self._accounts = {known: one for known, one in self._accounts.items() if max(one.values) > now_ns}
        return self._accounts.setdefault(key_id, _OwnAccount([now_ns] * 3))


class _OwnAccount:
    """An account in memory."""

    __slots__ = ("values",)

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def until(self) -> Sequence[int]:
        return self.values

    def give_back(self, tokens_ns: int, money_ns: int) -> None:
        requests, tokens, money = self.values
        self.values = [requests, tokens - tokens_ns, money - money_ns]


def moved(until: Sequence[int], limits: Limits, amounts: tuple[int, int, int], now_ns: int, key_id: str) -> list[int]:
    """Where the instants of a key stand once a call has taken its amounts.

    Raises:
        RateError: too much for now.
    """
    found = list(until)
    wait_ns, short = 0, 0
    for place, (limit, amount) in enumerate(zip(limits, amounts, strict=True)):
        if limit is None:
            continue
        share_ns = amount * MINUTE_NS // limit
        begin = max(until[place], now_ns)
        late_ns = begin + min(share_ns, MINUTE_NS) - now_ns - MINUTE_NS
        if late_ns > wait_ns:
            wait_ns, short = late_ns, place
        found[place] = begin + share_ns
    if wait_ns:
        limit = limits[short]
        assert limit is not None
        raise RateError(
            f"{key_id} may use {_amount(short, limit)} {_WHAT[short]} a minute",
            retry_after_s=-(-wait_ns // SECOND_NS),
            headers=_headers(until, limits, now_ns),
        )
    return found


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


def _headers(until: Sequence[int], limits: Limits, now_ns: int) -> Headers:
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
