"""The contract benchmark: one long query, many short items, Itemwise beside PyTorch.

Each way runs in a process of its own, so that its peak memory is its own, on the same token ids:

    itemwise       the query once, items packed densely against its cached pages
    torch-serial   transformers, one full forward per item
    torch-packed   transformers, keys and values of the query kept, 64 items in a masked forward

torch gets its best setting: the faster type on this machine, and memory that glibc keeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from itemwise import checkpoint
from itemwise.errors import ConfigError, ItemwiseError
from itemwise.validation.environment import environment

WAYS = ("itemwise", "torch-serial", "torch-packed")
COUNTS = (64, 500)
LABELS = (1, 2)
GIB = 1 << 30
# glibc hands large blocks back to the kernel and faults them in again; kept, torch is faster.
TORCH_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(32 * GIB),
    "MALLOC_TOP_PAD_": str(GIB // 4),
}


@dataclass(frozen=True)
class Job:
    """What one way measures, in a process of its own.

    Attributes:
        way: one of `WAYS`.
        model: a checkpoint folder.
        counts: numbers of items; the first is that of the first request.
        query_tokens: tokens of the query.
        item_tokens: tokens of each item.
        serial_items: items that `torch-serial` measures; its items/s depends on no number of items.
        engine: fields of `EngineConfig`, for `itemwise`.
    """

    way: str
    model: str
    counts: tuple[int, ...]
    query_tokens: int
    item_tokens: int
    serial_items: int
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """What one way measured.

    Attributes:
        way: one of `WAYS`.
        dtype: type of weights and activations.
        items_per_s: by number of items, end to end: query computed anew, caches cold.
        scores: label probabilities of the first items, to compare between ways.
        startup_s: from nothing to ready.
        first_request_s: the first request of the process, with the first number of items.
        warm_request_s: the same request again, its query cached.
        peak_rss_bytes: the most memory that the process held.
        details: of the way alone.
    """

    way: str
    dtype: str
    items_per_s: dict[int, float]
    scores: list[list[float]]
    startup_s: float
    first_request_s: float | None = None
    warm_request_s: float | None = None
    peak_rss_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)


def run_contract(
    model: str,
    *,
    ways: Sequence[str] = WAYS,
    counts: Sequence[int] = COUNTS,
    query_tokens: int = 2000,
    item_tokens: int = 20,
    serial_items: int = 2,
    out_json: Path | None = None,
    **engine: Any,
) -> dict[str, Any]:
    """Measures each way in its own process, prints a table, returns and writes the figures.

    Args:
        model: a local folder or a Hugging Face Hub id.
        ways: of `WAYS`.
        counts: numbers of items of a request.
        query_tokens: tokens of the query.
        item_tokens: tokens of each item.
        serial_items: items that `torch-serial` measures.
        out_json: file to write the figures to.
        **engine: fields of `EngineConfig`.

    Raises:
        ConfigError: an argument is wrong.
        CheckpointError: the model is not there.
        ItemwiseError: a way failed; its own message stands on stderr.
    """
    _check(ways, counts, query_tokens, item_tokens, serial_items)
    folder = str(checkpoint.locate(model))
    sizes = (tuple(counts), query_tokens, item_tokens, serial_items)
    measured = [_measure(Job(way, folder, *sizes, engine)) for way in ways]
    report = {
        "benchmark": "contract",
        **environment(),
        "model": model,
        "counts": list(counts),
        "query_tokens": query_tokens,
        "item_tokens": item_tokens,
        "ways": {one.way: asdict(one) for one in measured},
        "max_probability_difference": _differences(measured),
    }
    _print_report(report, measured)
    if out_json is not None:
        out_json.parent.mkdir(parents=True, exist_ok=True)
        out_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _check(
    ways: Sequence[str], counts: Sequence[int], query: int, item: int, serial_items: int
) -> None:
    problems = []
    if not ways or len(set(ways)) < len(ways) or set(ways) - set(WAYS):
        problems.append(f"`ways` is {','.join(ways)!r}, expected some of {','.join(WAYS)}")
    if not counts or min(counts) < 1 or len(set(counts)) < len(counts):
        problems.append(f"`counts` is {list(counts)}, expected different numbers from 1")
    sizes = {"query_tokens": query, "item_tokens": item, "serial_items": serial_items}
    problems += [f"`{name}` is {n}, expected 1 or more" for name, n in sizes.items() if n < 1]
    if problems:
        raise ConfigError("; ".join(problems))


def _measure(job: Job) -> Measured:
    """Runs a job in a process of its own."""
    _say(job.way, "starts")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        environment = dict(os.environ)
        if job.way != "itemwise":
            environment |= TORCH_ENVIRONMENT
        command = [sys.executable, "-m", "itemwise.bench.contract", "--worker"]
        done = subprocess.run(
            [*command, json.dumps(asdict(job)), str(result)], env=environment, check=False
        )
        if done.returncode:
            raise ItemwiseError(f"`{job.way}` failed with exit status {done.returncode}, see above")
        fields = json.loads(result.read_text(encoding="utf-8"))
    fields["items_per_s"] = {int(count): rate for count, rate in fields["items_per_s"].items()}
    return Measured(**fields)


def _say(way: str, text: str) -> None:
    sys.stderr.write(f"{way}: {text}\n")
    sys.stderr.flush()


# In the worker


def work(job: Job) -> Measured:
    """Measures a way in this process."""
    ways: dict[str, Callable[[Job], Measured]] = {
        "itemwise": _itemwise,
        "torch-serial": _torch_serial,
        "torch-packed": _torch_packed,
    }
    measured = ways[job.way](job)
    measured.peak_rss_bytes = peak_rss_bytes()
    return measured


def workload(job: Job) -> tuple[list[int], list[list[int]]]:
    """Seeded token ids: the query, and as many items as the largest request has."""
    vocab_size = checkpoint.read_config(Path(job.model)).vocab_size
    rng = np.random.default_rng(0)
    query = rng.integers(0, vocab_size, job.query_tokens).tolist()
    items = rng.integers(0, vocab_size, (max(job.counts), job.item_tokens)).tolist()
    return query, items


def _timed(way: str, what: str, call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    _say(way, f"{what}: {seconds:.2f} s")
    return seconds, result


def _itemwise(job: Job) -> Measured:
    from itemwise.scorer import Scorer

    query, items = workload(job)
    startup_s, scorer = _timed(
        job.way, "start-up", lambda: Scorer.from_pretrained(job.model, **job.engine)
    )

    def score(count: int) -> Any:
        return scorer.score(query, items[:count], label_token_ids=LABELS, apply_softmax=True).scores

    first = job.counts[0]
    first_s, scores = _timed(job.way, f"first request, {first} items", partial(score, first))
    warm_s, _ = _timed(job.way, f"again, {first} items", partial(score, first))
    rates = {}
    for count in job.counts:
        scorer.engine.forget_prefixes()
        seconds, _ = _timed(job.way, f"cold, {count} items", partial(score, count))
        rates[count] = count / seconds
    info = scorer.info()
    details = {
        "weight_bytes": info["weight_bytes"],
        "page_bytes": info["pages"]["bytes"],
        "startup_s": info["startup_s"],
        "step_shape": info["step_shape"],
        "self_check": info["self_check"]["status"],
        "device": info["device"],
    }
    shown = np.asarray(scores).tolist()
    return Measured(
        job.way, info["dtype"], rates, shown, startup_s, first_s, warm_s, details=details
    )


def _torch_packed(job: Job) -> Measured:
    from itemwise.validation.reference import PackedTorch

    query, items = workload(job)
    startup_s, (model, details) = _timed(job.way, "start-up", lambda: _load_torch(job))

    def score(packed: PackedTorch, count: int) -> Any:
        return packed.scores(items[:count], LABELS, apply_softmax=True)

    def cold(count: int) -> Any:
        packed = PackedTorch(model, query)
        return packed, score(packed, count)

    first = job.counts[0]
    first_s, (packed, scores) = _timed(
        job.way, f"first request, {first} items", partial(cold, first)
    )
    warm_s, _ = _timed(job.way, f"again, {first} items", partial(score, packed, first))
    del packed  # no second copy of the keys and values while others are timed
    rates = {}
    for count in job.counts:
        seconds, _ = _timed(job.way, f"cold, {count} items", partial(cold, count))
        rates[count] = count / seconds
    dtype = details["dtype"]
    return Measured(
        job.way, dtype, rates, scores.tolist(), startup_s, first_s, warm_s, details=details
    )


def _torch_serial(job: Job) -> Measured:
    from itemwise.validation.reference import torch_scores

    query, items = workload(job)
    startup_s, (model, details) = _timed(job.way, "start-up", lambda: _load_torch(job))
    some = items[: job.serial_items]
    torch_scores(model, query[:16], [[]], LABELS)  # faults the weights in
    seconds, scores = _timed(
        job.way,
        f"{len(some)} items, one after the other",
        lambda: torch_scores(model, query, some, LABELS, apply_softmax=True),
    )
    rates = dict.fromkeys(job.counts, len(some) / seconds)
    details["measured_items"] = len(some)
    return Measured(job.way, details["dtype"], rates, scores.tolist(), startup_s, details=details)


def _load_torch(job: Job) -> tuple[Any, dict[str, Any]]:
    """The model in the type that is faster on this machine, and what was found."""
    from itemwise.validation.reference import TorchDType, load_torch

    types: tuple[TorchDType, ...] = ("bfloat16", "float32")
    gflops = {dtype: _torch_gflops(dtype) for dtype in types}
    best = max(types, key=lambda dtype: gflops[dtype])
    speeds = ", ".join(f"{dtype} {speed:.0f}" for dtype, speed in gflops.items())
    _say(job.way, f"probe in GFLOP/s: {speeds}; runs in {best}")
    return load_torch(Path(job.model), best), {"dtype": best, "probe_gflops": gflops}


def _torch_gflops(dtype: str) -> float:
    """Speed of a small matrix product, the best of three."""
    import torch

    x = torch.ones(512, 1024, dtype=getattr(torch, dtype))
    weight = torch.ones(2048, 1024, dtype=x.dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        seconds.append(time.perf_counter() - start)
    return 2 * 512 * 1024 * 2048 / min(seconds[1:]) / 1e9


def peak_rss_bytes() -> int:
    """The most memory this process held.

    Linux counts it anew for each program (`VmHWM`); `ru_maxrss` would count the parent's too.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# The report


