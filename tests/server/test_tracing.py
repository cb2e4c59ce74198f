"""Traces of scored requests, in OpenTelemetry's own memory exporter."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.trace import ReadableSpan, export
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from itemwise import __version__
from itemwise.config import ServerConfig
from itemwise.errors import ConfigError
from itemwise.server.record import STAGES, Record
from itemwise.server.tracing import make_tracer
from tests.server.fakes import GOOD, FakeScorer, get, post, running_server, wait_until

ENDPOINT = "http://collector.invalid:4318/v1/traces"
TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TRACEPARENT = f"00-{TRACE:032x}-{PARENT:016x}-01"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Takes the place of the exporter to `ENDPOINT`, and gets each span as it ends."""

    def exporter(endpoint: str) -> InMemorySpanExporter:
        assert endpoint == ENDPOINT
        return made

    made = InMemorySpanExporter()
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", exporter)
    monkeypatch.setattr(export, "BatchSpanProcessor", export.SimpleSpanProcessor)
    return made


@pytest.fixture
def url(memory: InMemorySpanExporter) -> Iterator[str]:
    config = ServerConfig("org/fake-model", otlp_traces_endpoint=ENDPOINT)
    with running_server(config, FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


def root_and_stages(
    memory: InMemorySpanExporter,
) -> tuple[ReadableSpan, Sequence[ReadableSpan]]:
    """The span of the one request, which ends last, and those of its stages."""

    def ended() -> list[ReadableSpan]:
        return [span for span in memory.get_finished_spans() if span.kind == SpanKind.SERVER]

    wait_until(lambda: bool(ended()))  # the client may have its answer before
    *stages, root = memory.get_finished_spans()
    assert ended() == [root]
    return root, stages


def test_scored_request_is_a_span_in_the_trace_of_its_client(
    url: str, memory: InMemorySpanExporter
) -> None:
    headers = {"traceparent": TRACEPARENT, "X-Request-Id": "mine-1"}
    assert post(url, GOOD, headers).status_code == 200
    root, _ = root_and_stages(memory)
    assert root.name == "POST /v1/score"
    assert root.context is not None
    assert root.context.trace_id == TRACE
    assert root.parent is not None
    assert root.parent.span_id == PARENT
    assert root.attributes == {
        "http.response.status_code": 200,
        "itemwise.code": "ok",
        "itemwise.request_id": "mine-1",
        "itemwise.items": 3,
        "itemwise.tokens": 6,
        "itemwise.cached_tokens": 0,
    }
    assert root.resource.attributes["service.name"] == "itemwise"
    assert root.resource.attributes["service.version"] == __version__


def test_stages_follow_each_other_within_the_request(
    url: str, memory: InMemorySpanExporter
) -> None:
    post(url, GOOD)
    root, stages = root_and_stages(memory)
    assert root.parent is None
    assert root.context is not None
    assert tuple(stage.name for stage in stages) == STAGES
    assert {stage.parent.span_id if stage.parent else 0 for stage in stages} == {
        root.context.span_id
    }
    times = [root.start_time]
    for stage in stages:
        assert stage.start_time == times[-1]
        times.append(stage.end_time)
    times.append(root.end_time)
    assert times == sorted(time for time in times if time is not None)


def test_refused_request_has_its_code_and_the_stages_it_passed(
    url: str, memory: InMemorySpanExporter
) -> None:
    assert post(url, {**GOOD, "temperature": "hot"}).status_code == 400
    root, stages = root_and_stages(memory)
    assert root.attributes is not None
    assert root.attributes["http.response.status_code"] == 400
    assert root.attributes["itemwise.code"] == "invalid_temperature"
    assert [stage.name for stage in stages] == ["read"]


def test_only_score_requests_are_traced(url: str, memory: InMemorySpanExporter) -> None:
    get(f"{url}/health")
    get(f"{url}/v1/models")
    post(url, GOOD)
    root, stages = root_and_stages(memory)
    assert len(memory.get_finished_spans()) == 1 + len(stages)
    assert root.name == "POST /v1/score"


def test_spans_reach_a_collector_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass  # quiet

    bodies: list[bytes] = []
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # milliseconds
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            trace = make_tracer(f"http://127.0.0.1:{collector.server_port}/v1/traces")
            trace(Record("mine-2", "POST", "/v1/score", status=200), {"headers": []})
            wait_until(lambda: bool(bodies))
        finally:
            collector.shutdown()
            thread.join()
    assert b"POST /v1/score" in bodies[0]
    assert b"mine-2" in bodies[0]


def test_missing_libraries_are_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace.export", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[otel\]'"):
        make_tracer(ENDPOINT)
