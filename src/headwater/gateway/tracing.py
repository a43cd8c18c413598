"""Traces and metrics of paid calls over OpenTelemetry, with GenAI names; nothing of what anybody said leaves with them.

One answered, failed or left call is one server span and, inside it, one span ``chat MODEL`` of the generation; a
caller's ``traceparent`` is continued. Spans are built when a call has ended, from what was seen of it, and leave in
batches on another thread, so a collector that is slow or gone costs a call nothing. Where they go is said by the
standard ``OTEL_*`` variables; without an endpoint nothing is loaded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, Protocol

from headwater import __version__, telemetry
from headwater.core.errors import HeadwaterError, MissingError
from headwater.core.money import format_units
from headwater.gateway.wire import Scope, header

ENDPOINTS: Final = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)
Outcome = Literal["answered", "replayed", "failed", "left"]
Operation = Literal["chat", "text_completion", "embeddings", "generate_content"]
OPERATIONS: Final[Mapping[str, Operation]] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "generate_content",
    "/v1/embeddings": "embeddings",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one call; no prompt, no answer, no key."""

    route: str  # a template
    model: str
    provider: str  # ``headwater`` for a model in process, else the upstream's name
    outcome: Outcome
    status: int
    began_ns: int  # wall clock
    ended_ns: int
    first_ns: int | None = None  # when the first piece of the answer left
    call_id: str | None = None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    stream: bool = False
    price: str | None = None
    currency: str | None = None
    error: str | None = None  # a code
    traceparent: str | None = None


Observer = Callable[[Seen], None]


class Asked(Protocol):
    """What is needed of a request."""

    @property
    def path(self) -> str:
        """Its route."""
        ...

    def header(self, name: bytes) -> bytes | None:
        """A header of it."""
        ...


class Cost(Protocol):
    """What a call used."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer."""
        ...

    @property
    def price_units(self) -> int:
        """Nano units."""
        ...


@dataclass(frozen=True, slots=True)
class LocalCost:
    """What a call of a model in process used."""

    prompt_tokens: int
    completion_tokens: int
    price_units: int