def _differences(measured: Sequence[Measured]) -> dict[str, float]:
    """Largest difference of a label probability from Itemwise, over the items both scored."""
    by_way = {one.way: np.asarray(one.scores) for one in measured}
    ours = by_way.pop("itemwise", None)
    if ours is None:
        return {}
    shared = {way: min(len(scores), len(ours)) for way, scores in by_way.items()}
    return {
        way: float(np.abs(by_way[way][:count] - ours[:count]).max())
        for way, count in shared.items()
    }


def _print_report(report: dict[str, Any], measured: Sequence[Measured]) -> None:
    from rich.console import Console
    from rich.table import Table

    counts = report["counts"]
    machine = report["machine"]
    title = f"query {report['query_tokens']} tokens, items of {report['item_tokens']}"
    table = Table(title=title, caption=f"{machine['cpu']}, {machine['cores']} cores")
    table.add_column("way")
    table.add_column("type")
    headers = [f"items/s, N={count}" for count in counts]
    for name in (*headers, "peak GiB", f"first s, N={counts[0]}", "warm s"):
        table.add_column(name, justify="right")
    ours = next((one for one in measured if one.way == "itemwise"), None)
    for one in measured:
        rates = [_rate(one, ours, count) for count in counts]
        memory = f"{one.peak_rss_bytes / GIB:.2f}"
        times = [_seconds(one.first_request_s), _seconds(one.warm_request_s)]
        table.add_row(one.way, one.dtype, *rates, memory, *times)
    console = Console()
    console.print(table)
    for line in _notes(report, measured, ours):
        console.print(line, highlight=False)


