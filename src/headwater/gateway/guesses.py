"""A bound on wrong API keys: an address that has tried too many in a minute is told 429 instead of 401.

Keys that are right are unaffected, from that address too: a wrong one is known as wrong by one indexed look-up, and a
secret of 256 bits is not found by asking, so it is not the look-up that is bounded but what a guesser is told. From
the bound on a wrong key, one that was revoked and one that has expired are all told the same.
Counts are by the address of the connection's peer, or by whom trusted proxies name, in memory, per process, and
bounded: when too many addresses guess at once the oldest counts are forgotten.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from headwater.core.errors import RefusedError
from headwater.gateway.proxies import Proxies
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
    """Counts wrong keys by the caller's address. Safe from several threads.

    Args:
        per_minute: wrong keys an address may try in a row, and so many a minute afterwards; 0 for no bound.
        proxies: the operator's own, which say who speaks to them.
    """

    def __init__(
        self, per_minute: int, *, proxies: Proxies | None = None, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_minute, self._now_s = per_minute, now_s
        self._proxies = proxies or Proxies()
        self._until: OrderedDict[str, float] = OrderedDict()  # when an address has used up nothing any more
        self._lock = threading.Lock()

    @contextmanager
    def counted(self, scope: Scope) -> Iterator[None]:
        """Around a look-up: counts it when the key is wrong, and tells an address that guesses no more than that.

        Raises:
            GuessingError: ``rate_limit_exceeded``.
        """
        try:
            yield
        except RefusedError as error:
            peer = self._proxies.caller(scope)
            if error.code not in _WRONG or not self._per_minute or peer is None:
                raise
            self._check(peer)
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
