"""API keys that were checked a moment ago, so that a busy key costs one look into the books a second.

A revoked key therefore works for at most `FRESH_S` longer. Secrets are kept as digests, a bounded number
of them; a secret that was refused is not kept at all, so guessing costs the guesser a look-up each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

from headwater.store.key_store import KeyRecord, KeyStore

FRESH_S: Final = 1.0
RENEW_S: Final = 0.5
"""From this age on a key that is used is looked up again, while it is still taken from here."""

KEPT_MAX: Final = 10_000

AtDesk = Callable[[Callable[[], KeyRecord]], Awaitable[KeyRecord]]


class KeyCache:
    """Belongs to one event loop."""

    def __init__(self, keys: KeyStore, at_desk: AtDesk) -> None:
        self._keys, self._at_desk = keys, at_desk
        self._known: dict[bytes, tuple[KeyRecord, float]] = {}  # by digest of the secret, with when it was looked up
        self._asked: dict[bytes, asyncio.Task[KeyRecord]] = {}

    def known(self, secret: bytes) -> KeyRecord | None:
        """The key whose secret this is, if it was checked a moment ago."""
        digest = hashlib.sha256(secret).digest()
        found = self._known.get(digest)
        if found is None:
            return None
        age_s = time.monotonic() - found[1]
        if age_s >= RENEW_S and digest not in self._asked:
            self._ask(digest, secret.decode("ascii", "replace"))
        return found[0] if age_s < FRESH_S else None

    def fresh(self, secret: str) -> KeyRecord | None:
        """The key whose secret this is, if it was looked up less than `FRESH_S` ago."""
        found = self._known.get(hashlib.sha256(secret.encode()).digest())
        return found[0] if found is not None and time.monotonic() - found[1] < FRESH_S else None

    async def authenticate(self, secret: str) -> KeyRecord:
        """The key whose secret this is.

        Raises:
            RefusedError: ``invalid_api_key``.
        """
        if (found := self.fresh(secret)) is not None:
            return found
        digest = hashlib.sha256(secret.encode()).digest()
        # One look-up for all who wait for the same key; a caller who leaves does not break it off for the others.
        return await asyncio.shield(self._asked.get(digest) or self._ask(digest, secret))

    def _ask(self, digest: bytes, secret: str) -> asyncio.Task[KeyRecord]:
        task = asyncio.get_running_loop().create_task(self._look_up(digest, secret))
        self._asked[digest] = task
        task.add_done_callback(lambda done: self._answered(digest, done))
        return task

    async def _look_up(self, digest: bytes, secret: str) -> KeyRecord:
        began_s = time.monotonic()
        try:
            key = await self._at_desk(lambda: self._keys.authenticate(secret))
        except BaseException:
            self._known.pop(digest, None)
            raise
        if len(self._known) >= KEPT_MAX:
            self._known.clear()
        self._known[digest] = (key, began_s)
        return key

    def _answered(self, digest: bytes, done: asyncio.Task[KeyRecord]) -> None:
        del self._asked[digest]
        if not done.cancelled():
            done.exception()  # whoever waited has it; a renewal that nobody waits for is only forgotten
