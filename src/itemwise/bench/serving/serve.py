"""The serving benchmark: throughput and latency of a running server, and bits under load."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from itemwise.bench.pictures import print_runs, pyplot
from itemwise.bench.serving.client import Address, Client, loopback_address
from itemwise.bench.serving.load import closed_loop, count_wrong, open_loop
from itemwise.bench.serving.traffic import Run, Sample, Workload
from itemwise.errors import ConfigError
from itemwise.machine import environment

MAX_SECONDS = 3600.0
MAX_REQUESTS = 100_000


def run_serve(
    url: str,
    *,
    clients: Sequence[int],
    rates: Sequence[float],
    seconds: float,
    max_requests: int,
    workload: dict[str, Any],
    check: int,
    out_json: Path | None,
    chart: Path | None,
) -> bool:
    """Loads a running server in several ways, one after the other, and prints a table.

    Args:
        url: of a server on this machine.
        clients: numbers of clients that wait for answers.
        rates: requests per second, sent without waiting for answers.
        seconds: maximum for each load.
        max_requests: maximum for each load.
        workload: fields of `Workload`, without the vocabulary.
        check: answers of each load whose bits are compared with each item scored alone.
        out_json: file for all figures.
        chart: image of latency and throughput; needs the `validate` extra.

    Returns:
        Whether all compared bits were equal and every request was scored or refused.

    Raises:
        ConfigError: a limit is exceeded, or the server is not on this machine or not ready.
    """
    if not 0 < seconds <= MAX_SECONDS or not 0 < max_requests <= MAX_REQUESTS:
        raise ConfigError(
            f"`seconds` is {seconds:g} and `max_requests` {max_requests}, expected at most "
            f"{MAX_SECONDS:g} and {MAX_REQUESTS}"
        )
    address = loopback_address(url)
    report = asyncio.run(_measure(address, clients, rates, seconds, max_requests, workload, check))
    if out_json is not None:
        out_json.write_text(json.dumps(report, indent=2) + "\n")
    if chart is not None:
        draw(report, chart)
    print_runs(report["runs"])
    return all(row["wrong"] == 0 and set(row["codes"]) <= _FINE for row in report["runs"])


_FINE = {"ok", "queue_full"}


async def server_info(address: Address) -> dict[str, Any]:
    """The server's description of itself.

    Raises:
        ConfigError: it does not answer, or is not ready.
    """
    client = Client(address)
    try:
        reply = await client.request("GET", "/server_info")
    except (OSError, EOFError) as error:
        raise ConfigError(
            f"no server answers at {address.host}:{address.port}; is it running?"
        ) from error
    client.close()
    info: dict[str, Any] = orjson.loads(reply.body)
    if reply.status != 200 or info.get("state") != "ready":
        raise ConfigError(f"the server is not ready: {info.get('state', reply.status)}")
    return info


async def _measure(
    address: Address,
    clients: Sequence[int],
    rates: Sequence[float],
    seconds: float,
    max_requests: int,
    fields: dict[str, Any],
    check: int,
) -> dict[str, Any]:
    info = await server_info(address)
    workload = Workload(vocab_size=info["engine"]["model_config"]["vocab_size"], **fields)
    await closed_loop(address, workload, 1, range(-2, 0), seconds)  # warm up both sides
    rows, first = [], 0
    for count, rate in [*((c, None) for c in clients), *((None, r) for r in rates)]:
        numbers = range(first, first + max_requests)
        run: Run
        if count is not None:
            run = await closed_loop(address, workload, count, numbers, seconds)
        else:
            assert rate is not None
            run = await open_loop(address, workload, rate, numbers, seconds)
        first += max_requests
        checked = _spread([s for s in run.samples if s.code == "ok"], check)
        wrong = await count_wrong(address, workload, checked)
        rows.append({**run.summary(), "checked": len(checked), "wrong": wrong})
    return {
        "benchmark": "serve",
        **environment(),
        "workload": dataclasses.asdict(workload),
        "server": {name: info[name] for name in ("version", "server", "engine")},
        "runs": rows,
    }


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """`count` of them, evenly spread."""
    if count >= len(samples):
        return list(samples)
    return [samples[i * len(samples) // count] for i in range(count)]


def draw(report: dict[str, Any], path: Path) -> None:
    """Draws latency and throughput of each load.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    rows = report["runs"]
    names = [
        f"{row['offered_per_s']:g}/s" if row["clients"] is None else f"{row['clients']} clients"
        for row in rows
    ]
    axes[0].bar(names, [row["items_per_s"] for row in rows], color="#4c72b0")
    axes[0].set_ylabel("items scored per second")
    for quantile, colour in (("p50", "#4c72b0"), ("p95", "#dd8452"), ("p99", "#c44e52")):
        heights = [row.get("latency_ms", {}).get(quantile, float("nan")) for row in rows]
        axes[1].plot(names, heights, "o-", label=quantile, color=colour)
    axes[1].set_ylabel("latency of a request in ms")
    axes[1].set_ylim(bottom=0)
    axes[1].legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
