"""Starts the workers, watches them, starts those again that end, and stops them all.

A thread for each worker waits for its process; another sweeps up after the dead. A worker that ended is first
recovered (what its receipts say is booked, what it had leased is free again) and then replaced, later and later when
it keeps ending. Workers that never served at all are given up on, and so is the head then.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, Literal

import msgspec

from headwater.core.errors import HeadwaterError, UpstreamError
from headwater.gateway.metrics import Elsewhere, Sample, summed
from headwater.gateway.workers import snapshot
from headwater.gateway.workers.orders import Order, Plan, Said, error_of, read_said, write_line

START_S: Final = 60.0
"""How long a worker may take until it serves."""

START_TRIES: Final = 3
"""How often a worker may fail to start before the first of all has served; then they are given up on."""

STOP_S: Final = 30.0
"""How long a worker may take to finish when it is told to stop; then it is killed, and what it had is recovered."""

PAUSE_S: Final = 0.2
PAUSE_MAX_S: Final = 30.0
STEADY_S: Final = 30.0
"""A worker that lived so long is started again at once."""

SWEEP_S: Final = 5.0
"""How often dead runs are looked for that nobody saw ending."""

SILENT_S: Final = 10.0
"""A worker that has said nothing for so long is taken for stuck, and told as such."""

State = Literal["starting", "serving", "down", "ended"]

_log = logging.getLogger("headwater.gateway")


@dataclass(slots=True)
class _Worker:
    """One place for a worker; processes come and go in it. Guarded by the supervisor's lock."""

    number: int
    state: State = "down"
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    failure: str | None = None  # how the last process ended, or why it did not start
    answers: SimpleQueue[Said | None] = field(default_factory=SimpleQueue)


@dataclass(frozen=True, slots=True)
class WorkerFound:
    """How one worker is doing, for /readyz and the operator."""

    name: str
    state: State
    pid: int | None
    restarts: int
    failure: str | None
    silent: bool  # it serves, but has not told of itself for a while
    told: snapshot.Snapshot | None

    def as_json(self) -> dict[str, Any]:
        """As the operator reads it."""
        told = self.told
        return {
            "name": self.name,
            "state": "silent" if self.silent else self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "failure": self.failure,
            "at_work": 0 if told is None else told.held,
            "behind": 0 if told is None else told.behind,
            "error": None if told is None else told.error,
        }


