"""Arrivals through a router and replicas, event by event: latency and hit rate without a device.

Each replica runs the real scheduler, batcher, step packer and page cache; the router is the policy
that `routing.py` gives to any load balancer. What is simulated is time: that of steps (`StepCost`),
and nothing else. Equal arguments give equal results.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from itemwise.capacity.replica import EngineShape, Replica
from itemwise.capacity.step_cost import StepCost
from itemwise.engine.scheduler import Job
from itemwise.routing import Policy, query_key
from itemwise.types import ScoreRequest


@dataclass(frozen=True)
class Arrival:
    """A request and when it comes, in seconds from the start."""

    at: float
    request: ScoreRequest


@dataclass(frozen=True)
class Answer:
    """What became of an arrival.

    Attributes:
        at: when it came.
        replica: the place of the replica that took it.
        items: items scored.
        seconds: until it was answered.
        queue_s: the part of them before the engine took it in.
    """

    at: float
    replica: int
    items: int
    seconds: float
    queue_s: float


@dataclass(frozen=True)
class SimulatedRun:
    """A run of some replicas.

    Attributes:
        answers: of all arrivals, in the order of arrivals.
        seconds: from the first arrival to the last answer.
        query_tokens: tokens of all queries.
        shared_tokens: of these, tokens whose pages were found and not computed.
        computed_tokens: tokens computed, of queries and items.
        evictions: pages given up for room.
        busy: of each replica, the share of the time that its device ran steps.
    """

    answers: list[Answer]
    seconds: float
    query_tokens: int
    shared_tokens: int
    computed_tokens: int
    evictions: int
    busy: list[float]

    @property
    def hit_rate(self) -> float:
        """The share of query tokens that were found and not computed."""
        return self.shared_tokens / max(1, self.query_tokens)

    def latency_ms(self, *percentiles: float, after_s: float = 0.0) -> list[float]:
        """Percentiles of the latency of requests that came after a time, in milliseconds."""
        seconds = [answer.seconds for answer in self.answers if answer.at >= after_s]
        return [float(value) * 1e3 for value in np.percentile(seconds, percentiles)]

    @property
    def items_per_s(self) -> float:
        """Items scored per second."""
        return sum(answer.items for answer in self.answers) / self.seconds


class _Events:
    """What happens when, the earliest first; at one time, in the order of adding."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Replica]] = []
        self._order = count()

    def add(self, at: float, replica: Replica) -> None:
        heapq.heappush(self._heap, (at, next(self._order), replica))

    def until(self, at: float) -> Iterator[tuple[float, Replica]]:
        """Takes out what happens up to a time, including what is added meanwhile."""
        while self._heap and self._heap[0][0] <= at:
            when, _, replica = heapq.heappop(self._heap)
            yield when, replica


def simulate(
    arrivals: Iterable[Arrival],
    replicas: int,
    policy: Policy,
    engine: EngineShape,
    cost: StepCost,
) -> SimulatedRun:
    """Sends arrivals, in the order of their time, to replicas that a policy chooses.

    The policy sees the requests that each replica has at the moment. A query's key is that of its
    tokens.
    """
    fleet = [Replica(f"replica-{number}", engine, cost) for number in range(replicas)]
    names, events, sent = [one.name for one in fleet], _Events(), list[tuple[Arrival, int, Job]]()
    for arrival in arrivals:
        _advance(events, arrival.at)
        key = query_key(arrival.request.query) if len(arrival.request.query) else None
        place = policy.choose(key, names, [one.num_under_way for one in fleet])
        chosen = fleet[place]
        sent.append((arrival, place, chosen.submit(arrival.at, arrival.request)))
        _go_on(chosen, arrival.at, events)
    _advance(events, float("inf"))
    return _result(fleet, sent, cost)


def _advance(events: _Events, at: float) -> None:
    for now, replica in events.until(at):
        replica.end(now)
        _go_on(replica, now, events)


def _go_on(replica: Replica, now: float, events: _Events) -> None:
    if replica.can_begin:
        events.add(replica.begin(now), replica)


def _result(
    fleet: Sequence[Replica], sent: Sequence[tuple[Arrival, int, Job]], cost: StepCost
) -> SimulatedRun:
    answers, shared = list[Answer](), 0
    for arrival, place, job in sent:
        assert job.future.done(), "a request never ended"
        scored = job.future.result()  # raises what the engine raised
        shared += job.work.cached_tokens
        seconds = scored.total_s + cost.overhead_s
        items = len(arrival.request.items)
        answers.append(Answer(arrival.at, place, items, seconds, scored.queue_s))
    first = answers[0].at if answers else 0.0
    seconds = max((answer.at + answer.seconds for answer in answers), default=0.0) - first
    return SimulatedRun(
        answers,
        seconds,
        sum(len(arrival.request.query) for arrival, _, _ in sent),
        shared,
        sum(one.core.counters.num_tokens for one in fleet),
        sum(one.core.batcher.cache.evictions for one in fleet),
        [one.core.programs.busy_s / max(seconds, 1e-9) for one in fleet],
    )
