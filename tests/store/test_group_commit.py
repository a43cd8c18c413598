import signal
import threading

import pytest

from headwater.store.group_commit import GroupCommit


class Interrupted(Exception):
    pass


class Recorder:
    """Writes by keeping what it is given; can be held up, and can break off."""

    def __init__(self, items_max=100):
        self.groups = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.breaks = []
        self.busy = False
        self.commit = GroupCommit(self.write, items_max=items_max, interrupted=Interrupted)

    def write(self, group):
        assert not self.busy
        self.busy = True
        self.entered.set()
        assert self.free.wait(60)
        self.busy = False
        if self.breaks:
            raise self.breaks.pop()
        self.groups.append([unit.items for unit in group])
        for unit in group:
            if "bad" in unit.items:
                unit.error = ValueError("bad")
            else:
                unit.outcome = len(self.groups)

    def start(self, outcomes, *items):
        def run():
            try:
                outcomes[items] = self.commit.submit(items)
            except BaseException as error:
                outcomes[items] = type(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def queue(self, outcomes, *items):
        """A unit that waits in the queue while another is being written."""
        waiting = len(self.commit._queue)
        thread = self.start(outcomes, *items)
        self.until_queued(waiting + 1)
        return thread

    def until_queued(self, count):
        for _ in range(60_000):
            if len(self.commit._queue) >= count:
                return
            threading.Event().wait(0.001)
        raise AssertionError(f"{count} units never queued")

    def hold(self, outcomes):
        """A first unit that is being written and stays so until `free` is set."""
        self.free.clear()
        thread = self.start(outcomes, "first")
        assert self.entered.wait(60)
        return thread


def test_alone_a_caller_writes_for_itself():
    """Each call is a group of one, and gets its outcome or its error."""
    recorder = Recorder()
    assert [recorder.commit.submit(["a"]), recorder.commit.submit(["b"])] == [1, 2]
    with pytest.raises(ValueError, match="bad"):
        recorder.commit.submit(["bad"])
    assert recorder.groups == [[["a"]], [["b"]], [["bad"]]]


def test_who_comes_during_a_write_shares_the_next():
    """Three callers that wait make one group, in the order they came; one's error is not another's."""
    recorder, outcomes = Recorder(), {}
    threads = [recorder.hold(outcomes)]
    threads += [recorder.queue(outcomes, item) for item in ("a", "bad", "c")]
    recorder.free.set()
    for thread in threads:
        thread.join(10)
    assert recorder.groups == [[("first",)], [("a",), ("bad",), ("c",)]]
    assert outcomes == {("first",): 1, ("a",): 2, ("bad",): ValueError, ("c",): 2}


def test_groups_keep_to_their_limit():
    """What does not fit waits for the next group; a unit larger than the limit goes alone."""
    recorder, outcomes = Recorder(items_max=3), {}
    threads = [recorder.hold(outcomes)]
    threads += [recorder.queue(outcomes, *items) for items in ("ab", "cd", "e", "fghij", "k")]
    recorder.free.set()
    for thread in threads:
        thread.join(10)
    sizes = [[len(items) for items in group] for group in recorder.groups]
    assert sizes == [[1], [2], [2, 1], [5], [1]]


def test_who_waits_is_told_when_a_write_breaks_off():
    """An interrupt reaches the thread that wrote; those who waited get the error made for them, and work goes on."""
    recorder, outcomes = Recorder(), {}
    first = recorder.hold(outcomes)
    others = [recorder.queue(outcomes, item) for item in "ab"]
    recorder.breaks = [KeyboardInterrupt(), ZeroDivisionError()]  # taken from the end: first, then the group of a and b
    recorder.free.set()
    for thread in [first, *others]:
        thread.join(10)
    assert outcomes == {("first",): ZeroDivisionError, ("a",): KeyboardInterrupt, ("b",): Interrupted}
    assert recorder.commit.submit(["next"]) == 1


def test_an_interrupted_caller_does_not_keep_the_others_waiting():
    """A signal takes the main thread out of the queue, first in line or not; who came after it is written."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is told to ignore it
    try:
        _interrupt_callers()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_callers():
    for place in (0, 1):
        recorder, outcomes = Recorder(), {}
        threads = [recorder.hold(outcomes)]
        threads += [recorder.queue(outcomes, f"before {i}") for i in range(place)]
        queued = len(recorder.commit._queue)

        def interrupt(recorder=recorder, outcomes=outcomes, threads=threads, queued=queued):
            recorder.until_queued(queued + 1)
            threads.append(recorder.queue(outcomes, "after"))
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        timer = threading.Thread(target=interrupt)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            recorder.commit.submit(["main"])
        timer.join(10)
        recorder.free.set()
        for thread in threads:
            thread.join(10)
        assert outcomes[("after",)] == 2
        assert ["main"] not in [items for group in recorder.groups for items in group]
        assert recorder.commit.submit(["next"]) == 3
