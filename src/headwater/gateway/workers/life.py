"""The life of a worker: serves on the socket it inherited, tells of itself, follows the head's orders, ends with it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from headwater.core.errors import HeadwaterError
from headwater.gateway.relay import Relays
from headwater.gateway.workers import snapshot
from headwater.gateway.workers.front import Front
from headwater.gateway.workers.orders import Order, Said, read_order, said_of, write_line

TOLD_S: Final = 1.0
ORPHANED: Final = 70
"""The status of a worker whose head is gone."""

_log = logging.getLogger("headwater.gateway")


def end_orphaned() -> None:
    """The head is gone: nothing that is at work here could be recorded any more, so the process ends at once."""
    _log.error("the head process is gone; this worker ends")
    os._exit(ORPHANED)


class Follower:
    """Reads the head's orders on a thread and answers them.

    Args:
        read: relays from the text of an upstreams file.
    """

    def __init__(self, front: Front, orders: BinaryIO, answers: BinaryIO, read: Callable[[str], Relays]) -> None:
        self._front, self._orders, self._answers, self._read = front, orders, answers, read

    def start(self) -> None:
        """Follow, until the head is gone."""
        threading.Thread(target=self._follow, name="orders", daemon=True).start()

    def _follow(self) -> None:
        while (order := read_order(self._orders)) is not None:
            try:
                self._obey(order)
            except Exception as error:
                if not isinstance(error, HeadwaterError):
                    _log.error("reload failed with %s", type(error).__name__)
                write_line(self._answers, said_of(error))
            else:
                write_line(self._answers, Said("reloaded"))
        end_orphaned()

    def _obey(self, order: Order) -> None:
        relays, loop = self._read(order.upstreams), self._front.loop
        assert loop is not None  # it is ready, so it serves

        async def swap() -> None:
            self._front.take_over(relays)

        asyncio.run_coroutine_threadsafe(swap(), loop).result()


@contextmanager
def telling(front: Front, path: Path) -> Iterator[None]:
    """Write what is to be known of a worker once a second, and once more at the end."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(TOLD_S):
            snapshot.write(path, snapshot_of(front))

    thread = threading.Thread(target=tell, name="telling", daemon=True)
    snapshot.write(path, snapshot_of(front))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        snapshot.write(path, snapshot_of(front))


def snapshot_of(front: Front) -> snapshot.Snapshot:
    """How a worker is doing now."""
    meter, upstreams = front.relay.meter.state(), front.relay.upstreams.state()
    return snapshot.Snapshot(
        at_s=time.monotonic(),
        counters=front.metrics.samples(),
        passed=front.passage.passed,
        held=meter.held,
        waiting=meter.waiting,
        behind=meter.behind,
        error=meter.error,
        paused=tuple(one.name for one in upstreams if one.paused),
        connections={one.name: one.open for one in upstreams},
        rss_bytes=snapshot.rss_bytes(),
    )
