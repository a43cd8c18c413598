"""API keys that were checked a moment ago, so that a busy key costs one look into the books a second.

A revoked key therefore works for at most `FRESH_S` longer. Secrets are kept as digests, a bounded number
of them; a secret that was refused is not kept at all, so guessing costs the guesser a look-up each time.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from headwater.store.key_store import KeyRecord, KeyStore

FRESH_S: Final = 1.0
KEPT_MAX: Final = 10_000

AtDesk = Callable[[Callable[[], KeyRecord]], Awaitable[KeyRecord]]


class KeyCache:
    """Belongs to one event loop."""

    def __init__(self, keys: KeyStore, at_desk: AtDesk) -> None:
        self._keys, self._at_desk = keys, at_desk
        self._known: dict[bytes, tuple[KeyRecord, float]] = {}

    async def authenticate(self, secret: str) -> KeyRecord:
        """The key whose secret this is.

        Raises:
            RefusedError: ``invalid_api_key``.
        """
        digest = hashlib.sha256(secret.encode()).digest()
        now_s = time.monotonic()
        found = self._known.get(digest)
        if found is not None and now_s - found[1] < FRESH_S:
            return found[0]
        self._known.pop(digest, None)
        key = await self._at_desk(lambda: self._keys.authenticate(secret))
        if len(self._known) >= KEPT_MAX:
            self._known.clear()
        self._known[digest] = (key, now_s)
        return key
