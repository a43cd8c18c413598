"""Looking after workers: starts, ends, orders and giving up, with small scripts in the place of workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

from headwater.core.errors import UpstreamError
from headwater.gateway.workers import supervisor as module
from headwater.gateway.workers.line import Lines
from headwater.gateway.workers.orders import Plan
from headwater.gateway.workers.snapshot import Snapshot, path_of, write
from headwater.gateway.workers.supervisor import Supervisor
from toy.gang import wait_for

SERVES = """
import json, sys
plan = json.loads(sys.stdin.readline())
open(f"{plan['folder']}/began", "a").write(plan["upstreams"] + "\\n")
print('{"what": "ready"}', flush=True)
for line in sys.stdin:
    told = json.loads(line)["upstreams"]
    fine = told != "unreadable to " + str(plan["number"])
    print(json.dumps({"what": "reloaded"} if fine else {"what": "failed", "code": "x", "message": "no"}), flush=True)
"""
FAILS = """
import sys
print('{"what": "failed", "code": "key_file_missing", "message": "no key", "fix": "make one"}', flush=True)
sys.exit(1)
"""
BREAKS = "raise SystemExit(3)"
STUBBORN = SERVES.replace("import json", "import signal; signal.signal(15, signal.SIG_IGN); import json", 1)


@contextmanager
def supervised(
    folder: Path, script: str, *, count: int = 2, recover: Callable[[], None] = lambda: None
) -> Iterator[tuple[Supervisor, threading.Event]]:
    """A supervisor at work, and what is set when it gives up."""
    lost = threading.Event()
    plan = Plan(
        0, -1, str(folder), {}, "", "first", str(folder), vouchers=False, chain=None, stall_s=1, body_timeout_s=1
    )
    with socket.socket() as listener:
        made = Supervisor(
            *(plan, listener, count), recover=recover, lost=lost.set, command=(sys.executable, "-S", "-c", script)
        )
        made.start()
        try:
            yield made, lost
        finally:
            made.stop()


@pytest.mark.parametrize(("script", "code"), [(FAILS, "key_file_missing"), (BREAKS, "workers_not_started")])
def test_workers_that_never_serve_are_given_up_on_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, code: str
) -> None:
    """After a few tries, not for ever, and with what the worker itself said if it said something."""
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    with supervised(tmp_path, script) as (workers, lost):
        assert lost.wait(20)
        assert isinstance(workers.error, UpstreamError)
        assert workers.error.code == code


def test_a_worker_that_ends_is_settled_first_and_then_replaced(tmp_path: Path) -> None:
    """What it counted stays in the sums; the other is left alone."""
    settled: list[int] = []
    with supervised(tmp_path, SERVES, recover=lambda: settled.append(len(_began(tmp_path)))) as (workers, lost):
        assert workers.all_ready.wait(20)
        first, second = workers.found()
        write(path_of(tmp_path, 1), Snapshot(1e18, [("calls", (("outcome", "answered"),), 7.0)], passed=3, held=1))
        assert workers.elsewhere().held == 1
        assert first.pid is not None
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: workers.found()[0].restarts == 1 and workers.found()[0].state == "serving", 20)
        assert 2 in settled  # before the third began
        assert workers.found()[1].pid == second.pid
        told = workers.elsewhere()
        assert (told.counters, told.passed, told.held, told.restarts) == (
            (("calls", (("outcome", "answered"),), 7.0),), 3, 0, 1
        )  # fmt: skip
        assert not lost.is_set()


def test_an_error_while_settling_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The books may be away for a moment; workers are looked after all the same."""
    monkeypatch.setattr(module, "SWEEP_S", 0.02)
    tries: list[int] = []

    def recover() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise UpstreamError("away", code="database_locked")

    with supervised(tmp_path, SERVES, count=1, recover=recover) as (workers, _):
        assert workers.all_ready.wait(20)
        wait_for(lambda: len(tries) >= 3, 20)


