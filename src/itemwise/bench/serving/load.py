"""Load for a running server: which clients send requests, and when."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence

import orjson

from itemwise.bench.serving.client import Address, Client, Reply
from itemwise.bench.serving.traffic import Run, Sample, Workload

NO_ANSWER = "no_answer"  # the connection broke or could not be opened


async def closed_loop(
    address: Address, workload: Workload, clients: int, numbers: Sequence[int], seconds: float
) -> Run:
    """Clients that each send a request, wait for its answer, and send the next.

    Args:
        address: of the server.
        workload: their requests.
        clients: how many.
        numbers: requests to send, at most.
        seconds: time after which no new one is sent.
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
    """Requests at random times, `rate` per second on average, without waiting for answers.

    Latency counts from the time when a request was due, so that a slow server cannot hide it.

    Args:
        address: of the server.
        workload: the requests.
        rate: requests per second; gaps are exponential, as between independent clients.
        numbers: requests to send, at most.
        seconds: time after which no new one is sent.
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
    """Sends one request, whose latency counts from `due`, by `perf_counter`."""
    try:
        reply = await client.request("POST", "/v1/score", body)
    except (OSError, EOFError):
        return Sample(number, NO_ANSWER, time.perf_counter() - due)
    return read_sample(number, reply, time.perf_counter() - due)


def read_sample(number: int, reply: Reply, seconds: float) -> Sample:
    """The sample of an answer."""
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
) -> int:
    """Scored requests whose bits differ from those of each item scored alone, one at a time."""
    client, wrong = Client(address), 0
    for sample in samples:
        body = workload.body(sample.number)
        alone = []
        for item in body["items"]:
            fields = orjson.dumps({**body, "items": [item]})
            found = await ask(client, sample.number, fields, time.perf_counter())
            alone.append(found.scores[0] if found.code == "ok" else found.code)
        wrong += alone != sample.scores
    client.close()
    return wrong


async def every(seconds: float, stop: asyncio.Event, do: Callable[[], Awaitable[None]]) -> None:
    """Calls a function at intervals until `stop` is set."""
    while not stop.is_set():
        await do()
        try:
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            continue
