"""Metrics of the front door, and those of replicas on one page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Scope

from itemwise.server.record import Record


class FrontMetrics:
    """What a front door counts.

    Attributes:
        registry: has them.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ended = Counter(
            "itemwise_front_requests",
            "Requests ended at the front door, by status and code.",
            ("status", "code"),
            registry=self.registry,
        )
        self._retried = Counter(
            "itemwise_front_retries",
            "Requests sent to a replica again, by why: `lost`, or the code of its error.",
            ("reason",),
            registry=self.registry,
        )
        self._retries = 0
        self._requests = 0

    def on_start(self, record: Record) -> None:
        """A request that arrived."""

    def on_end(self, record: Record, scope: Scope) -> None:
        """Counts a request that ended."""
        self._requests += 1
        status = record.status or 499  # no status was sent: the client had left
        self._ended.labels(str(status), record.code).inc()

    def on_retry(self, reason: str) -> None:
        """Counts a request that is sent to a replica again."""
        self._retries += 1
        self._retried.labels(reason).inc()

    def counts(self) -> dict[str, int]:
        """How many requests ended, and how often one was sent again."""
        return {"requests": self._requests, "retries": self._retries}


def merged(registry: CollectorRegistry, pages: Mapping[str, str]) -> bytes:
    """A page with the metrics of a registry, and those of pages with their names as a label.

    Args:
        registry: of the front door.
        pages: texts in Prometheus' format by the name of their replica.
    """
    families: dict[str, Metric] = {}
    for name, text in pages.items():
        for family in text_string_to_metric_families(text):
            kept = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, "replica": name}
                kept.add_sample(sample.name, labels, sample.value)
    everything = CollectorRegistry()
    for source in (registry, _Families(families.values())):
        everything.register(source)
    return generate_latest(everything)


class _Families:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterable[Any]:
        return self._families