class Supervisor:
    """The workers of one head.

    Args:
        plan: of every worker; its number is put in here.
        listener: the public socket.
        recover: sweeps up after the dead; may raise `HeadwaterError`, and is tried again then.
        lost: called when the workers are given up on.
        count: of workers.
    """

    def __init__(
        self,
        plan: Plan,
        listener: socket.socket,
        count: int,
        *,
        recover: Callable[[], None],
        lost: Callable[[], None],
        command: Sequence[str] = (sys.executable, "-m", "headwater.gateway.workers"),
    ) -> None:
        self._plan, self._listener, self._recover, self._lost = plan, listener, recover, lost
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._workers = tuple(_Worker(number) for number in range(1, count + 1))
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._swept = threading.Event()  # somebody died: sweep now
        self._sweeping = threading.Lock()
        self._served = False  # one of them has
        self._retired: list[Sample] = []  # counters of those that ended
        self._passed = 0
        self.all_ready = threading.Event()
        self.error: HeadwaterError | None = None  # why they were given up on

    # Life

    def start(self) -> None:
        """Start them, and return; `all_ready` is set when every one serves."""
        for worker in self._workers:
            self._thread(partial(self._look_after, worker), f"worker-{worker.number}")
        self._thread(self._sweep, "sweep")

    def stop(self) -> None:
        """Have them finish what is at work, and wait until they have. Blocks, and may be called twice."""
        self._stopping.set()
        self._swept.set()
        with self._lock:
            self._listener.close()  # nobody but them accepts any more
            for worker in self._workers:
                if worker.process is not None and worker.process.poll() is None:
                    worker.process.send_signal(signal.SIGTERM)
        until_s = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        for worker in self._workers:
            if worker.process is not None and worker.process.poll() is None:
                _log.error("worker %d did not finish in time and is killed", worker.number)
                worker.process.kill()
                worker.process.wait()
        self._swept_up()

    def reload(self, upstreams: str) -> None:
        """Have every worker take over what an upstreams file says; one that cannot is replaced by one that begins so.

        Blocks until they have. A worker that starts meanwhile takes it over when it serves, or begins with it.
        """
        with self._lock:
            self._plan = msgspec.structs.replace(self._plan, upstreams=upstreams)
            told = [worker for worker in self._workers if worker.state in ("starting", "serving")]
            for worker in told:
                self._order(worker, Order(upstreams))
        for worker in told:
            answer = self._answer(worker)
            if answer is None or answer.what != "reloaded":
                code = "no answer" if answer is None else answer.code
                _log.error("worker %d could not reload (%s) and is replaced", worker.number, code)
                if worker.process is not None:
                    worker.process.terminate()

    def _order(self, worker: _Worker, order: Order) -> None:
        process = worker.process
        if process is None or process.stdin is None:
            return
        try:
            write_line(process.stdin, order)
        except OSError:
            _log.error("worker %d takes no orders", worker.number)

    def _answer(self, worker: _Worker) -> Said | None:
        try:
            return worker.answers.get(timeout=START_S)
        except Empty:
            return None

    # What is known of them

    def found(self) -> tuple[WorkerFound, ...]:
        """How each is doing."""
        now_s = time.monotonic()
        found = []
        for worker in self._workers:
            told = snapshot.read(self._path(worker)) if worker.state == "serving" else None
            silent = told is None or now_s - told.at_s > SILENT_S
            found.append(
                WorkerFound(
                    f"w{worker.number}",
                    worker.state,
                    None if worker.process is None else worker.process.pid,
                    worker.restarts,
                    worker.failure,
                    silent=worker.state == "serving" and silent,
                    told=told,
                )
            )
        return tuple(found)

    def elsewhere(self) -> Elsewhere:
        """What they count, together."""
        found = self.found()
        told = [one.told for one in found if one.told is not None]
        with self._lock:
            counters, passed = list(self._retired), self._passed
        connections: dict[str, int] = {}
        for one in told:
            for name, count in one.connections.items():
                connections[name] = connections.get(name, 0) + count
        return Elsewhere(
            counters=tuple(summed([*counters, *(sample for one in told for sample in one.counters)])),
            alive=sum(one.state == "serving" and not one.silent for one in found),
            wanted=len(found),
            restarts=sum(one.restarts for one in found),
            passed=passed + sum(one.passed for one in told),
            held=sum(one.held for one in told),
            waiting=sum(one.waiting for one in told),
            behind=sum(one.behind for one in told),
            failing=sum(one.error is not None for one in told),
            connections=connections,
            rss_bytes={one.name: one.told.rss_bytes for one in found if one.told is not None},
            workers=tuple(one.as_json() for one in found),
        )

    # One worker, on its thread

    def _look_after(self, worker: _Worker) -> None:
        tries, pause_s = 0, PAUSE_S
        while not self._stopping.is_set():
            began_s = time.monotonic()
            served = self._live(worker)
            self._swept_up()
            if self._stopping.is_set():
                return
            if served:
                tries = 0
            else:
                tries += 1
                if tries >= START_TRIES and not self._served:
                    self._give_up(worker)
                    return
            pause_s = PAUSE_S if time.monotonic() - began_s > STEADY_S else min(2 * pause_s, PAUSE_MAX_S)
            self._stopping.wait(pause_s)
            with self._lock:
                worker.restarts += 1

    def _live(self, worker: _Worker) -> bool:
        """One process from its start to its end; whether it served."""
        path = self._path(worker)
        path.unlink(missing_ok=True)
        try:
            process, alarm = self._spawn(worker)
        except OSError as error:
            worker.failure = f"cannot be started: {error.strerror or error}"
            _log.error("worker %d %s", worker.number, worker.failure)
            return False
        served = False
        assert process.stdout is not None
        while (said := read_said(process.stdout)) is not None:
            if said.what == "ready":
                alarm.cancel()
                served = True
                self._serves(worker, process.pid)
            elif not served:
                worker.failure = f"{said.message} [{said.code}]"
                self.error = self.error or error_of(said)
            else:
                worker.answers.put(said)
        status = process.wait()
        alarm.cancel()
        self._ended(worker, status, served=served)
        return served

    def _spawn(self, worker: _Worker) -> tuple[subprocess.Popen[bytes], threading.Timer]:
        """Start a process and give it the plan; what kills it unless it is stopped comes with it."""
        with self._lock:  # orders come after the plan
            if self._stopping.is_set():
                raise OSError("the head is stopping")
            listener = self._listener.fileno()
            process = subprocess.Popen(
                [*self._command, str(worker.number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(listener,),
            )
            worker.process, worker.state, worker.answers = process, "starting", SimpleQueue()
            plan = msgspec.structs.replace(self._plan, number=worker.number, listener=listener)
            alarm = threading.Timer(START_S, process.kill)
            alarm.daemon = True
            alarm.start()
            assert process.stdin is not None
            with suppress(OSError):  # it has ended already, which its output says too
                write_line(process.stdin, plan)
        return process, alarm

    def _serves(self, worker: _Worker, pid: int) -> None:
        with self._lock:
            worker.state, worker.failure, self._served = "serving", None, True
            self.error = None
            ready = all(one.state == "serving" for one in self._workers)
        _log.info("worker %d serves, process %d", worker.number, pid)
        if ready:
            self.all_ready.set()

    def _ended(self, worker: _Worker, status: int, *, served: bool) -> None:
        worker.answers.put(None)
        told = snapshot.read(self._path(worker))
        with self._lock:
            worker.state = "ended" if self._stopping.is_set() else "down"
            if told is not None:
                self._retired = summed([*self._retired, *told.counters])
                self._passed += told.passed
            if served or worker.failure is None:
                worker.failure = _how(status)
            for stream in (worker.process.stdin, worker.process.stdout) if worker.process is not None else ():
                with suppress(OSError):
                    if stream is not None:
                        stream.close()
        self._path(worker).unlink(missing_ok=True)
        if self._stopping.is_set():
            _log.info("worker %d ended: %s", worker.number, _how(status))
        else:
            _log.error("worker %d ended: %s", worker.number, worker.failure)

    def _give_up(self, worker: _Worker) -> None:
        self.error = self.error or UpstreamError(
            f"worker {worker.number} ended {START_TRIES} times before it served: {worker.failure}",
            code="workers_not_started",
            fix="look at its lines on standard error, or serve without --workers",
        )
        self._lost()

    def _path(self, worker: _Worker) -> Path:
        return snapshot.path_of(Path(self._plan.folder), worker.number)

    # After the dead

    def _sweep(self) -> None:
        while not self._stopping.is_set():
            self._swept.wait(SWEEP_S)
            self._swept.clear()
            if not self._stopping.is_set():
                self._swept_up()

    def _swept_up(self) -> None:
        with self._sweeping:
            try:
                self._recover()
            except HeadwaterError as error:
                _log.error("what a dead worker left could not be settled yet: %s", error.code)

    def _thread(self, work: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def _how(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
