"""Ways to score the same requests, and the process in which one of them is measured.

A way is created once, then called for one workload after the other. It answers commands on standard
input, one JSON object per line, so that the ways of a comparison can take turns, each with its own
memory and threads:

    {"do": "score", "workload": "short", "max_items": null}
    {"do": "score_tokens", "query": [1, 2], "items": [[3], [4]], "labels": [5, 6]}
    {"do": "probe"}
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from itemwise.bench.compare.workloads import WORKLOADS, BenchRequest, Workload
from itemwise.bench.peak import forget_peak, peak_rss_bytes
from itemwise.bench.probe import probe_of
from itemwise.checkpoint.read import read_config
from itemwise.types import Float32Array, ScoreRequest

DEVICE_SHARE = 0.3  # share of a GPU's memory; all ways of a comparison use the same GPU
# Fields of `EngineConfig` that define a way.
ITEMWISE_WAYS: dict[str, dict[str, Any]] = {
    "itemwise": {"multi_item_algorithm": "prefill_extend"},
    "itemwise-dense": {"multi_item_algorithm": "packed", "multi_item_mask_impl": "dense"},
    "itemwise-segment": {"multi_item_algorithm": "packed", "multi_item_mask_impl": "segment"},
}


class Way(Protocol):
    """A way to score requests.

    Attributes:
        dtype: type of its activations.
        repeats_query: whether it computes the query for each item.
        few_tokens: tokens that suffice to measure its speed, if so.
        details: further facts about it, as JSON values.
    """

    dtype: str
    repeats_query: bool
    few_tokens: int
    details: dict[str, Any]

    def score(self, requests: Sequence[BenchRequest]) -> Float32Array:
        """Softmax over the labels, float32 [items, labels], of all requests' items in order.

        Nothing is cached from an earlier call.
        """
        ...

    def probe(self) -> dict[str, float]:
        """Ceilings of the machine as its library reaches them, in GFLOP/s or GB/s."""
        ...

    def forget_peak(self) -> None:
        """Restarts the measurement of `peak_bytes`, if the system can."""
        ...

    def peak_bytes(self) -> int:
        """Its peak memory: of the device, or of the process on a CPU."""
        ...


class ItemwiseWay:
    """Itemwise from Python, with all requests at once."""

    repeats_query = False
    few_tokens = 0  # all items are scored

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import jax

        from itemwise.engine.platform import platform_of
        from itemwise.scorer import Scorer

        sized = settings.get("kv_cache_bytes") or settings.get("mem_fraction_static")
        if platform_of(jax.devices()[0]).memory == "device" and not sized:
            settings = settings | {"mem_fraction_static": DEVICE_SHARE}
        self._engine = Scorer.from_pretrained(str(folder), **settings).engine
        info = self._engine.info()
        self.dtype = info["activations"]
        names = ("startup_s", "step_shape", "small_steps", "weight_bytes", "device", "attention")
        self.details = {name: info[name] for name in names}
        self.details["page_bytes"] = info["pages"]["bytes"]
        self.details["self_check"] = info["self_check"]["status"]

    def score(self, requests: Sequence[BenchRequest]) -> Float32Array:
        """See `Way.score`."""
        self._engine.forget_prefixes()
        checked = [
            ScoreRequest(
                request.query,
                request.items,
                (request.labels,) * len(request.items),
                apply_softmax=True,
            )
            for request in requests
        ]
        return np.concatenate([np.asarray(result.scores) for result in self._engine.score(checked)])

    def probe(self) -> dict[str, float]:
        """See `Way.probe`."""
        import jax
        import jax.numpy as jnp

        from itemwise.engine.platform import platform_of

        found, size = {}, probe_of(platform_of(jax.devices()[0]).name)
        for name in ("bfloat16", "float32"):
            x = jnp.ones((size.rows, size.inner), name)
            weight = jnp.ones((size.outer, size.inner), name)

            def product(x: Any = x, weight: Any = weight) -> None:
                y = jnp.einsum("ti,oi->to", x, weight, preferred_element_type=jnp.float32)
                jax.block_until_ready(y)

            found[f"xla {name} GFLOP/s"] = size.gflops(product)
        return found

    def forget_peak(self) -> None:
        """See `Way.forget_peak`; the runtime of a GPU can only count from its start."""
        forget_peak()

    def peak_bytes(self) -> int:
        """See `Way.peak_bytes`."""
        stats = self._engine.device.memory_stats()
        return int(stats["peak_bytes_in_use"]) if stats else peak_rss_bytes()


def first_items(requests: Sequence[BenchRequest], count: int | None) -> list[BenchRequest]:
    """The first items of the requests, requests in order; all for None."""
    if count is None:
        return list(requests)
    kept: list[BenchRequest] = []
    for request in requests:
        if count > 0:
            kept.append(dataclasses.replace(request, items=request.items[:count]))
            count -= len(request.items)
    return kept


def few_items(workload: Workload, few_tokens: int) -> int:
    """Enough items of equal length to measure a way that computes the query for each of them.

    Together their sequences have `few_tokens`; all items if lengths differ much.
    """
    shortest, longest = min(workload.item_tokens), max(workload.item_tokens)
    if longest > 2 * shortest:
        return workload.num_items
    return max(2, few_tokens // (workload.query_tokens + longest))


def make_way(name: str, folder: Path, settings: dict[str, Any]) -> Way:
    """The way of a name; `settings` are fields of `EngineConfig`, for Itemwise."""
    if name in ITEMWISE_WAYS:
        return ItemwiseWay(folder, settings | ITEMWISE_WAYS[name])
    from itemwise.bench.compare.torch_ways import TorchWay

    return TorchWay(name, folder)


def timed_scores(way: Way, requests: Sequence[BenchRequest]) -> dict[str, Any]:
    """Seconds that a way takes for requests, its scores and its peak memory, as JSON values."""
    start = time.perf_counter()
    scores = way.score(requests)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "scores": scores.tolist(), "peak_bytes": way.peak_bytes()}


def serve_way(name: str, folder: Path, settings: dict[str, Any]) -> None:
    """Creates the way, then runs the commands on standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries then print to stderr

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    start = time.perf_counter()
    way = make_way(name, folder, settings)
    ready_s = time.perf_counter() - start
    answer(dtype=way.dtype, details=way.details, ready_s=ready_s)
    vocab_size = read_config(folder).vocab_size
    workload = ""
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "probe":
            answer(**way.probe())
            continue
        if command["do"] == "score_tokens":
            labels = tuple(command["labels"])
            request = BenchRequest(command["query"], command["items"], labels)
            answer(**timed_scores(way, [request]))
            continue
        limits = [command["max_items"]] if command["max_items"] else []
        if way.repeats_query:
            limits.append(few_items(WORKLOADS[command["workload"]], way.few_tokens))
        requests = WORKLOADS[command["workload"]].requests(vocab_size)
        requests = first_items(requests, min(limits, default=None))
        if command["workload"] != workload:
            workload = command["workload"]
            way.forget_peak()
        answer(**timed_scores(way, requests))


if __name__ == "__main__":
    _, way_name, way_folder, way_settings = sys.argv
    serve_way(way_name, Path(way_folder), json.loads(way_settings))