def test_a_worker_that_cannot_take_orders_over_begins_anew_with_them(tmp_path: Path) -> None:
    """So that all of them serve the same; one that starts later begins with the newest too."""
    with supervised(tmp_path, SERVES) as (workers, _):
        assert workers.all_ready.wait(20)
        workers.reload("second")
        assert _began(tmp_path) == ["first", "first"]
        workers.reload("unreadable to 2")
        wait_for(lambda: workers.found()[1].restarts == 1 and workers.found()[1].state == "serving", 20)
        assert workers.found()[0].restarts == 0
        assert _began(tmp_path)[2:] == ["unreadable to 2"]


def test_an_order_that_comes_while_a_worker_starts_is_taken_over_when_it_serves(tmp_path: Path) -> None:
    """It began with what was right then, and does not go on with it."""
    slow = SERVES.replace("plan = ", "import time; time.sleep(0.3); plan = ").replace(
        "told = json", f'open("{tmp_path}/told", "a").write(line); told = json'
    )
    with supervised(tmp_path, slow, count=1) as (workers, _):
        wait_for(lambda: workers.found()[0].state == "starting", 20)
        workers.reload("second")
        assert _began(tmp_path) == ["first"]
        assert json.loads((tmp_path / "told").read_text())["upstreams"] == "second"
        assert workers.found()[0].restarts == 0


def test_stopping_tells_all_and_kills_who_does_not_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is left behind, and what the killed had is settled after it."""
    monkeypatch.setattr(module, "STOP_S", 0.3)
    settled: list[int] = []
    with supervised(tmp_path, STUBBORN, recover=lambda: settled.append(1)) as (workers, _):
        assert workers.all_ready.wait(20)
        pids = [one.pid for one in workers.found()]
        settled.clear()
        workers.stop()
        assert settled
        for pid in pids:
            assert pid is not None
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        workers.stop()  # again does no harm


def test_a_worker_that_says_nothing_is_told_as_silent(tmp_path: Path) -> None:
    """Its process lives and its last word is old: it counts as one that does not answer."""
    with supervised(tmp_path, SERVES, count=1) as (workers, _):
        assert workers.all_ready.wait(20)
        write(path_of(tmp_path, 1), Snapshot(-1e6, []))
        (found,) = workers.found()
        assert (found.silent, found.as_json()["state"]) == (True, "silent")
        assert workers.elsewhere().alive == 0


async def _full(path: Path) -> str:
    lines = Lines(path)
    taken = []
    try:
        for _ in range(50):
            taken.append(await lines.take())
    except UpstreamError as error:
        return error.code
    finally:
        for line in taken:
            line.close()
    return "taken"


def test_a_head_that_takes_no_more_connections_is_busy(tmp_path: Path) -> None:
    """A full queue at its socket is told at once, and as what it is."""
    path = tmp_path / "head"
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(path))
        own.listen(1)
        assert uvloop.run(_full(path)) == "head_busy"
    path.unlink()
    assert uvloop.run(_full(path)) == "head_lost"


def test_a_worker_loads_no_models_indexes_or_pages() -> None:
    """What it needs of a home is small; everything else is the head's."""
    heavy = (
        "numba",
        "scipy",
        "fastapi",
        "pydantic",
        "xllamacpp",
        "wordllama",
        "torch",
        "duckdb",
        "pyarrow",
        "web3",
        "jinja2",
    )
    asked = f"import sys, headwater.gateway.workers.running; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout
    assert found.strip() == "[]"


def _began(folder: Path) -> list[str]:
    """What each worker that began was to serve."""
    path = folder / "began"
    return path.read_text().splitlines() if path.exists() else []


def test_a_snapshot_that_is_half_written_is_not_read(tmp_path: Path) -> None:
    """It is replaced whole; anything else counts as none."""
    path = path_of(tmp_path, 1)
    path.write_text(json.dumps({"at_s": 1})[:-3])
    assert module.snapshot.read(path) is None
