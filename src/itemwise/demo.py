"""The demonstration: a tiny random model scores the runbook's workload, offline."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from itemwise.random_model import write_named
from itemwise.scorer import Scorer
from itemwise.types import Float32Array

MODEL = "tiny-qwen3"
# The default workload of the validation runbook, in Qwen's token ids.
QUERY = [1957, 1437, 25975, 25]
ITEMS = [
    [358, 2948, 419, 1985, 13],
    [1096, 374, 17478, 323, 38123, 13],
    [1084, 4278, 438, 3601, 13],
    [56938, 4271, 323, 4937, 9691, 13],
    [2806, 5802, 279, 3349, 13],
]
LABELS = [9834, 902]


def run_demo(console: Console) -> bool:
    """Scores the workload together and one by one, and prints both; whether the bits agree."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        console.print(f"Writing a random checkpoint of the {MODEL} shape ...")
        write_named(MODEL, model)
        console.print("Loading, compiling and checking it ...")
        scorer = Scorer.from_pretrained(str(model), kv_cache_bytes=8 << 20)
        together = _scores(scorer, ITEMS)
        alone = np.concatenate([_scores(scorer, [item]) for item in ITEMS])
        verdict = scorer.info()["self_check"]
    console.print(_table(together, alone))
    same = together.tobytes() == alone.tobytes()
    console.print(
        f"Five items together and one by one: {'the same bits' if same else 'DIFFERENT'}."
    )
    checks = ", ".join(name.replace("_", " ") for name in verdict["checks"])
    console.print(f"Self-check: {verdict['status']} in {verdict['seconds']:.1f} s ({checks}).")
    console.print(
        "The weights are random, so the ranking means nothing. With a real checkpoint:\n"
        "  itemwise score MODEL --query TEXT --item TEXT --item TEXT --label ' yes' --label ' no'",
        soft_wrap=True,
        highlight=False,
    )
    return same and verdict["status"] == "passed"


def _scores(scorer: Scorer, items: list[list[int]]) -> Float32Array:
    result = scorer.score(QUERY, items, label_token_ids=LABELS, apply_softmax=True)
    return np.asarray(result.scores)


def _table(together: Float32Array, alone: Float32Array) -> Table:
    table = Table(title=f"query {QUERY}, labels {LABELS}")
    for heading in ("item", "token ids"):
        table.add_column(heading)
    for heading in (f"p({LABELS[0]})", f"p({LABELS[1]})", "scored alone"):
        table.add_column(heading, justify="right")
    for i, item in enumerate(ITEMS):
        same = "same bits" if together[i].tobytes() == alone[i].tobytes() else "DIFFERENT"
        table.add_row(str(i), str(item), f"{together[i, 0]:.7f}", f"{together[i, 1]:.7f}", same)
    return table
