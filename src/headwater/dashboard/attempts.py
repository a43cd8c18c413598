"""How often somebody may try to sign in: a few times at once, then as they drip.

One number per address, the instant until which it has used up its tries; of one process, and forgotten with it. The
hash of a password is slow besides.
"""

from __future__ import annotations

import threading
from typing import Final

from headwater.core.errors import RefusedError
from headwater.core.instants import SECOND_NS

TRIES: Final = 10
WITHIN_NS: Final = 10 * 60 * SECOND_NS
KNOWN_MAX: Final = 10_000


class AttemptsError(RefusedError):
    """Too many tries; `retry_after_s` is when the next may be made."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(
            f"too many tries to sign in; the next in {retry_after_s} s",
            code="rate_limit_exceeded",
            fix="wait, then try again",
        )
        self.retry_after_s = retry_after_s


class Attempts:
    """Counts tries, by who makes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[str, int] = {}

    def take(self, who: str, now_ns: int) -> None:
        """Count one try.

        Raises:
            AttemptsError: too many.
        """
        share = WITHIN_NS // TRIES
        with self._lock:
            if len(self._until) >= KNOWN_MAX:
                self._until = {known: until for known, until in self._until.items() if until > now_ns}
            begin = max(self._until.get(who, 0), now_ns)
            over = begin + share - now_ns - WITHIN_NS
            if over > 0:
                raise AttemptsError(-(-over // SECOND_NS))
            self._until[who] = begin + share

    def forgive(self, who: str) -> None:
        """Somebody signed in: their tries are forgotten."""
        with self._lock:
            self._until.pop(who, None)
