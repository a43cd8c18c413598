"""Counts what the gateway does and writes it down for Prometheus. Every set of labels is bounded."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from headwater.gateway.tracing import Observer

if TYPE_CHECKING:
    from headwater.gateway.answering import AnsweringState
    from headwater.gateway.relay import Relay
    from headwater.gateway.worker import WorkerState

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]

Sample = tuple[str, Labels, float]
"""A counter's name, its labels, its value."""

_HELP: Final = {
    "headwater_requests_total": "HTTP requests by route and status.",
    "headwater_request_seconds_total": "Seconds from a request's head to the end of its response, by route.",
    "headwater_calls_total": "Paid calls by outcome: answered, replayed, left (the caller hung up), failed.",
}


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What the workers of this gateway say of themselves, as it was a second ago."""

    counters: tuple[Sample, ...] = ()  # summed, of those that have ended too
    alive: int = 0
    wanted: int = 0
    restarts: int = 0
    passed: int = 0  # requests that came here from them
    held: int = 0
    waiting: int = 0
    behind: int = 0
    failing: int = 0  # workers whose books cannot be written
    connections: Mapping[str, int] = field(default_factory=dict)  # by upstream
    rss_bytes: Mapping[str, int] = field(default_factory=dict)  # by worker
    workers: tuple[Mapping[str, Any], ...] = ()  # how each is doing, for /readyz


class Metrics:
    """Counters of one gateway; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, Labels]] = Counter()
        self._seconds: dict[tuple[str, Labels], float] = {}
        self.observer: Observer | None = None  # is told of every paid call when it has ended
        self.elsewhere: Callable[[], Elsewhere] | None = None  # what the workers of this gateway say

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

    def samples(self) -> list[Sample]:
        """Every counter as it stands."""
        with self._lock:
            counted: list[Sample] = [(name, labels, value) for (name, labels), value in self._counts.items()]
            return counted + [(name, labels, value) for (name, labels), value in self._seconds.items()]

    def render(self, answering: AnsweringState, worker: WorkerState, relay: Relay | None = None) -> str:
        """The text Prometheus reads."""
        elsewhere = None if self.elsewhere is None else self.elsewhere()
        counted = summed([*self.samples(), *(() if elsewhere is None else elsewhere.counters)])
        lines: list[str] = []
        for name, text in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            lines += [_sample(n, labels, v) for n, labels, v in sorted(counted) if n == name]
        for name, kind, text, value in _gauges(answering, worker):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", _sample(name, (), value)]
        for name, text, samples in _relayed(relay, elsewhere or Elsewhere()):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
            lines += [_sample(name, labels, value) for labels, value in samples]
        for name, kind, text, samples in () if elsewhere is None else _workers(elsewhere):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [_sample(name, labels, value) for labels, value in samples]
        return "\n".join(lines) + "\n"


def summed(counters: Iterable[Sample]) -> list[Sample]:
    """One sample for each name and set of labels."""
    sums: dict[tuple[str, Labels], float] = {}
    for name, labels, value in counters:
        sums[name, labels] = sums.get((name, labels), 0) + value
    return [(name, labels, value) for (name, labels), value in sums.items()]


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


def _relayed(relay: Relay | None, elsewhere: Elsewhere) -> Iterable[tuple[str, str, list[tuple[Labels, float]]]]:
    """Of calls that other servers answer, and of those servers; what workers have of both is added."""
    if relay is None:
        return
    meter, upstreams = relay.meter.state(), relay.upstreams.state()
    for name, text, here, there in (
        ("relayed_at_work", "Relayed calls for which credit is held.", meter.held, elsewhere.held),
        ("relayed_waiting", "Relayed answers that wait for their receipt.", meter.waiting, elsewhere.waiting),
        ("books_behind", "Receipts that wait to be booked.", meter.behind, elsewhere.behind),
    ):
        yield f"headwater_{name}", text, [((), here + there)]
    failing = meter.error is not None or elsewhere.failing > 0
    yield "headwater_books_failing", "1 while the books cannot be written.", [((), failing)]
    connections = [one.open + elsewhere.connections.get(one.name, 0) for one in upstreams]
    for name, text, values in (
        ("connections", "Connections to an upstream, idle ones included.", connections),
        ("failures", "Failures of an upstream in a row.", [one.failures for one in upstreams]),
        ("paused", "1 while an upstream is left alone.", [one.paused for one in upstreams]),
    ):
        labelled: list[tuple[Labels, float]] = [
            ((("upstream", one.name),), float(value)) for one, value in zip(upstreams, values, strict=True)
        ]
        yield f"headwater_upstream_{name}", text, labelled


def _workers(elsewhere: Elsewhere) -> Iterable[tuple[str, str, str, list[tuple[Labels, float]]]]:
    """Of the processes that answer beside this one."""
    for name, kind, text, value in (
        ("workers", "gauge", "Worker processes that shall be there.", elsewhere.wanted),
        ("workers_alive", "gauge", "Worker processes that answer.", elsewhere.alive),
        ("workers_restarts_total", "counter", "Worker processes that were started again.", elsewhere.restarts),
        ("workers_passed_total", "counter", "Requests that workers passed on to the head.", elsewhere.passed),
    ):
        yield f"headwater_{name}", kind, text, [((), float(value))]
    memory: list[tuple[Labels, float]] = [
        ((("worker", name),), float(size)) for name, size in sorted(elsewhere.rss_bytes.items())
    ]
    yield "headwater_worker_resident_bytes", "gauge", "Resident memory of a worker process.", memory


def _sample(name: str, labels: Labels, value: float) -> str:
    inner = ",".join(f'{key}="{text}"' for key, text in labels)
    return f"{name}{{{inner}}} {value:g}" if inner else f"{name} {float(value):.15g}"
