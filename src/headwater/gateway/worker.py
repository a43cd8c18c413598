"""The attribution worker: one thread that turns answered calls into receipts, behind the answers.

It never delays an answer: it runs at low priority and, while answers are being generated, waits a
little before each call. It never loses one: the journal holds what is owed, the queue here is only an
order of work, and when it is full the rest is fetched from the journal later. A call that cannot be
attributed now is tried again with growing pauses; one that never can be stays listed as failed, for
everybody to see, and is tried again after a restart.

Knows nothing of HTTP, stores or models.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import HeadwaterError, UpstreamError
from headwater.core.ids import CallId
from headwater.core.limits import ATTRIBUTION_QUEUE_MAX

BACKOFF_S: Final = 0.5
BACKOFF_S_MAX: Final = 60.0
PATIENCE_S: Final = 1.0
"""The longest wait for answers to finish before one attribution, and never longer than the last one took:
under constant load attribution slows down to half its pace and does not starve."""

_NICENESS: Final = 10

_log = logging.getLogger("headwater.attribution")


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What the worker is at; for /readyz and /metrics."""

    alive: bool
    waiting: int  # calls in the queue, those paused before another try included
    retrying: int  # of these, calls that failed at least once
    failed: tuple[tuple[CallId, str], ...]  # given up until a restart, each with the error's code
    overflowed: bool  # more is owed than the queue holds; the journal has the rest
    done: int  # calls attributed since the start
    busy_s: float  # seconds spent on them


class AttributionWorker:
    """Attributes calls one after the other on a thread of its own.

    Args:
        attribute: makes the receipt of a call; doing it again changes nothing.
        owed: the answered calls that lack a receipt, from the journal.
        busy: whether an answer is being generated now.
        queue_max: calls kept in order here.
        backoff_s: pause after the first failure; it doubles up to `BACKOFF_S_MAX`.
    """

    def __init__(
        self,
        attribute: Callable[[CallId], object],
        *,
        owed: Callable[[], Iterable[CallId]],
        busy: Callable[[], bool] = lambda: False,
        queue_max: int = ATTRIBUTION_QUEUE_MAX,
        backoff_s: float = BACKOFF_S,
    ) -> None:
        self._attribute, self._owed, self._busy = attribute, owed, busy
        self._queue_max, self._backoff_s = queue_max, backoff_s
        self._wake = threading.Condition()
        self._queue: deque[CallId] = deque()
        self._paused: list[tuple[float, CallId]] = []  # heap by the monotonic time of the next try
        self._tries: dict[CallId, int] = {}  # failures so far of the calls that failed
        self._known: set[CallId] = set()  # queued, paused or at work
        self._failed: dict[CallId, str] = {}
        self._overflowed = False
        self._stopping = False
        self._at_work = False
        self._done = 0
        self._busy_s = 0.0
        self._last_s = PATIENCE_S
        self._thread: threading.Thread | None = None

    def start(self, calls: Iterable[CallId] = ()) -> None:
        """Begin, with the calls that were left over."""
        for call in calls:
            self.submit(call)
        self._thread = threading.Thread(target=self._run, name="attribution", daemon=True)
        self._thread.start()

    def submit(self, call: CallId) -> None:
        """Queue a call; never waits. A call that is queued already is not queued twice."""
        with self._wake:
            if call in self._known:
                return
            if len(self._known) >= self._queue_max:
                self._overflowed = True
                return
            self._known.add(call)
            self._queue.append(call)
            self._wake.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is left that could be done now, then stop; whether that was reached in time.

        What is left is in the journal and is taken up after the next start.
        """
        with self._wake:
            finished = self._wake.wait_for(self._idle, timeout_s) if self._running() else self._idle()
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(timeout_s)
        return finished

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every queued call is attributed, paused or given up; whether that was reached in time."""
        with self._wake:
            return self._wake.wait_for(self._idle, timeout_s)

    def state(self) -> WorkerState:
        """What it is at."""
        with self._wake:
            return WorkerState(
                alive=self._running(),
                waiting=len(self._known),
                retrying=len(self._tries),
                failed=tuple(self._failed.items()),
                overflowed=self._overflowed,
                done=self._done,
                busy_s=self._busy_s,
            )

    def _running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _idle(self) -> bool:
        return not self._queue and not self._at_work and not self._overflowed

    def _run(self) -> None:
        _lower_priority()
        while (call := self._next()) is not None:
            self._step_aside()
            started = time.monotonic()
            try:
                self._attribute(call)
            except Exception as error:
                self._failure(call, error)
            else:
                self._success(call, time.monotonic() - started)

    def _next(self) -> CallId | None:
        """The next call to work on, or None when it is time to stop."""
        while True:
            with self._wake:
                if self._stopping:
                    return None
                now = time.monotonic()
                while self._paused and self._paused[0][0] <= now:
                    self._queue.append(heapq.heappop(self._paused)[1])
                if self._queue:
                    self._at_work = True
                    return self._queue.popleft()
                if not self._overflowed:
                    self._wake.wait(self._paused[0][0] - now if self._paused else None)
                    continue
            self._refill()

    def _refill(self) -> None:
        """Fetch what did not fit the queue from the journal."""
        try:
            owed = tuple(self._owed())
        except Exception as error:
            _log.error("the journal could not be read: %s", _code(error))
            with self._wake:
                self._wake.wait(self._backoff_s)
            return
        with self._wake:
            self._overflowed = False
        for call in owed:
            with self._wake:
                given_up = call in self._failed
            if not given_up:
                self.submit(call)
        with self._wake:
            self._wake.notify_all()

    def _step_aside(self) -> None:
        until = time.monotonic() + min(PATIENCE_S, self._last_s)
        while self._busy() and not self._stopping and time.monotonic() < until:
            time.sleep(0.02)

    def _success(self, call: CallId, took_s: float) -> None:
        with self._wake:
            self._known.discard(call)
            self._tries.pop(call, None)
            self._at_work = False
            self._done += 1
            self._busy_s += took_s
            self._last_s = took_s
            self._wake.notify_all()

    def _failure(self, call: CallId, error: Exception) -> None:
        _log.error("%s could not be attributed: %s", call, _code(error))
        with self._wake:
            self._at_work = False
            if isinstance(error, UpstreamError):
                tries = self._tries[call] = self._tries.get(call, 0) + 1
                pause = min(self._backoff_s * 2 ** min(tries - 1, 16), BACKOFF_S_MAX)
                heapq.heappush(self._paused, (time.monotonic() + pause, call))
            else:
                self._known.discard(call)
                self._tries.pop(call, None)
                self._failed[call] = _code(error)
            self._wake.notify_all()


def _code(error: Exception) -> str:
    """What may be written down of an error: its code, never its text, which may quote a prompt."""
    return error.code if isinstance(error, HeadwaterError) else type(error).__name__


def _lower_priority() -> None:
    """Ask the scheduler to run this thread, and those it starts, after the others; on Linux only."""
    if os.name == "posix" and os.uname().sysname == "Linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
