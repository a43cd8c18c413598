"""Requests with an idempotency key to models of other servers: one answer, one price, as often as it is asked for.

What is at work is known in memory, what was answered on the disk. A request that fails leaves nothing, and its key
is free again. Belongs to one event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from headwater.core.canonical import digest
from headwater.core.errors import ConflictError
from headwater.core.ids import CallId
from headwater.receipts import Issued
from headwater.store.kept_store import KeptAnswer, KeptStore, conflict
from headwater.store.key_store import KeyRecord

AtDesk = Callable[[Callable[[], Any]], Awaitable[Any]]


class Keeping:
    """One request at work, whose answer is to be kept."""

    __slots__ = ("_at_desk", "_digest", "_key_id", "_name", "_store", "_stream")

    def __init__(self, store: KeptStore, at_desk: AtDesk, key_id: str, name: str, digest: str, *, stream: bool) -> None:
        self._store, self._at_desk = store, at_desk
        self._key_id, self._name, self._digest, self._stream = key_id, name, digest, stream

    async def keep(self, call_id: CallId, issued: Issued, answer: bytes) -> None:
        """Keep the answer and what will charge it. When this returns it is on the disk.

        Raises:
            HeadwaterError: it could not be kept; nothing is charged.
        """
        kept = KeptAnswer(
            *(self._key_id, self._name, self._digest, call_id, self._stream),
            answer=answer,
            receipt=issued.raw,
            signature=issued.signature,
        )
        await self._at_desk(lambda: self._store.keep(kept))


class Keeper:
    """All of them."""

    def __init__(self, store: KeptStore, at_desk: AtDesk) -> None:
        self._store, self._at_desk = store, at_desk
        self._working: dict[tuple[str, str], str] = {}  # digest of the request by payer and idempotency key

    async def begin(self, key: KeyRecord, name: str, path: str, raw: bytes, *, stream: bool) -> Keeping | KeptAnswer:
        """Take an idempotency key, which `end` gives back, or find what its request was answered.

        Raises:
            ConflictError: ``call_in_progress``, or ``idempotency_conflict`` when the key came with another request.
        """
        place, asked = (key.key_id, name), digest(path.encode() + b"\x00" + raw)
        working = self._working.get(place)
        if working == asked:
            raise ConflictError(
                "a request with this idempotency key is still being answered",
                code="call_in_progress",
                fix="wait and send the same request again",
            )
        if working is not None:
            raise conflict(name, "at work")
        self._working[place] = asked
        try:
            kept = await self._at_desk(lambda: self._store.find(key.key_id, name, asked))
        except BaseException:
            del self._working[place]
            raise
        if kept is not None:
            del self._working[place]
            assert isinstance(kept, KeptAnswer)
            return kept
        return Keeping(self._store, self._at_desk, key.key_id, name, asked, stream=stream)

    def end(self, key: KeyRecord, name: str) -> None:
        """The request came to its end, one way or another."""
        del self._working[key.key_id, name]
