"""The A/B benchmarks: one algorithm and one mask on the contract workload, after warm-up.

Figures of several commands are comparable if they run one after the other on a quiet machine. Each
run computes the query again: nothing is cached between runs.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from itemwise.bench.peak import peak_rss_bytes
from itemwise.config import MaskSetting
from itemwise.machine import environment
from itemwise.types import Algorithm

LABELS = (1, 2)
# Items/s that sglang-jax's documentation gives for a TPU v6e-1, Qwen3-0.6B, this workload.
PUBLISHED_ITEMS_PER_S = {
    "packed, dense": 52,
    "packed, segment": 105,
    "prefill-extend": 518,
}


def run_ab(
    model: str,
    algorithm: Algorithm,
    mask: MaskSetting = "auto",
    *,
    warmup_runs: int = 1,
    timed_runs: int = 3,
    query_tokens: int = 2000,
    num_items: int = 500,
    item_tokens: int = 20,
    out_json: Path | None = None,
    **engine: Any,
) -> dict[str, Any]:
    """Measures, prints, returns and writes the figures.

    Args:
        model: a local folder or a Hugging Face Hub id.
        algorithm: `packed` or `prefill_extend`.
        mask: of the packed algorithm; others need none.
        warmup_runs: runs before the timed ones; the first of them compiles.
        timed_runs: runs that are timed.
        query_tokens: tokens of the query.
        num_items: items.
        item_tokens: tokens of each item.
        out_json: file to write the figures to.
        **engine: further fields of `EngineConfig`.

    Raises:
        ConfigError: a setting is wrong.
        CheckpointError: the model cannot be read.
    """
    from itemwise.scorer import Scorer

    settings = {"multi_item_algorithm": algorithm, "multi_item_mask_impl": mask, **engine}
    scorer = Scorer.from_pretrained(model, **settings)
    rng = np.random.default_rng(0)
    vocab_size = scorer.engine.model_config.vocab_size
    query = rng.integers(0, vocab_size, query_tokens).tolist()
    items = rng.integers(0, vocab_size, (num_items, item_tokens)).tolist()

    def run(what: str) -> tuple[float, Any]:
        scorer.engine.forget_prefixes()
        start = time.perf_counter()
        result = scorer.score(query, items, label_token_ids=LABELS, apply_softmax=True)
        seconds = time.perf_counter() - start
        sys.stderr.write(f"{what}: {seconds:.2f} s\n")
        return seconds, result.scores

    warmup_s = [run(f"warm-up {i + 1} of {warmup_runs}")[0] for i in range(warmup_runs)]
    timed = [run(f"run {i + 1} of {timed_runs}") for i in range(timed_runs)]
    seconds = [one for one, _ in timed]
    median = statistics.median(seconds)
    info = scorer.info()
    report = {
        "benchmark": f"{algorithm}, {mask}" if algorithm == "packed" else algorithm,
        **environment(),
        "model": model,
        "workload": {"query_tokens": query_tokens, "items": num_items, "item_tokens": item_tokens},
        "engine": settings,
        "device": info["device"],
        "dtype": info["dtype"],
        "warmup_s": warmup_s,
        "timed_s": seconds,
        "total_s": median,
        "items_per_s": num_items / median,
        "ms_per_item": 1000 * median / num_items,
        "compiled_programs": info["packed_programs"],
        "weight_bytes": info["weight_bytes"],
        "page_bytes": info["pages"]["bytes"],
        "peak_rss_bytes": peak_rss_bytes(),
        "first_scores": np.asarray(timed[-1][1])[:8].tolist(),
        "published_items_per_s_tpu_v6e_1": PUBLISHED_ITEMS_PER_S,
    }
    _print(report, num_items)
    if out_json is not None:
        out_json.parent.mkdir(parents=True, exist_ok=True)
        out_json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def _print(report: dict[str, Any], num_items: int) -> None:
    from rich.console import Console
    from rich.table import Table

    workload = report["workload"]
    title = f"query {workload['query_tokens']} tokens, {num_items} items of "
    table = Table(title=f"{title}{workload['item_tokens']}", caption=report["machine"]["cpu"])
    table.add_column("way")
    for name in ("items/s", "ms/item", f"s for {num_items} items", "peak GiB"):
        table.add_column(name, justify="right")
    table.add_row(
        report["benchmark"],
        f"{report['items_per_s']:.2f}",
        f"{report['ms_per_item']:.2f}",
        f"{report['total_s']:.2f}",
        f"{report['peak_rss_bytes'] / (1 << 30):.2f}",
    )
    table.add_section()
    for name, rate in PUBLISHED_ITEMS_PER_S.items():
        total = num_items / rate
        table.add_row(
            f"published, TPU v6e-1: {name}", str(rate), f"{1000 / rate:.2f}", f"{total:.2f}", "-"
        )
    Console().print(table)
