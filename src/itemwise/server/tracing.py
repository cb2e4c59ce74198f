"""OpenTelemetry traces: a span for each scored request and one for each of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.types import Scope

from itemwise import __version__
from itemwise.errors import ConfigError
from itemwise.server.record import Record

Tracer = Callable[[Record, Scope], None]


def make_tracer(endpoint: str) -> Tracer:
    """A function that sends traces by OTLP over HTTP and continues a client's `traceparent`.

    Raises:
        ConfigError: the `otel` extra is not installed.
    """
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError as error:
        raise ConfigError(
            "`otlp_traces_endpoint` is set but OpenTelemetry is not installed; pip install "
            "'.[otel]' in Itemwise's folder"
        ) from error
    resource = Resource.create({"service.name": "itemwise", "service.version": __version__})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    tracer = provider.get_tracer("itemwise", __version__)
    propagator = TraceContextTextMapPropagator()

    def send(record: Record, scope: Scope) -> None:
        if record.path != "/v1/score":
            return
        carrier = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        end = time.time_ns()
        start = end - int(record.seconds() * 1e9)
        span = tracer.start_span(
            "POST /v1/score",
            context=propagator.extract(carrier),
            kind=trace.SpanKind.SERVER,
            start_time=start,
            attributes={
                "http.response.status_code": record.status,
                "itemwise.code": record.code,
                "itemwise.request_id": record.request_id,
                "itemwise.items": record.items,
                "itemwise.tokens": record.tokens,
                "itemwise.cached_tokens": record.cached_tokens,
            },
        )
        inside, at = trace.set_span_in_context(span), start
        for name, seconds in record.stages.items():
            until = at + int(seconds * 1e9)
            tracer.start_span(name, context=inside, start_time=at).end(until)
            at = until
        span.end(end)

    return send
