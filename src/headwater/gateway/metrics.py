"""Counts what the gateway does and writes it down for Prometheus. Every set of labels is bounded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from headwater.gateway.answering import AnsweringState
from headwater.gateway.tracing import Observer
from headwater.gateway.worker import WorkerState

if TYPE_CHECKING:
    from headwater.gateway.relay import Relay

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]

_HELP: Final = {
    "headwater_requests_total": "HTTP requests by route and status.",
    "headwater_request_seconds_total": "Seconds from a request's head to the end of its response, by route.",
    "headwater_calls_total": "Paid calls by outcome: answered, replayed, left (the caller hung up), failed.",
}


class Metrics:
    """Counters of one gateway; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._seconds: dict[tuple[str, Labels], float] = {}
        self.observer: Observer | None = None  # is told of every paid call when it has ended

    def request(self, route: str, status: int, took_s: float) -> None:
        """One response. `route` is a template or ``other``, never a path as sent."""
        with self._lock:
            self._counts["headwater_requests_total", (("route", route), ("status", str(status)))] += 1
            key = ("headwater_request_seconds_total", (("route", route),))
            self._seconds[key] = self._seconds.get(key, 0.0) + took_s

    def call(self, outcome: str) -> None:
        """One paid call came to its end."""
        with self._lock:
            self._counts["headwater_calls_total", (("outcome", outcome),)] += 1

    def render(self, answering: AnsweringState, worker: WorkerState, relay: Relay | None = None) -> str:
        """The text Prometheus reads."""
        with self._lock:
            counted: list[tuple[str, Labels, float]] = [(n, labels, v) for (n, labels), v in self._counts.items()]
            counted += [(name, labels, value) for (name, labels), value in self._seconds.items()]
        lines: list[str] = []
        for name, text in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            lines += [_sample(n, labels, v) for n, labels, v in sorted(counted) if n == name]
        for name, kind, text, value in _gauges(answering, worker):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", _sample(name, (), value)]
        for name, text, samples in _relayed(relay):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [_sample(name, labels, value) for labels, value in samples]
        return "\n".join(lines) + "\n"


def _gauges(answering: AnsweringState, worker: WorkerState) -> Iterable[tuple[str, str, str, float]]:
    yield "headwater_generating", "gauge", "Answers being generated.", answering.generating
    yield "headwater_waiting", "gauge", "Admitted calls waiting for a place at the model.", answering.waiting
    yield "headwater_unsettled", "gauge", "Calls whose charge or release failed and is owed.", answering.unsettled
    yield "headwater_attribution_alive", "gauge", "1 while the attribution worker runs.", worker.alive
    yield "headwater_attribution_waiting", "gauge", "Answered calls in the attribution queue.", worker.waiting
    yield "headwater_attribution_retrying", "gauge", "Of these, calls that failed at least once.", worker.retrying
    yield "headwater_attribution_failed", "gauge", "Calls that could not be attributed.", len(worker.failed)
    yield (
        "headwater_attribution_overflowed",
        "gauge",
        "1 while the journal holds more than the queue.",
        worker.overflowed,
    )
    yield "headwater_receipts_issued_total", "counter", "Calls attributed since the start.", worker.done
    yield "headwater_attribution_seconds_total", "counter", "Seconds spent attributing.", worker.busy_s


def _relayed(relay: Relay | None) -> Iterable[tuple[str, str, list[tuple[Labels, float]]]]:
    """Of calls that other servers answer, and of those servers."""
    if relay is None:
        return
    meter, upstreams = relay.meter.state(), relay.upstreams.state()
    yield "headwater_relayed_at_work", "Relayed calls for which credit is held.", [((), meter.held)]
    yield "headwater_relayed_waiting", "Relayed answers that wait for their receipt.", [((), meter.waiting)]
    yield "headwater_books_behind", "Receipts that wait to be booked.", [((), meter.behind)]
    yield "headwater_books_failing", "1 while the books cannot be written.", [((), meter.error is not None)]
    for name, text, values in (
        ("connections", "Connections to an upstream, idle ones included.", [one.open for one in upstreams]),
        ("failures", "Failures of an upstream in a row.", [one.failures for one in upstreams]),
        ("paused", "1 while an upstream is left alone.", [one.paused for one in upstreams]),
    ):
        labelled: list[tuple[Labels, float]] = [
            ((("upstream", one.name),), float(value)) for one, value in zip(upstreams, values, strict=True)
        ]
        yield f"headwater_upstream_{name}", text, labelled


def _sample(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{text}"' for key, text in labels)
    return f"{name}{{{inner}}} {value:g}" if inner else f"{name} {float(value):.15g}"
