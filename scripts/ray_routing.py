"""Measures routing by prefix against random routing, on engines of a Ray cluster of this machine.

    .venv/bin/python scripts/ray_routing.py --rounds 3

Clients ask about a few queries again and again, in random order, and each engine has room for the
pages of only some of them. Routings take turns in one run. Prints for each the share of pages that
were found, and the latency of requests; then the ratios. Run nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import ray
from ray import serve

from itemwise.ray.serve import app

PORT = 38_471
PAGE_TOKENS = 128
PAGE_BYTES = 262_144  # of the demo model


def main() -> None:
    """Runs the rounds and prints what came of them."""
    options = _options()
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.routings}
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        ray.init(
            num_cpus=options.replicas,
            include_dashboard=False,
            object_store_memory=80 << 20,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
            log_to_driver=False,
        )
        try:
            http = {"host": "127.0.0.1", "port": PORT}
            serve.start(proxy_location="HeadOnly", http_options=http)
            for number in range(options.rounds):
                for name in options.routings:
                    found = _measured(name, options, seed=number)
                    runs[name].append(found)
                    print(json.dumps({"routing": name, **found}), flush=True)
        finally:
            serve.shutdown()
            ray.shutdown()
    first, *others = options.routings
    for name in others:
        for what in runs[name][0]:
            pairs = zip(runs[first], runs[name], strict=True)
            ratios = [b[what] / a[what] for a, b in pairs if a[what]]
            if ratios:
                print(f"{name} / {first}: {what} {statistics.median(ratios):.2f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--routings", nargs="+", default=["prefix", "random"])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--query-tokens", type=int, default=512)
    parser.add_argument("--items", type=int, default=8)
    parser.add_argument("--item-tokens", type=int, default=8)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument(
        "--room", type=float, default=0.6, help="share of all queries' pages that an engine holds"
    )
    return parser.parse_args()


def _measured(routing: str, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Share of pages found, latencies in ms and requests per second of one run."""
    pages_of_query = -(-options.query_tokens // PAGE_TOKENS)
    pages = int(options.room * options.queries * pages_of_query) + 8
    settings = {
        "min_replicas": options.replicas,
        "routing": routing,
        "kv_cache_bytes": pages * PAGE_BYTES,
    }
    serve.run(app(settings))
    rng = random.Random(seed)
    bodies = [_body(options, rng) for _ in range(options.queries)]
    order = [rng.randrange(options.queries) for _ in range(options.requests)]
    times: list[float] = []
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120) as client:

        def ask(query: int) -> None:
            started = time.perf_counter()
            client.post("/v1/score", content=bodies[query]).raise_for_status()
            times.append((time.perf_counter() - started) * 1e3)

        with ThreadPoolExecutor(options.clients) as pool:
            list(pool.map(ask, order[: options.requests // 5]))  # until caches are full
            times.clear()
            before, started = _pages(client), time.perf_counter()
            list(pool.map(ask, order))
            seconds = time.perf_counter() - started
        hits, misses = (b - a for a, b in zip(before, _pages(client), strict=True))
    quantiles = statistics.quantiles(times, n=100)
    return {
        "hit_rate": hits / (hits + misses),
        "p50_ms": quantiles[49],
        "p99_ms": quantiles[98],
        "requests_per_s": options.requests / seconds,
    }


def _body(options: argparse.Namespace, rng: random.Random) -> bytes:
    def tokens(count: int) -> list[int]:
        return [rng.randrange(1, 900) for _ in range(count)]

    body = {
        "query": tokens(options.query_tokens),
        "items": [tokens(options.item_tokens) for _ in range(options.items)],
        "label_token_ids": [5, 6],
    }
    return json.dumps(body).encode()


def _pages(client: httpx.Client) -> tuple[int, int]:
    """Pages that all engines found, and that they computed."""
    replicas: dict[str, Any] = client.get("/server_info").json()["replicas"]
    pages = [each["engine"]["pages"] for each in replicas.values()]
    return sum(each["hits"] for each in pages), sum(each["misses"] for each in pages)


if __name__ == "__main__":
    main()
