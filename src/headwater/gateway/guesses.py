"""A bound on wrong API keys: an address that has tried too many in a minute is told 429, without a look into the books.

Keys that are right are unaffected, from that address too, as long as they are in use: who was let in a moment ago is
known without a look. A key that nobody used lately waits with the guesser behind the same address, until the minute has
passed; a proxy in front should therefore pass its callers' addresses on (uvicorn's ``proxy_headers``).
Counts are in memory, per process, and bounded: when too many addresses guess at once the oldest counts are forgotten.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from headwater.core.errors import RefusedError
from headwater.gateway.wire import Scope

MINUTE_S: Final = 60.0
PEERS_MAX: Final = 100_000

_WRONG: Final = ("invalid_api_key", "api_key_expired", "voucher_not_signed")


class GuessingError(RefusedError):
    """Too many wrong keys; `retry_after_s` says when the next may be tried."""

    def __init__(self, peer: str, retry_after_s: int) -> None:
        super().__init__(
            f"too many wrong API keys from {peer[:60]}", code="rate_limit_exceeded", fix="wait, then send a right one"
        )
        self.retry_after_s = retry_after_s


class Guesses:
    """Counts wrong keys by the address of the connection's peer. Safe from several threads.

    Args:
        per_minute: wrong keys an address may try in a row, and so many a minute afterwards; 0 for no bound.
    """

    def __init__(self, per_minute: int, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._now_s = per_minute, now_s
        self._until: OrderedDict[str, float] = OrderedDict()  # when an address has used up nothing any more
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, scope: Scope) -> Iterator[None]:
        """Around a look-up: refuses it when the address has guessed too often, counts it when the key is wrong.

        Raises:
            GuessingError: ``rate_limit_exceeded``.
        """
        peer = _peer(scope)
        if not self._per_minute or peer is None:
            yield
            return
        self._check(peer)
        try:
            yield
        except RefusedError as error:
            if error.code in _WRONG:
                self._count(peer)
            raise

    def _check(self, peer: str) -> None:
        with self._lock:
            ahead = self._until.get(peer, 0.0) - self._now_s()
        over = ahead - MINUTE_S + MINUTE_S / self._per_minute
        if over > 1e-9:
            raise GuessingError(peer, int(over) + 1)

    def _count(self, peer: str) -> None:
        with self._lock:
            now_s = self._now_s()
            self._until[peer] = max(self._until.get(peer, now_s), now_s) + MINUTE_S / self._per_minute
            self._until.move_to_end(peer)
            while len(self._until) > PEERS_MAX:
                self._until.popitem(last=False)


def _peer(scope: Scope) -> str | None:
    """The other end's address; a network of 2^64 addresses, as one household has, counts as one."""
    client = scope.get("client")
    if not client or not client[0]:
        return None
    host = str(client[0])
    if ":" not in host:
        return host
    import ipaddress

    try:
        whole = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(whole) >> 64 << 64))
