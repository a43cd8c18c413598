"""Many threads, one sync: whoever comes first writes for all who wait.

There is no thread of its own: the first caller leads, takes everything queued, has it written, wakes
the others and hands the lead to whoever queued in the meantime. Alone, a caller pays for nothing but
its own write. Knows nothing of what is written or where.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence, Sized
from typing import Generic, TypeVar

Items = TypeVar("Items", bound=Sized)
Outcome = TypeVar("Outcome")


class Unit(Generic[Items, Outcome]):
    """What one caller wants written, all or nothing, and how it went: an outcome or an error."""

    __slots__ = ("error", "items", "leads", "outcome", "wake")

    def __init__(self, items: Items) -> None:
        self.items = items
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.leads = False
        self.wake = threading.Lock()
        self.wake.acquire()


class GroupCommit(Generic[Items, Outcome]):
    """Queues units and has them written in groups, one group at a time.

    Args:
        write: writes a group and leaves an outcome or an error in every unit; it is never called twice at once.
        items_max: how many items a group may hold; a single unit may hold more.
        interrupted: the error for those who waited for a write that was broken off by something else than an error.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Unit[Items, Outcome]]], None],
        *,
        items_max: int,
        interrupted: Callable[[], Exception],
    ) -> None:
        self._write = write
        self._items_max = items_max
        self._interrupted = interrupted
        self._gate = threading.Lock()  # guards the queue and who leads
        self._queue: list[Unit[Items, Outcome]] = []
        self._led = False

    def submit(self, items: Items) -> Outcome:
        """Have `items` written; returns, or raises, when somebody, perhaps this thread, has done so."""
        unit: Unit[Items, Outcome] = Unit(items)
        try:
            with self._gate:
                self._queue.append(unit)
                unit.leads = not self._led
                self._led = True
            if not unit.leads:
                unit.wake.acquire()
        except BaseException:  # this thread was interrupted: it must not keep the others waiting
            self._leave(unit)
            raise
        if unit.leads:
            self._lead(unit)
        if unit.error is not None:
            raise unit.error
        if unit.outcome is None:
            raise self._interrupted()
        return unit.outcome

    def _lead(self, own: Unit[Items, Outcome]) -> None:
        group: list[Unit[Items, Outcome]] = []
        try:
            with self._gate:
                group = self._take()
            self._write(group)
        finally:
            self._hand_over(own)
            for unit in group:
                if unit is not own:
                    unit.wake.release()

    def _take(self) -> list[Unit[Items, Outcome]]:
        """The units at the front of the queue that make one group, at least one."""
        count = 0
        for at, unit in enumerate(self._queue):
            count += len(unit.items)
            if at and count > self._items_max:
                group, self._queue = self._queue[:at], self._queue[at:]
                return group
        group, self._queue = self._queue, []
        return group

    def _leave(self, unit: Unit[Items, Outcome]) -> None:
        with self._gate:
            if not unit.leads and unit in self._queue:
                self._queue.remove(unit)
        if unit.leads:
            self._hand_over(unit)

    def _hand_over(self, own: Unit[Items, Outcome]) -> None:
        with self._gate:
            if own in self._queue:  # broken off before it was taken
                self._queue.remove(own)
            if self._queue:
                self._queue[0].leads = True
                self._queue[0].wake.release()
            else:
                self._led = False
