"""Load for a running server: who asks for what and when, and what came of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from itemwise.bench.client import Address, Client, Reply

NO_ANSWER = "no_answer"  # the connection broke, or could not be made


@dataclass(frozen=True)
class Workload:
    """Requests by their number: equal numbers are equal requests.

    Attributes:
        vocab_size: ids are drawn from it.
        num_items: items of a request.
        item_tokens: tokens of each item.
        query_tokens: tokens of the query.
        shared: share of requests that have one query in common; each other has its own.
        labels: labels of every item.
        apply_softmax: softmax over them.
        seed: picks the ids.
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
    """What came of one request.

    Attributes:
        number: its number in the workload.
        code: `ok`, or what went wrong.
        seconds: from when it was due (open loop) or sent (closed loop) until its answer was there.
        items: items scored.
        scores: as they came.
        engine_s: time in the queue and the engine, as the server tells.
        server_s: time in the server, as the server tells.
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
        offered_per_s: requests a second that were due; None if clients wait for answers.
        clients: connections that wait for answers; None in an open loop.
        seconds: from the first request to the last answer.
        samples: what came of each.
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


async def closed_loop(
    address: Address, workload: Workload, clients: int, numbers: Sequence[int], seconds: float
) -> Run:
    """Clients that each send a request, wait for its answer, and send the next.

    Args:
        address: of the server.
        workload: what they ask for.
        clients: how many.
        numbers: requests to send, at most.
        seconds: after so many no new one is sent.
    """
    run, left = Run(None, clients), iter(numbers)
    bodies = {number: orjson.dumps(workload.body(number)) for number in numbers}
    started = time.perf_counter()

    async def one_client() -> None:
        client = Client(address)
        for number in left:
            if time.perf_counter() - started > seconds:
                break
            sent = time.perf_counter()
            run.samples.append(await ask(client, number, bodies[number], sent))
        client.close()

    await asyncio.gather(*(one_client() for _ in range(clients)))
    run.seconds = time.perf_counter() - started
    return run


async def open_loop(
    address: Address, workload: Workload, rate: float, numbers: Sequence[int], seconds: float
) -> Run:
    """Requests at random times, `rate` a second on average, whether answers come or not.

    A request's latency counts from when it was due, so that a slow server cannot hide.

    Args:
        address: of the server.
        workload: what is asked for.
        rate: requests a second; the gaps are exponential, as between customers.
        numbers: requests to send, at most.
        seconds: after so many no new one is sent.
    """
    run, gaps = Run(rate, None), random.Random(workload.seed)
    bodies = {number: orjson.dumps(workload.body(number)) for number in numbers}
    idle: list[Client] = []

    async def one(number: int, due: float) -> None:
        client = idle.pop() if idle else Client(address)
        run.samples.append(await ask(client, number, bodies[number], due))
        idle.append(client)

    started = due = time.perf_counter()
    tasks = []
    for number in numbers:
        due += gaps.expovariate(rate)
        if due - started > seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    for client in idle:
        client.close()
    run.seconds = time.perf_counter() - started
    return run


async def ask(client: Client, number: int, body: bytes, due: float) -> Sample:
    """Sends one request; `due` is when its time began, by `perf_counter`."""
    try:
        reply = await client.request("POST", "/v1/score", body)
    except (OSError, EOFError):
        return Sample(number, NO_ANSWER, time.perf_counter() - due)
    return read_sample(number, reply, time.perf_counter() - due)


def read_sample(number: int, reply: Reply, seconds: float) -> Sample:
    """What an answer says."""
    answer = orjson.loads(reply.body)
    if reply.status != 200:
        return Sample(number, str(answer["error"]["code"]), seconds)
    stages = {
        part.partition(";dur=")[0].strip(): float(part.partition(";dur=")[2]) / 1e3
        for part in reply.headers.get("server-timing", "").split(",")
        if ";dur=" in part
    }
    engine_s = sum(stages.get(name, 0.0) for name in ("queue", "prefill", "extend"))
    scores = answer["scores"]
    total = stages.get("total", 0.0)
    return Sample(number, "ok", seconds, len(scores), scores, engine_s, total)


async def count_wrong(
    address: Address,
    workload: Workload,
    samples: Sequence[Sample],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Scored requests whose bits differ from those of each item scored alone, one at a time."""
    client, wrong = Client(address), 0
    for done, sample in enumerate(samples):
        body = workload.body(sample.number)
        alone = []
        for item in body["items"]:
            fields = orjson.dumps({**body, "items": [item]})
            found = await ask(client, sample.number, fields, time.perf_counter())
            alone.append(found.scores[0] if found.code == "ok" else found.code)
        wrong += alone != sample.scores
        told(done + 1, len(samples))
    client.close()
    return wrong


async def every(seconds: float, stop: asyncio.Event, do: Callable[[], Awaitable[None]]) -> None:
    """Does something every so often until `stop` is set."""
    while not stop.is_set():
        await do()
        try:
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            continue
