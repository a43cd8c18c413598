"""A worker from its plan to its end, in a process that has nothing else to do."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from headwater.core.errors import HeadwaterError
from headwater.gateway.lines import log_to_stderr
from headwater.gateway.serve import serve_on
from headwater.gateway.tracing import tracing
from headwater.gateway.workers import snapshot
from headwater.gateway.workers.life import Follower, telling
from headwater.gateway.workers.opened import opened
from headwater.gateway.workers.orders import Plan, Said, read_plan, said_of, write_line


def main() -> NoReturn:
    """Run, and exit with the status."""
    orders, answers = sys.stdin.buffer, _answers()
    try:
        plan = read_plan(orders)
    except HeadwaterError as error:
        print(f"{error.message} [{error.code}]\n  fix: {error.fix}", file=sys.stderr)
        sys.exit(2)
    status = 0
    try:
        run(plan, orders, answers)
    except SystemExit:
        pass  # it was told to stop, and has
    except Exception as error:
        if not isinstance(error, HeadwaterError):
            logging.getLogger("headwater.gateway").exception("the worker failed")
        write_line(answers, said_of(error))
        status = 1
    logging.shutdown()
    os._exit(status)  # everything is closed; a thread still waits for orders, and the interpreter would for it


def run(plan: Plan, orders: BinaryIO, answers: BinaryIO) -> None:
    """Serve until the head says otherwise, or is gone.

    Raises:
        HeadwaterError: it could not begin.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the head is told, and tells
    listener = socket.socket(fileno=plan.listener)
    with ExitStack() as stack:
        front, read = stack.enter_context(opened(plan))
        # What the server raises again when it has stopped for a signal ends the process, but not before the rest.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        if plan.settings.get("log_format"):
            log_to_stderr(plan.settings["log_format"], worker=f"w{plan.number}")
        if (watch := tracing(worker=f"w{plan.number}")) is not None:
            front.metrics.observer = watch.observe
            stack.callback(watch.close)
        stack.enter_context(telling(front, snapshot.path_of(Path(plan.folder), plan.number)))
        follower = Follower(front, orders, answers, read)

        def ready() -> None:
            follower.start()
            write_line(answers, Said("ready"))

        serve_on(front, listener, ready=ready)


def _answers() -> BinaryIO:
    """Where answers to the head go; whatever else is printed here goes to standard error."""
    own = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return os.fdopen(own, "wb", buffering=0)


def _leave(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(0)
