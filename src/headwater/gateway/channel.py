"""Carries the pieces of one answer from the thread that generates it to the event loop, with back-pressure.

The thread waits when the reader is slow, and is told to stop when the reader has gone. A reader that
takes nothing for too long counts as gone: it would keep a place at the model from others. Knows
nothing of what the pieces are.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReaderGone(Exception):
    """The reader closed the channel; whoever still waits on it stops."""


class Channel(Generic[Item]):
    """A bounded queue with one writing thread and one reading task.

    Args:
        loop: where the reader runs.
        capacity: items that may wait.
        stall_s: how long the writer waits for room before it takes the reader for gone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, capacity: int, stall_s: float) -> None:
        self._loop = loop
        self._stall_s = stall_s
        self._room = threading.Semaphore(capacity)
        self._items: deque[Item] = deque()
        self._filled = asyncio.Event()
        self._ended = False
        self._error: BaseException | None = None
        self._closed = False
        self._detached = False

    # The writer's side, on any thread

    @property
    def closed(self) -> bool:
        """Whether the reader has gone and nothing more is wanted."""
        return self._closed

    @property
    def detached(self) -> bool:
        """Whether the reader has gone and the rest is made for a later one."""
        return self._detached

    def put(self, item: Item) -> bool:
        """Hand over an item, waiting for room; false when the reader has gone."""
        if self._detached:
            return True
        if not self._room.acquire(timeout=self._stall_s) and not self._detached:
            self._closed = True
            self._notify()
        if self._closed:
            return False
        if not self._detached:
            self._items.append(item)
            self._notify()
        return True

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes; `error` says why, if it should have."""
        self._error, self._ended = error, True
        self._notify()

    def _notify(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._filled.set)

    # The reader's side, on the loop

    async def take(self) -> list[Item]:
        """What is there, waiting for at least one item; empty at the end.

        Raises:
            ReaderGone: the channel was closed.
            BaseException: what the writer ended with, once its items are taken.
        """
        while True:
            if self._closed:
                raise ReaderGone
            self._filled.clear()
            taken = []
            while self._items:
                taken.append(self._items.popleft())
            if taken:
                self._room.release(len(taken))
                return taken
            if self._ended and not self._items:
                if self._error is not None:
                    raise self._error
                return []
            await self._filled.wait()

    def close(self) -> None:
        """The reader goes; the writer's next `put` says so."""
        self._closed = True
        self._room.release()
        self._filled.set()

    def detach(self) -> None:
        """The reader goes, but the writer shall finish: what it puts is dropped."""
        self._detached = True
        self._room.release()