def _rate(one: Measured, ours: Measured | None, count: int) -> str:
    rate = one.items_per_s[count]
    if ours is None or one is ours:
        return f"{rate:.2f}"
    return f"{rate:.2f} ({ours.items_per_s[count] / rate:.2f}x)"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def _notes(
    report: dict[str, Any], measured: Sequence[Measured], ours: Measured | None
) -> list[str]:
    notes = []
    if ours:
        weights, pages = ours.details["weight_bytes"], ours.details["page_bytes"]
        rest = ours.peak_rss_bytes - weights - pages
        notes.append(
            f"itemwise memory: weights {weights / GIB:.2f} GiB, pages {pages / GIB:.2f} GiB, "
            f"the rest {rest / GIB:.2f} GiB; self-check {ours.details['self_check']}"
        )
    for one in measured:
        if "measured_items" in one.details:
            notes.append(
                f"{one.way}: measured over {one.details['measured_items']} items, one full "
                "forward each; its items/s does not depend on N"
            )
    notes += [
        f"{way}: label probabilities differ from itemwise by at most {difference:.2g}"
        for way, difference in report["max_probability_difference"].items()
    ]
    return notes


def _worker_main(raw_job: str, result: str) -> None:
    fields = json.loads(raw_job)
    fields["counts"] = tuple(fields["counts"])
    measured = work(Job(**fields))
    Path(result).write_text(json.dumps(asdict(measured)), encoding="utf-8")


if __name__ == "__main__":
    _, worker, raw_job, result_file = sys.argv  # as `_measure` calls it
    assert worker == "--worker"
    _worker_main(raw_job, result_file)
