"""Requests to a server or a scheduler, and their outcomes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Workload:
    """Requests by number: equal numbers are equal requests.

    Attributes:
        vocab_size: number of ids to draw from.
        num_items: items of a request.
        item_tokens: tokens of each item.
        query_tokens: tokens of the query.
        shared: share of requests that have the same query; each of the others has its own.
        labels: labels of every item.
        apply_softmax: softmax over them.
        seed: of the ids.
    """

    vocab_size: int
    num_items: int = 10
    item_tokens: int = 20
    query_tokens: int = 300
    shared: float = 0.5
    labels: tuple[int, ...] = (0, 1)
    apply_softmax: bool = True
    seed: int = 0

    def body(self, number: int) -> dict[str, Any]:
        """The fields of request `number`."""
        rng = random.Random(f"{self.seed}/{number}")
        is_shared = int((number + 1) * self.shared) > int(number * self.shared)
        query = random.Random(f"{self.seed}/shared") if is_shared else rng

        def draw(source: random.Random, count: int) -> list[int]:
            return [source.randrange(self.vocab_size) for _ in range(count)]

        return {
            "query": draw(query, self.query_tokens),
            "items": [draw(rng, self.item_tokens) for _ in range(self.num_items)],
            "label_token_ids": list(self.labels),
            "apply_softmax": self.apply_softmax,
        }


@dataclass(frozen=True)
class Sample:
    """The outcome of one request.

    Attributes:
        number: its number in the workload.
        code: `ok`, or the name of the error.
        seconds: from when it was due (open loop) or sent (closed loop) until its answer arrived.
        items: items scored.
        scores: as received.
        engine_s: time in the queue and the engine, as reported by the server.
        server_s: time in the server, as reported by it.
    """

    number: int
    code: str
    seconds: float
    items: int = 0
    scores: Any = None
    engine_s: float = 0.0
    server_s: float = 0.0


@dataclass
class Run:
    """Requests of one kind of load.

    Attributes:
        offered_per_s: requests per second that were due; None if clients wait for answers.
        clients: connections that wait for answers; None in an open loop.
        seconds: from the first request to the last answer.
        samples: the outcome of each.
    """

    offered_per_s: float | None
    clients: int | None
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Rates, percentiles of the latency of scored requests in ms, and answers by code."""
        scored = [s for s in self.samples if s.code == "ok"]
        summary: dict[str, Any] = {
            "offered_per_s": self.offered_per_s,
            "clients": self.clients,
            "seconds": self.seconds,
            "requests": len(self.samples),
            "achieved_per_s": len(scored) / self.seconds,
            "items_per_s": sum(s.items for s in scored) / self.seconds,
            "codes": dict(Counter(s.code for s in self.samples)),
        }
        for name, values in (
            ("latency_ms", [s.seconds for s in scored]),
            ("overhead_ms", [s.seconds - s.engine_s for s in scored]),
            ("server_overhead_ms", [s.server_s - s.engine_s for s in scored]),
        ):
            if values:
                p50, p95, p99 = np.percentile(values, (50, 95, 99)) * 1e3
                summary[name] = {"p50": float(p50), "p95": float(p95), "p99": float(p99)}
        return summary
