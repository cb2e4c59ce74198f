"""Requests at random times: independent clients, and queries that come again."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from itemwise.bench.serving.arrivals import request_of
from itemwise.bench.serving.traffic import Workload
from itemwise.capacity.simulation import Arrival
from itemwise.errors import ConfigError
from itemwise.types import Int32Array, ScoreRequest, TokenLists


@dataclass(frozen=True)
class Load:
    """Requests of equal size from independent clients.

    Each is, with probability `repeat_share`, for the query of a request that came within the last
    `repeat_within_s` seconds, any of them alike; else for a new query. So some queries become
    popular, as in Simon's process (1955), and each is forgotten in time.

    Attributes:
        rate: requests per second.
        query_tokens: tokens of a query.
        num_items: items of a request.
        item_tokens: tokens of an item.
        repeat_share: share of requests for a query that came before.
        repeat_within_s: how long before.
    """

    rate: float
    query_tokens: int
    num_items: int
    item_tokens: int
    repeat_share: float = 0.0
    repeat_within_s: float = 60.0

    def __post_init__(self) -> None:
        problems = [
            f"`{name}` is {getattr(self, name):g}, expected above 0"
            for name in ("rate", "num_items", "item_tokens", "repeat_within_s")
            if not getattr(self, name) > 0
        ]
        if not 0 <= self.repeat_share <= 1:
            problems.append(f"`repeat_share` is {self.repeat_share:g}, expected 0 to 1")
        if problems:
            raise ConfigError("; ".join(problems))

    def arrivals(self, number: int, seed: int = 0) -> Iterator[Arrival]:
        """That many requests with exponential gaps. Items are alike: no time depends on them."""
        rng, now = random.Random(seed), 0.0
        recent, fresh = deque[tuple[float, Int32Array]](), self._queries()
        items = TokenLists.of([[1] * self.item_tokens] * self.num_items)
        labels = ((0, 1),) * self.num_items
        for _ in range(number):
            now += rng.expovariate(self.rate)
            while recent and recent[0][0] < now - self.repeat_within_s:
                recent.popleft()
            again = rng.random() < self.repeat_share and bool(recent)
            query = recent[rng.randrange(len(recent))][1] if again else next(fresh)
            recent.append((now, query))
            yield Arrival(now, ScoreRequest(query, items, labels, apply_softmax=True))

    def _queries(self) -> Iterator[Int32Array]:
        number = 0
        while True:
            query = np.full(self.query_tokens, number, np.int32)
            number += 1
            yield query


def replayed(workload: Workload, rate: float, number: int) -> Iterator[Arrival]:
    """The requests and times of `itemwise bench arrivals`, so that both can be compared."""
    gaps, now = random.Random(workload.seed), 0.0
    for each in range(number):
        now += gaps.expovariate(rate)
        yield Arrival(now, request_of(workload, each))
