"""Keeps the readings fresh while pages are looked at: a little at once, a lot on a thread of its own.

A page never waits for more than `AT_ONCE` receipts to be counted; beyond that it shows what is counted and says how
many receipts are not. The thread has a connection of its own, so that counting makes no reader wait.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final

from headwater.core.errors import HeadwaterError
from headwater.dashboard.readings_inequality import refresh
from headwater.dashboard.site import Site
from headwater.store.database import Database
from headwater.store.readings import FILE, Readings
from headwater.store.readings_queries import Questions
from headwater.store.readings_registry import Holdings, prepare

AT_ONCE: Final = 512
STALE_AT_ONCE: Final = 4

_log = logging.getLogger("headwater.dashboard")


@dataclass(frozen=True, slots=True)
class Freshness:
    """How far the figures of a page go."""

    counted: int  # receipts in the sums
    missing: int  # receipts in the log that are not


class Keeper:
    """The readings of a site; one for all areas that show them. Safe for several threads."""

    def __init__(self, site: Site) -> None:
        self._log = site.flow.parts.log
        self._site = site
        self._lock = threading.Lock()
        self._readings: Readings | None = None
        self._questions: Questions | None = None
        self._thread: threading.Thread | None = None
        self.holdings = Holdings(site.db)

    def ask(self) -> Questions:
        """What pages may ask."""
        with self._lock:
            if self._questions is None:
                self._open()
            assert self._questions is not None
            return self._questions

    def fresh(self) -> Freshness:
        """Count what can be counted at once, have the rest counted, and say how far that goes."""
        self.ask()
        with self._lock:
            readings = self._readings
            assert readings is not None
            if self._thread is None:
                ((stale,),) = readings.db.query("SELECT count(*) FROM stale")
                if readings.behind() <= AT_ONCE and stale <= STALE_AT_ONCE:
                    readings.catch_up()
                    refresh(readings.db, limit=STALE_AT_ONCE)
                else:
                    self._thread = threading.Thread(target=self._count, name="readings", daemon=True)
                    self._thread.start()
            counted = readings.place("receipts")
            return Freshness(counted, max(0, self._log.promised().size - counted))

    def _open(self) -> None:
        self._readings = Readings(self._site.folder, self._log, self._site.ledger.db)
        prepare(self._site.db)
        self._questions = Questions(Database(self._site.folder / FILE), self._site.currency)

    def _count(self) -> None:
        try:
            readings = Readings(self._site.folder, self._log, self._site.ledger.db)
            try:
                readings.catch_up()
                while refresh(readings.db):
                    pass
            finally:
                readings.close()
        except HeadwaterError as error:
            _log.error("readings stopped: %s", error.code)  # the next page begins again
        finally:
            with self._lock:
                self._thread = None
