"""The soak: a long mixed load with disconnecting clients, bad requests and deadlines."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from itemwise.bench.serving.client import Address, Client, loopback_address
from itemwise.bench.serving.load import NO_ANSWER, ask, closed_loop, count_wrong, every
from itemwise.bench.serving.serve import server_info
from itemwise.bench.serving.traffic import Sample, Workload
from itemwise.errors import ConfigError

SETTLED_S = 60.0  # seconds after which memory counts as settled
MAX_GROWTH = 0.02
STUCK_S = 60.0
KEPT = 200  # answers whose bits are compared at the end


@dataclass
class _Soak:
    address: Address
    workload: Workload
    codes: Counter[str] = field(default_factory=Counter)
    kept: list[Sample] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, bytes


def run_soak(
    url: str, *, seconds: float, load: float, workload: dict[str, Any], out_json: Path | None
) -> bool:
    """Loads a running server for a long time and reports whether it stays healthy.

    Of ten requests, one is bad, one may miss its deadline, and one client disconnects.

    Args:
        url: of a server on this machine.
        seconds: duration.
        load: rate of requests, as a share of the throughput that 16 clients reach.
        workload: fields of `Workload`, without the vocabulary.
        out_json: file for all figures.

    Returns:
        Whether memory stayed within 2 % after the first minute, no request was stuck, all counters
        add up, and all compared bits were equal.

    Raises:
        ConfigError: the server is not on this machine, is not ready, or lacks a metric.
    """
    report = asyncio.run(_soak(loopback_address(url), seconds, load, workload))
    if out_json is not None:
        out_json.write_text(json.dumps(report, indent=2) + "\n")
    console = Console()
    for name, held in report["checks"].items():
        console.print(f"{'ok  ' if held else 'FAIL'} {name}")
    console.print(f"answers: {report['codes']}")
    console.print(f"memory after the first minute: {report['memory']['growth']:+.2%}")
    return all(report["checks"].values())


async def _soak(
    address: Address, seconds: float, load: float, fields: dict[str, Any]
) -> dict[str, Any]:
    info = await server_info(address)
    await read_metrics(address)  # if a metric is missing, fails now and not after the load
    workload = Workload(vocab_size=info["engine"]["model_config"]["vocab_size"], **fields)
    full = await closed_loop(address, workload, 16, range(100_000, 110_000), min(10.0, seconds))
    rate = load * len(full.samples) / full.seconds
    soak = _Soak(address, workload)
    stop, started = asyncio.Event(), time.perf_counter()

    async def note_memory() -> None:
        found = await read_metrics(address)
        soak.memory.append((time.perf_counter() - started, found.memory_bytes))

    watch = asyncio.create_task(every(5.0, stop, note_memory))
    tasks, rng, number, due = set[asyncio.Task[None]](), random.Random(0), 0, started
    while due - started < seconds:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(_one(soak, number, rng.random()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    stuck: set[asyncio.Task[None]] = set()
    if tasks:
        _, stuck = await asyncio.wait(tasks, timeout=STUCK_S)
    stop.set()
    await watch
    await asyncio.sleep(0.5)
    after = await read_metrics(address)
    soak.memory.append((time.perf_counter() - started, after.memory_bytes))
    wrong = await count_wrong(address, workload, soak.kept)
    growth = _growth(soak.memory)
    checks = {
        "no request is stuck": not stuck,
        "the queue is empty": after.waiting_requests + after.open_requests == 0,
        # Except for the request that reads the metrics.
        "received = answered": after.http_received == after.http_answered + 1,
        "scores received = ended": after.scores_received == after.scores_ended,
        "nothing failed": not set(soak.codes) & {"internal_error", NO_ANSWER},
        "pages are all free": after.used_pages == 0,
        f"{len(soak.kept)} answers have the bits of each item alone": bool(soak.kept)
        and wrong == 0,
        "memory grew by at most 2 % after the first minute": growth <= MAX_GROWTH,
    }
    return {
        "seconds": seconds,
        "offered_per_s": rate,
        "requests": number,
        "codes": dict(soak.codes),
        "memory": {"growth": growth, "samples": soak.memory},
        "checks": checks,
    }


async def _one(soak: _Soak, number: int, chance: float) -> None:
    client, body = Client(soak.address), soak.workload.body(number)
    if chance < 0.1:
        body["items"] = [*body["items"], "no ids"]
    elif chance < 0.2:
        body["timeout_s"] = 0.02
    elif chance < 0.3:
        try:
            await client.send("POST", "/v1/score", orjson.dumps(body))
            await asyncio.sleep(chance / 10)
        except OSError:
            pass
        client.close()
        soak.codes["left"] += 1
        return
    sample = await ask(client, number, orjson.dumps(body), time.perf_counter())
    soak.codes[sample.code] += 1
    if sample.code == "ok" and len(soak.kept) < KEPT:
        soak.kept.append(sample)
    client.close()


@dataclass(frozen=True)
class Metrics:
    """The metrics that the checks need."""

    waiting_requests: float
    open_requests: float
    http_received: float
    http_answered: float
    scores_received: float
    scores_ended: float
    used_pages: float
    memory_bytes: float


async def read_metrics(address: Address) -> Metrics:
    """The values of the server's `/metrics`.

    Raises:
        ConfigError: a metric is missing.
    """
    client = Client(address)
    text = (await client.request("GET", "/metrics")).body.decode()
    client.close()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]

    def total(name: str, **labels: str) -> float:
        found = [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]
        if not found:
            raise ConfigError(
                f"the server's /metrics has no `{name}`{f' with {labels}' if labels else ''}, "
                "which the soak needs; run both from the same version of Itemwise, on Linux"
            )
        return sum(found)

    return Metrics(
        waiting_requests=total("itemwise_queue_requests"),
        open_requests=total("itemwise_open_requests"),
        http_received=total("itemwise_http_requests_received_total"),
        http_answered=total("itemwise_http_requests_total"),
        scores_received=total("itemwise_scores_received_total"),
        scores_ended=total("itemwise_scores_ended_total"),
        used_pages=total("itemwise_pages", state="used"),
        memory_bytes=total("process_resident_memory_bytes"),
    )


def _growth(memory: list[tuple[float, float]]) -> float:
    """Growth of memory from the end of the first minute to the end, as a share."""
    settled = min(SETTLED_S, memory[-1][0] / 2)
    start = next(size for at, size in memory if at >= settled)
    end = float(np.median([size for _, size in memory[-5:]]))
    return end / start - 1
