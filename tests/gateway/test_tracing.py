"""Traces and metrics: GenAI names, one generation span a call, continued traces, and a collector that may be gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import openai
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from headwater.gateway.tracing import ENDPOINTS, Seen, observer_of, tracing
from toy import upstream as scripted
from toy.desk import open_desk

SEEN = Seen(
    "/v1/chat/completions",
    "qwen",
    "local",
    "answered",
    200,
    1_000_000_000,
    3_000_000_000,
    first_ns=1_500_000_000,
    call_id="call_1",
    prompt_tokens=12,
    answer_tokens=48,
    stream=True,
    price="0.002",
    currency="USD",
)


class Collector(ThreadingHTTPServer):
    """Takes what is exported to it over OTLP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taker)
        self.taken: dict[str, list[bytes]] = {}


class _Taker(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        self.server.taken.setdefault(self.path, []).append(raw)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the environment names."""
    server = Collector()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    yield server
    server.shutdown()
    server.server_close()


def test_a_call_is_a_server_span_around_a_generation() -> None:
    """Names, kinds, usage and times are the conventions'; a given trace is continued."""
    exporter = InMemorySpanExporter()
    watch = observer_of(SimpleSpanProcessor(exporter), InMemoryMetricReader())

    watch.observe(replace(SEEN, traceparent="00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"))

    inner, outer = exporter.get_finished_spans()
    assert (outer.name, outer.kind.name, inner.name, inner.kind.name) == (
        *("POST /v1/chat/completions", "SERVER"),
        *("chat qwen", "CLIENT"),
    )
    assert f"{outer.context.trace_id:032x}" == "ab" * 16
    assert f"{outer.parent.span_id:016x}" == "cd" * 8
    assert inner.parent.span_id == outer.context.span_id
    assert (inner.attributes["gen_ai.usage.input_tokens"], inner.attributes["gen_ai.usage.output_tokens"]) == (12, 48)
    assert inner.attributes["gen_ai.provider.name"] == "local"
    assert (inner.start_time, inner.end_time) == (SEEN.began_ns, SEEN.ended_ns)


def test_failures_are_errors_by_their_code() -> None:
    """A caller's mistake is an error of the generation only, ours of the request too."""
    exporter = InMemorySpanExporter()
    watch = observer_of(SimpleSpanProcessor(exporter), InMemoryMetricReader())

    watch.observe(replace(SEEN, outcome="failed", status=400, error="request_invalid", first_ns=None))
    watch.observe(replace(SEEN, outcome="failed", status=502, error="upstream_unreachable", first_ns=None))

    codes = [span.status.status_code.name for span in exporter.get_finished_spans()]
    assert codes == ["ERROR", "UNSET", "ERROR", "ERROR"]


def test_histograms_count_tokens_and_seconds() -> None:
    """Usage and time are recorded by operation, model and provider."""
    reader = InMemoryMetricReader()
    watch = observer_of(SimpleSpanProcessor(InMemorySpanExporter()), reader)
    watch.observe(SEEN)
    watch.observe(SEEN)

    metrics = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
    sums = {
        (metric.name, point.attributes.get("gen_ai.token.type")): (point.count, point.sum)
        for metric in metrics
        for point in metric.data.data_points
    }
    assert sums == {
        ("gen_ai.client.token.usage", "input"): (2, 24),
        ("gen_ai.client.token.usage", "output"): (2, 96),
        ("gen_ai.server.request.duration", None): (2, 4.0),
        ("gen_ai.server.time_to_first_token", None): (2, 1.0),
    }


def test_spans_and_metrics_reach_a_collector(collector: Collector) -> None:
    """What the standard variables name receives both over HTTP when the gateway ends."""
    watch = tracing()
    assert watch is not None
    watch.observe(SEEN)
    watch.close()

    spans = ExportTraceServiceRequest.FromString(collector.taken["/v1/traces"][0])
    metrics = ExportMetricsServiceRequest.FromString(collector.taken["/v1/metrics"][0])
    names = [span.name for r in spans.resource_spans for s in r.scope_spans for span in s.spans]
    assert sorted(names) == ["POST /v1/chat/completions", "chat qwen"]
    assert {m.name for r in metrics.resource_metrics for s in r.scope_metrics for m in s.metrics} >= {
        "gen_ai.client.token.usage"
    }


def test_a_collector_that_is_gone_costs_a_call_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observing is quick while nobody listens."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    watch = tracing()
    assert watch is not None
    began = time.thread_time()
    for _ in range(200):
        watch.observe(SEEN)
    assert time.thread_time() - began < 2.0


@pytest.mark.parametrize(
    "environment", [{}, {ENDPOINTS[0]: ""}, {ENDPOINTS[0]: "http://c", "OTEL_SDK_DISABLED": "true"}]
)
def test_without_a_collector_nothing_is_observed(environment: dict[str, str]) -> None:
    """Off unless it is asked for."""
    assert tracing(environment) is None


def test_every_call_of_a_gateway_is_seen_once(tmp_path: Path) -> None:
    """Plain, streamed, failed and in process: each is one generation, with what it used and cost, and no text."""
    seen: list[Seen] = []
    with scripted.upstream() as server:
        named = f'[upstream.a]\nbase_url = "{server.url}"\n[model."one"]\nrequest_price = "0.001"\n'
        named += 'targets = [{ upstream = "a", model = "one" }]\n'
        with open_desk(tmp_path / "home", upstreams=named) as desk:
            desk.app.metrics.observer = seen.append
            trace = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"
            client, said = desk.client(), [{"role": "user", "content": "a secret word"}]
            own = next(name for name in desk.app.model_names if name != "one")
            for model in ("one", own):
                client.chat.completions.create(
                    model=model,
                    messages=said,
                    extra_headers={"traceparent": trace},
                )
                list(client.chat.completions.create(model=model, messages=said, stream=True))
            desk.settled()

    assert [(s.model, s.provider, s.outcome, s.stream) for s in seen] == [
        *(("one", "a", "answered", False), ("one", "a", "answered", True)),
        *((own, "headwater", "answered", False), (own, "headwater", "answered", True)),
    ]
    assert all(s.price is not None and s.call_id and s.prompt_tokens and s.answer_tokens for s in seen)
    assert [s.first_ns is not None for s in seen] == [False, True, False, True]
    assert [s.traceparent is not None for s in seen] == [True, False, True, False]
    assert "secret" not in repr(seen)


def test_a_call_that_no_upstream_takes_is_a_failed_generation(tmp_path: Path) -> None:
    """Its code says why, and it has no price."""
    seen: list[Seen] = []
    named = '[upstream.a]\nbase_url = "http://127.0.0.1:9/v1"\n[model."one"]\n'
    named += 'targets = [{ upstream = "a", model = "one" }]\n'
    with open_desk(tmp_path / "home", upstreams=named) as desk:
        desk.app.metrics.observer = seen.append
        with pytest.raises(openai.APIStatusError):
            desk.client().chat.completions.create(model="one", messages=[{"role": "user", "content": "x"}])

    (one,) = seen
    assert (one.outcome, one.price, one.status >= 500) == ("failed", None, True)
    assert one.error
