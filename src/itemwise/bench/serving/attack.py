"""Small requests and probes beside clients that try to stop the server.

Each attack is what an ordinary client can do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console

from itemwise.bench.serving.client import Address, Client, loopback_address
from itemwise.bench.serving.load import NO_ANSWER, ask
from itemwise.bench.serving.serve import server_info
from itemwise.bench.serving.soak import read_metrics
from itemwise.bench.serving.traffic import Sample, Workload
from itemwise.errors import ConfigError

HEALTH_P99_S = 1.0
SMALL_P99_S = 2.0
MAX_GROWTH_BYTES = 128 * 1024 * 1024  # what the allocator may keep of bodies that are gone
SMALL = 32  # different small requests
SMALL_CLIENTS = 4
SETTLE_S = 20.0  # from the end of the attacks until memory is read
MIB = 1024 * 1024
_POST = b"POST /v1/score HTTP/1.1\r\nHost: a\r\n"
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
_GET = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class Attack:
    """What the attacks share, and what was measured meanwhile.

    Attributes:
        address: of the server.
        vocab_size: of its model.
        stop: set when the time is over.
        codes: answers to attacks, by attack and code.
    """

    address: Address
    vocab_size: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    codes: Counter[str] = field(default_factory=Counter)

    async def post(self, name: str, body: bytes) -> None:
        """One request, whose answer is read."""
        client = Client(self.address)
        sample = await ask(client, 0, body, 0.0)
        self.codes[f"{name}: {sample.code}"] += 1
        client.close()

    @asynccontextmanager
    async def connection(self, first: bytes) -> AsyncIterator[asyncio.StreamWriter]:
        """A raw connection; nobody reads what comes."""
        _, writer = await asyncio.open_connection(self.address.host, self.address.port, limit=1)
        try:
            writer.write(first)
            yield writer
        finally:
            writer.transport.abort()

    async def pause(self, seconds: float) -> None:
        """Sleeps, but not beyond the end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop.wait(), seconds)


async def slow_head(attack: Attack) -> None:
    """A head, a byte each second."""
    async with attack.connection(b"GET / HTTP/1.1\r\nX: ") as writer:
        while not attack.stop.is_set() and not writer.is_closing():
            writer.write(b"a")
            await attack.pause(1.0)


async def second_head(attack: Attack) -> None:
    """An answered request, then one byte, then silence."""
    async with attack.connection(_GET) as writer:
        await attack.pause(1.0)
        writer.write(b"G")
        await attack.pause(40.0)


async def stalled_body(attack: Attack) -> None:
    """A large body that never ends."""
    head = _POST + b"Content-Length: %d\r\n\r\n" % (50 * MIB)
    async with attack.connection(head) as writer:
        for _ in range(49):
            writer.write(bytes(MIB))
            await writer.drain()
        await attack.pause(20.0)


async def tiny_chunks(attack: Attack) -> None:
    """A body in chunks of one byte."""
    async with attack.connection(_CHUNKED) as writer:
        while not attack.stop.is_set():
            writer.write(b"1\r\na\r\n" * 1000)
            await writer.drain()


async def unread_answers(attack: Attack) -> None:
    """Requests whose answers are not read."""
    body = orjson.dumps(
        {
            "query": [1],
            "items": [[2]],
            "label_token_ids": list(range(min(attack.vocab_size, 50_000))),
        }
    )
    head = _POST + b"Content-Length: %d\r\n\r\n" % len(body)
    async with attack.connection((head + body) * 3):
        await attack.pause(30.0)


async def pipelined_probes(attack: Attack) -> None:
    """Thousands of probes in one packet, unread."""
    async with attack.connection(_GET * 5000):
        await attack.pause(5.0)


