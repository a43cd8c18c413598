"""The attribution worker: in order, behind the answers, never losing a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headwater.core.errors import InvalidError, UpstreamError
from headwater.core.ids import CallId, call_id
from headwater.gateway import AttributionWorker

CALLS = [call_id(number.to_bytes(16, "big")) for number in range(50)]


@contextmanager
def running(attribute: Callable[[CallId], object], **options: object) -> Iterator[AttributionWorker]:
    """A started worker that is stopped at the end."""
    worker = AttributionWorker(attribute, **{"owed": list, "backoff_s": 0.01, **options})  # type: ignore[arg-type]
    worker.start()
    try:
        yield worker
    finally:
        worker.drain(5)


def wait_for(condition: Callable[[], object]) -> None:
    """Until it holds."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_calls_are_attributed_in_order_and_once() -> None:
    """A call that is queued twice is worked on once."""
    done: list[CallId] = []
    gate = threading.Event()
    with running(lambda call: (gate.wait(5), done.append(call))) as worker:
        for call in [*CALLS, *CALLS]:
            worker.submit(call)
        gate.set()
        assert worker.wait_idle(10)
    assert done == CALLS


def test_what_an_engine_could_not_do_is_tried_again() -> None:
    """An upstream failure is repeated after a pause; other calls do not wait for it."""
    done: list[CallId] = []
    failures = {CALLS[0]: 3}

    def attribute(call: CallId) -> None:
        if failures.get(call):
            failures[call] -= 1
            raise UpstreamError("down", code="scorer_failed")
        done.append(call)

    with running(attribute) as worker:
        worker.submit(CALLS[0])
        worker.submit(CALLS[1])
        wait_for(lambda: len(done) == 2)
        assert worker.state().retrying == 0
    assert done == [CALLS[1], CALLS[0]]


def test_what_can_never_be_done_stays_listed() -> None:
    """A call that is refused, or hits a bug, is kept with its code and does not stop the others."""
    done: list[CallId] = []

    def attribute(call: CallId) -> None:
        if call == CALLS[0]:
            raise InvalidError("no", code="players_too_many")
        if call == CALLS[1]:
            raise ZeroDivisionError
        done.append(call)

    with running(attribute) as worker:
        for call in CALLS[:3]:
            worker.submit(call)
        assert worker.wait_idle(10)
        state = worker.state()
    assert dict(state.failed) == {CALLS[0]: "players_too_many", CALLS[1]: "ZeroDivisionError"}
    assert done == [CALLS[2]]
    assert state.alive


def test_what_does_not_fit_the_queue_comes_from_the_journal() -> None:
    """More calls than places: all are attributed, none is kept twice, memory stays bounded."""
    done: list[CallId] = []
    owed = set(CALLS)
    gate = threading.Event()

    def attribute(call: CallId) -> None:
        gate.wait(5)
        owed.discard(call)
        done.append(call)

    with running(attribute, owed=lambda: sorted(owed), queue_max=5) as worker:
        for call in CALLS:
            worker.submit(call)
        state = worker.state()
        assert (state.waiting, state.overflowed) == (5, True)
        gate.set()
        assert worker.wait_idle(10)
    assert sorted(done) == CALLS


def test_a_journal_that_cannot_be_read_is_asked_again() -> None:
    """The worker survives it and catches up."""
    done: list[CallId] = []
    troubles = [OSError(), OSError()]
    gate = threading.Event()

    def owed() -> list[CallId]:
        if troubles:
            raise troubles.pop()
        return [call for call in CALLS if call not in done]

    with running(lambda call: (gate.wait(5), done.append(call)), owed=owed, queue_max=1) as worker:
        for call in CALLS:
            worker.submit(call)
        gate.set()
        assert worker.wait_idle(10)
    assert sorted(done) == CALLS


def test_answers_go_first() -> None:
    """While answers are generated an attribution waits, but not for ever."""
    done: list[float] = []
    busy = True
    with running(lambda _: done.append(time.monotonic()), busy=lambda: busy) as worker:
        began = time.monotonic()
        worker.submit(CALLS[0])
        time.sleep(0.1)
        assert done == []
        wait_for(lambda: done)
    assert 0.5 < done[0] - began < 5


def test_draining_finishes_what_can_be_done_and_says_when_it_could_not() -> None:
    """True when the queue was emptied in time; false, and the thread stops after its call, when not."""
    done: list[CallId] = []
    with running(done.append) as worker:
        for call in CALLS:
            worker.submit(call)
        assert worker.drain(10)
    assert done == CALLS
    slow: list[CallId] = []
    with running(lambda call: (time.sleep(0.1), slow.append(call))) as worker:
        for call in CALLS:
            worker.submit(call)
        assert not worker.drain(0.15)
        wait_for(lambda: not worker.state().alive)
    assert 0 < len(slow) < 10