class ScopeAsked:
    """A request as an ASGI server read it."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    @property
    def path(self) -> str:
        """Its route."""
        path: str = self._scope["path"]
        return path

    def header(self, name: bytes) -> bytes | None:
        """A header of it."""
        return header(self._scope, name)


class Watched:
    """One call as it is seen on its way; told once, when it ends."""

    __slots__ = ("_asked", "_observer", "_seen", "provider")

    def __init__(self, observer: Observer, asked: Asked, model: str, provider: str = "headwater") -> None:
        self._observer, self._asked, self.provider = observer, asked, provider
        given = _trace_of(asked)
        self._seen: Seen | None = Seen(asked.path, model, "", "failed", 0, time.time_ns(), 0, traceparent=given)

    def begun(self, stream: bool) -> None:
        """The first piece of the answer is ready."""
        if self._seen is not None:
            self._seen = replace(self._seen, first_ns=time.time_ns(), stream=stream)

    def charged(self, call_id: str, cost: Cost, currency: str) -> None:
        """What it used and costs is known."""
        if self._seen is not None:
            self._seen = replace(
                self._seen,
                call_id=call_id,
                prompt_tokens=cost.prompt_tokens,
                answer_tokens=cost.completion_tokens,
                price=format_units(cost.price_units),
                currency=currency,
            )

    def ended(self, outcome: Outcome, status: int, error: str | None = None) -> None:
        """It came to its end; what is said after that is not told."""
        seen, self._seen = self._seen, None
        if seen is not None:
            self._observer(
                replace(
                    seen, outcome=outcome, status=status, error=error, provider=self.provider, ended_ns=time.time_ns()
                )
            )


def _trace_of(asked: Asked) -> str | None:
    try:
        given = asked.header(b"traceparent")
    except HeadwaterError:  # sent twice: nobody's trace
        return None
    return given.decode("ascii", "replace") if given is not None and len(given) <= 128 else None


@dataclass(frozen=True, slots=True)
class Tracing:
    """An observer of calls, and what ends it."""

    observe: Observer
    close: Callable[[], None]  # sends what is left; bounded in time


def tracing(environment: Mapping[str, str] | None = None, *, worker: str = "") -> Tracing | None:
    """What the environment asks for, or None when it names no collector or turns telemetry off.

    Args:
        worker: the name of this process, where there are several; spans and metrics carry it.

    Raises:
        MissingError: ``opentelemetry_missing``: a collector is named and the packages are not installed.
    """
    given = os.environ if environment is None else environment
    if not any(given.get(name) for name in ENDPOINTS) or given.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingError(
            f"{error.name} is not installed, and the environment names a collector",
            code="opentelemetry_missing",
            fix="pip install 'headwater[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT",
        ) from None
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    return observer_of(BatchSpanProcessor(OTLPSpanExporter()), reader, worker)


def observer_of(processor: Any, reader: Any, worker: str = "") -> Tracing:
    """An observer over a span processor and a metric reader of the OpenTelemetry SDK."""
    from opentelemetry import trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    named = {"service.instance.id": worker} if worker else {}
    resource = Resource.create({"service.name": "headwater", "service.version": __version__, **named})
    spans = TracerProvider(resource=resource)
    spans.add_span_processor(processor)
    meters = MeterProvider(metric_readers=[reader], resource=resource)
    tracer, meter = spans.get_tracer(telemetry.SCOPE, __version__), meters.get_meter(telemetry.SCOPE, __version__)
    tokens = meter.create_histogram(
        telemetry.TOKEN_USAGE,
        unit="{token}",
        description="Tokens of calls.",
        explicit_bucket_boundaries_advisory=telemetry.TOKEN_BUCKETS,
    )
    seconds, first = (
        meter.create_histogram(
            name, unit="s", description=text, explicit_bucket_boundaries_advisory=telemetry.SECOND_BUCKETS
        )
        for name, text in (
            (telemetry.REQUEST_SECONDS, "Time from a call's head to the end of its answer."),
            (telemetry.FIRST_TOKEN_SECONDS, "Time from a call's head to the first piece of its answer."),
        )
    )
    continued = TraceContextTextMapPropagator()

    def observe(seen: Seen) -> None:
        about = _about(seen)
        parent = continued.extract({"traceparent": seen.traceparent}) if seen.traceparent else None
        outer = tracer.start_span(
            f"POST {seen.route}",
            context=parent,
            kind=SpanKind.SERVER,
            start_time=seen.began_ns,
            attributes={
                telemetry.HTTP_METHOD: "POST",
                telemetry.HTTP_ROUTE: seen.route,
                telemetry.HTTP_STATUS: seen.status,
            },
        )
        inner = tracer.start_span(
            f"{about[telemetry.OPERATION]} {seen.model}",
            context=trace.set_span_in_context(outer),
            kind=SpanKind.CLIENT,
            start_time=seen.began_ns,
            attributes={**about, **_detail(seen)},
        )
        if seen.first_ns is not None:
            inner.add_event("first_token", timestamp=seen.first_ns)
            first.record((seen.first_ns - seen.began_ns) / 1e9, about)
        if seen.error is not None:
            inner.set_status(StatusCode.ERROR, seen.error)
            if seen.status >= 500:
                outer.set_status(StatusCode.ERROR, seen.error)
        inner.end(seen.ended_ns)
        outer.end(seen.ended_ns)
        named = about if seen.error is None else {**about, telemetry.ERROR: seen.error}
        seconds.record((seen.ended_ns - seen.began_ns) / 1e9, named)
        for kind, count in (("input", seen.prompt_tokens), ("output", seen.answer_tokens)):
            if count is not None:
                tokens.record(count, {**about, telemetry.TOKEN_TYPE: kind})

    def close() -> None:
        spans.shutdown()
        meters.shutdown(timeout_millis=5_000)

    return Tracing(observe, close)


def _about(seen: Seen) -> dict[str, str]:
    return {
        telemetry.OPERATION: OPERATIONS.get(seen.route, "chat"),
        telemetry.PROVIDER: seen.provider,
        telemetry.REQUEST_MODEL: seen.model,
    }


def _detail(seen: Seen) -> dict[str, str | int | bool]:
    found: dict[str, str | int | bool | None] = {
        telemetry.REQUEST_STREAM: seen.stream,
        telemetry.RESPONSE_ID: seen.call_id,
        telemetry.INPUT_TOKENS: seen.prompt_tokens,
        telemetry.OUTPUT_TOKENS: seen.answer_tokens,
        telemetry.OUTCOME: seen.outcome,
        telemetry.PRICE: seen.price,
        telemetry.CURRENCY: seen.currency,
        telemetry.ERROR: seen.error,
    }
    return {name: value for name, value in found.items() if value is not None}
