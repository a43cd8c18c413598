"""A circuit breaker: an upstream that keeps failing is left alone for a while, then tried once. Pure: time is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAILURES: Final = 5
"""Failures in a row after which an upstream is left alone."""

PAUSE_S: Final = 2.0
PAUSE_S_MAX: Final = 60.0


@dataclass(slots=True)
class Breaker:
    """The state of one upstream. Mutable; belongs to one event loop."""

    failures: int = 0  # in a row
    closed_until_s: float = 0.0  # monotonic; nothing is sent before
    trying: bool = False  # one request is out to see whether it is back

    def allows(self, now_s: float) -> bool:
        """Whether a request may be sent now; the first one after a pause is the only one until it ends."""
        if self.failures < FAILURES:
            return True
        if now_s < self.closed_until_s or self.trying:
            return False
        self.trying = True
        return True

    def succeeded(self) -> None:
        """It answered."""
        self.failures, self.trying = 0, False

    def failed(self, now_s: float) -> None:
        """It could not be reached, broke, or said that it cannot answer anybody now."""
        self.failures += 1
        self.trying = False
        if self.failures >= FAILURES:
            pause_s = min(PAUSE_S * 2.0 ** min(self.failures - FAILURES, 16), PAUSE_S_MAX)
            self.closed_until_s = now_s + pause_s

    def abandoned(self) -> None:
        """The request was given up by its caller: it says nothing about the upstream."""
        self.trying = False

    def rested(self) -> None:
        """Something else than a caller's request found it well: the next request may try it."""
        self.closed_until_s = 0.0

    def paused(self, now_s: float) -> bool:
        """Whether it is being left alone at this moment; after a pause the next request is what finds out."""
        return self.failures >= FAILURES and now_s < self.closed_until_s
