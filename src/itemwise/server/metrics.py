"""What `/metrics` shows, in Prometheus' text format.

Counts that the scheduler and the engine keep anyway are read when `/metrics` is requested; only
histograms cost time while requests run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from itemwise import __version__
from itemwise.dialects.table import by_path
from itemwise.engine.scheduler import Scheduler
from itemwise.server.record import STAGES, Record
from itemwise.server.service import Service
from itemwise.types import StepStats

CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # type: ignore[no-untyped-call]  # no creation time of each series
# 1 ms to 60 s, each some 2.15 times the one before.
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0),
)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_PATHS = {
    *by_path(),
    *("/health", "/health_generate", "/live", "/metrics", "/v1/models", "/flush_cache"),
    *("/server_info", "/get_server_info", "/model_info", "/get_model_info"),
}


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._service = service

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"itemwise_{name}", text, labels, registry=self._registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            full = f"itemwise_{name}"
            return Histogram(full, text, labels, buckets=buckets, registry=self._registry)

        self._received = counter("http_requests_received", "Requests received.", "path")
        self._answered = counter(
            "http_requests", "Requests ended, by status and code.", "path", "status", "code"
        )
        self._active = Gauge(
            "itemwise_http_requests_active", "Requests in the server.", registry=self._registry
        )
        self._seconds = histogram(
            "request_seconds", "Time of a scored request in the server.", SECONDS
        )
        stage = histogram("stage_seconds", "Time of a scored request by stage.", SECONDS, "stage")
        self._stages = {name: stage.labels(name) for name in STAGES}
        self._items = histogram("request_items", "Items of a scored request.", COUNTS)
        self._step_seconds = histogram("step_seconds", "Time of a step.", SECONDS)
        self._step_lanes = histogram(
            "step_lane_share",
            "Token places of used lanes, as a share of the largest step (packed: of the padded "
            "sequence).",
            SHARES,
        )
        self._step_tokens = histogram(
            "step_token_share",
            "Tokens, as a share of the token places of the largest step (packed: of the padded "
            "sequence).",
            SHARES,
        )
        self._registry.register(_Snapshot(service))
        ProcessCollector(registry=self._registry)

    def on_start(self, record: Record) -> None:
        """Counts a request that arrived."""
        self._received.labels(_path(record)).inc()
        self._active.inc()

    def on_end(self, record: Record) -> None:
        """Counts a request that ended."""
        # No status was sent: the client had left.
        status = record.status or 499
        self._answered.labels(_path(record), str(status), record.code).inc()
        self._active.dec()
        if record.items and record.code == "ok":
            self._seconds.observe(record.seconds())
            self._items.observe(record.items)
            for name, seconds in record.stages.items():
                self._stages[name].observe(seconds)

    def on_step(self, step: StepStats) -> None:
        """Counts a finished step. Called on the engine's thread."""
        self._step_seconds.observe(step.seconds)
        self._step_tokens.observe(step.token_share)
        self._step_lanes.observe(step.lane_share)

    def text(self) -> bytes:
        """All metrics, in the text format."""
        return generate_latest(self._registry)


def _path(record: Record) -> str:
    """The path, or `other`: clients must not be able to create labels."""
    return record.path if record.path in _PATHS else "other"


class _Snapshot(Collector):
    """The counts of the service, its scheduler and its engine."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """The current counts."""
        service = self._service
        state = GaugeMetricFamily("itemwise_state", "1 for the current state.", labels=["state"])
        for name in ("loading", "ready", "failed", "draining"):
            state.add_metric([name], float(service.state == name))
        yield state
        build = GaugeMetricFamily("itemwise_build", "Always 1.", labels=["version", "model"])
        build.add_metric([__version__, service.config.public_model_name], 1)
        yield build
        if service.scheduler is not None:
            yield from _of_scheduler(service.scheduler)
        if service.scorer is not None:
            yield from _of_engine(service.scorer.info())


def _of_scheduler(scheduler: Scheduler) -> Iterator[Metric]:
    counters, backlog = scheduler.counters(), scheduler.backlog()
    yield CounterMetricFamily(
        "itemwise_scores_received", "Requests submitted to the scheduler.", counters.received
    )
    ended = CounterMetricFamily(
        "itemwise_scores_ended", "Requests ended in the scheduler, by outcome.", labels=["outcome"]
    )
    for name in ("finished", "failed", "refused", "cancelled", "expired"):
        ended.add_metric([name], getattr(counters, name))
    yield ended
    for name, text, value in (
        ("queue_requests", "Waiting requests.", counters.queued),
        ("open_requests", "Requests that the engine works on.", counters.running),
        ("queue_tokens", "Remaining tokens of waiting and open requests.", backlog.tokens),
        ("queue_oldest_seconds", "Age of the oldest waiting request.", backlog.oldest_s),
        ("tokens_per_second", "Recent throughput while busy.", backlog.tokens_per_s),
    ):
        yield GaugeMetricFamily(f"itemwise_{name}", text, value)


def _of_engine(info: dict[str, Any]) -> Iterator[Metric]:
    pages = info.get("pages", {})
    for name, text, value in (
        ("steps", "Steps run.", info.get("steps")),
        ("failed_steps", "Steps that failed.", info.get("failed_steps")),
        ("items", "Items scored.", info.get("scored_items")),
        ("computed_tokens", "Tokens computed.", info.get("computed_tokens")),
        (
            "shared_tokens",
            "Query tokens found in the cache, so not computed.",
            info.get("shared_tokens"),
        ),
        ("page_hits", "Pages found in the cache.", pages.get("hits")),
        ("page_misses", "Pages computed.", pages.get("misses")),
        ("page_evictions", "Pages evicted for lack of room.", pages.get("evictions")),
        (
            "compiles",
            "Programs compiled after start-up; should stay 0.",
            info.get("compiled_since_ready"),
        ),
    ):
        if value is not None:
            yield CounterMetricFamily(f"itemwise_{name}", text, value)
    verdict = info.get("self_check", {}).get("status")
    yield GaugeMetricFamily(
        "itemwise_self_check_passed",
        "1 if the self-check at start-up passed.",
        float(verdict == "passed"),
    )
    if pages:
        gauge = GaugeMetricFamily("itemwise_pages", "Pages by state.", labels=["state"])
        used = pages["total"] - pages["available"]
        gauge.add_metric(["used"], used)
        gauge.add_metric(["available"], pages["available"])
        gauge.add_metric(["cached"], pages["cached"])
        yield gauge