async def small_lists(attack: Attack) -> None:
    """Millions of lists in one body."""
    unit = b"[1],"
    items = unit * (20 * MIB // len(unit))
    body = b'{"query":[1],"label_token_ids":[1],"items":[' + items + b"[1]]}"
    await attack.post("small lists", body)
    await attack.pause(2.0)


async def nested(attack: Attack) -> None:
    """Brackets only."""
    await attack.post("nested", b'{"query":' + b"[" * MIB + b"]" * MIB + b"}")
    await attack.pause(1.0)


async def many_labels(attack: Attack) -> None:
    """A tiny request with as many labels as there are tokens."""
    labels = list(range(min(attack.vocab_size, 150_000)))
    fields = {"query": [1], "items": [[2]], "label_token_ids": labels, "timeout_s": 5.0}
    await attack.post("many labels", orjson.dumps({**fields, "apply_softmax": True}))


async def long_text(attack: Attack) -> None:
    """A text far beyond the model's limit."""
    fields = {"query": "word " * (2 * MIB), "items": ["b"], "labels": [" yes", " no"]}
    await attack.post("long text", orjson.dumps(fields))
    await attack.pause(1.0)


async def urgent(attack: Attack) -> None:
    """Requests that claim to be more urgent than all others, without a pause."""
    fields = {"query": [3, 4], "items": [[5] * 50] * 40, "label_token_ids": [1, 2]}
    await attack.post("urgent", orjson.dumps({**fields, "priority": -(2**31) + 1}))


async def leaving(attack: Attack) -> None:
    """A client that asks much and leaves."""
    body = orjson.dumps({"query": [7], "items": [[8] * 100] * 300, "label_token_ids": [1]})
    head = _POST + b"Content-Length: %d\r\n\r\n" % len(body)
    async with attack.connection(head + body):
        await attack.pause(0.2)


# What runs, and how many clients do it.
ATTACKS: dict[str, tuple[Callable[[Attack], Awaitable[None]], int]] = {
    "slow-head": (slow_head, 100),
    "second-head": (second_head, 300),
    "stalled-body": (stalled_body, 40),
    "tiny-chunks": (tiny_chunks, 4),
    "unread-answers": (unread_answers, 4),
    "pipelined-probes": (pipelined_probes, 2),
    "small-lists": (small_lists, 2),
    "nested": (nested, 1),
    "many-labels": (many_labels, 2),
    "long-text": (long_text, 2),
    "urgent": (urgent, 4),
    "leaving": (leaving, 4),
}


def run_attack(
    url: str, *, seconds: float, without: tuple[str, ...], out_json: Path | None
) -> bool:
    """Attacks a running server for a while and reports what others saw meanwhile.

    Args:
        url: of a server on this machine.
        seconds: duration.
        without: names in `ATTACKS` to leave out.
        out_json: file for all figures.

    Returns:
        Whether probes and small requests were answered in time and with the same bits, and memory
        came back.

    Raises:
        ConfigError: the server is not on this machine or is not ready, or an attack is unknown.
    """
    unknown = set(without) - set(ATTACKS)
    if unknown:
        raise ConfigError(
            f"`without` names {', '.join(sorted(unknown))}, expected names of {', '.join(ATTACKS)}"
        )
    report = asyncio.run(_attack(loopback_address(url), seconds, without))
    if out_json is not None:
        out_json.write_text(json.dumps(report, indent=2) + "\n")
    console = Console()
    for name, held in report["checks"].items():
        console.print(f"{'ok  ' if held else 'FAIL'} {name}")
    for name in ("health", "small", "memory_mib", "codes"):
        console.print(f"{name}: {report[name]}")
    return all(report["checks"].values())


async def _attack(address: Address, seconds: float, without: tuple[str, ...]) -> dict[str, Any]:
    info = await server_info(address)
    vocab_size = info["engine"]["model_config"]["vocab_size"]
    attack = Attack(address, vocab_size)
    workload = Workload(vocab_size, num_items=3, item_tokens=8, query_tokens=30)
    bodies = [orjson.dumps(workload.body(number)) for number in range(SMALL)]
    client = Client(address)
    right = [(await ask(client, n, body, 0.0)).scores for n, body in enumerate(bodies)]
    client.close()
    before = (await read_metrics(address)).memory_bytes
    samples: list[Sample] = []
    probes: list[tuple[str, float]] = []
    tasks = [
        asyncio.create_task(_repeat(attack, run))
        for name, (run, clients) in ATTACKS.items()
        if name not in without
        for _ in range(clients)
    ]
    watch = asyncio.create_task(_probe(attack, probes))
    small = [asyncio.create_task(_small(attack, bodies, samples, n)) for n in range(SMALL_CLIENTS)]
    await asyncio.sleep(seconds)
    attack.stop.set()
    await asyncio.gather(watch, *small)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(SETTLE_S)
    after = (await read_metrics(address)).memory_bytes
    wrong = sum(s.code == "ok" and s.scores != right[s.number] for s in samples)
    health, small_s = _spread([s for _, s in probes]), _spread([s.seconds for s in samples])
    bad = Counter(code for code, _ in probes if code != "200")
    refused = Counter(s.code for s in samples if s.code != "ok")
    return {
        "seconds": seconds,
        "attacks": [name for name in ATTACKS if name not in without],
        "health": {**health, "not 200": dict(bad)},
        "small": {**small_s, "not scored": dict(refused)},
        "memory_mib": {"before": before / MIB, "after": after / MIB},
        "codes": dict(sorted(attack.codes.items())),
        "checks": {
            f"/health: p99 under {HEALTH_P99_S:g} s, always 200": bool(probes)
            and health["p99_s"] < HEALTH_P99_S
            and not bad,
            f"small requests: p99 under {SMALL_P99_S:g} s": bool(samples)
            and small_s["p99_s"] < SMALL_P99_S,
            "small requests: none failed, at most 1 % refused": not refused[NO_ANSWER]
            and refused.total() <= len(samples) / 100,
            "every answer has the same bits": wrong == 0,
            "memory came back": after - before < MAX_GROWTH_BYTES,
        },
    }


async def _repeat(attack: Attack, run: Callable[[Attack], Awaitable[None]]) -> None:
    while not attack.stop.is_set():
        with contextlib.suppress(OSError):
            await run(attack)
        await attack.pause(0.05)


async def _probe(attack: Attack, probes: list[tuple[str, float]]) -> None:
    """Asks `/health` on a connection of its own, ten times a second."""
    while not attack.stop.is_set():
        client, started = Client(attack.address), time.perf_counter()
        try:
            code = str((await client.request("GET", "/health")).status)
        except (OSError, EOFError):
            code = NO_ANSWER
        client.close()
        probes.append((code, time.perf_counter() - started))
        await attack.pause(0.1)


async def _small(attack: Attack, bodies: list[bytes], samples: list[Sample], first: int) -> None:
    client, number = Client(attack.address), first
    while not attack.stop.is_set():
        number = (number + 1) % len(bodies)
        samples.append(await ask(client, number, bodies[number], time.perf_counter()))
        await attack.pause(0.02)
    client.close()


def _spread(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {"count": 0}
    names = {"p50_s": 50, "p99_s": 99, "max_s": 100}
    return {"count": len(seconds)} | {
        name: float(np.percentile(seconds, percent)) for name, percent in names.items()
    }
