"""Scores the held-out set with the demo model: NDCG@10 and yes/no accuracy, BM25 beside them.

Run `python examples/demo_model/evaluate.py [FOLDER] [--json FILE] [--parity]`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

import itemwise
from held_out import GradedQuery, held_out_set
from itemwise import Scorer
from itemwise.types import Float32Array

FOLDER = Path(itemwise.__file__).parent / "demo_model"
DType = Literal["bfloat16", "float32"]
TIE = 0.01  # difference of probabilities that says nothing about the order
Probabilities = list[Float32Array]  # for each query: P(first label) of its items


def read_template(folder: Path) -> dict[str, Any]:
    """The prompt template of a model folder."""
    template: dict[str, Any] = json.loads((folder / "prompt_template.json").read_text())
    return template


def fill(template: dict[str, Any], graded: GradedQuery) -> tuple[str, list[str]]:
    """Query and items as the model reads them."""
    query = template["query"].format(query=graded.query)
    return query, [template["item"].format(item=item) for item in graded.items]


def itemwise_scores(
    folder: Path, queries: Sequence[GradedQuery], dtype: DType, quantization: str = "none"
) -> Probabilities:
    """P(match) of every item, as `itemwise.Scorer` gives it."""
    scorer = Scorer.from_pretrained(str(folder), dtype=dtype, quantization=quantization)
    template = read_template(folder)
    found = []
    for graded in queries:
        query, items = fill(template, graded)
        result = scorer.score(query, items, labels=template["labels"], apply_softmax=True)
        found.append(np.asarray(result.scores, np.float32)[:, 0])
    return found


def transformers_scores(
    folder: Path, queries: Sequence[GradedQuery], dtype: DType
) -> Probabilities:
    """P(match) of every item, as transformers gives it: the query again for every item."""
    import torch
    from transformers import AutoTokenizer

    from itemwise.validation.reference import load_torch

    model, tokenizer = load_torch(folder, dtype), AutoTokenizer.from_pretrained(folder)
    template = read_template(folder)
    labels = [tokenizer.encode(label)[0] for label in template["labels"]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small to share: threads would wait for each other
    found = []
    for graded in queries:
        query, items = fill(template, graded)
        rows = [tokenizer.encode(query) + tokenizer.encode(item) for item in items]
        # Padding on the right: no token sees it.
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        last = torch.tensor([len(row) - 1 for row in rows])
        with torch.inference_mode():
            logits = model(ids, use_cache=False).logits[torch.arange(len(rows)), last]
        found.append(logits[:, labels].float().softmax(-1)[:, 0].numpy())
    torch.set_num_threads(threads)
    return found


def bm25_scores(queries: Sequence[GradedQuery]) -> Probabilities:
    """BM25 of every item among the items of its query, over words in lower case."""
    from rank_bm25 import BM25Plus

    found = []
    for graded in queries:
        index = BM25Plus([_words(item) for item in graded.items])
        found.append(np.asarray(index.get_scores(_words(graded.query)), np.float32))
    return found


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def ndcg(fractions: Sequence[float], scores: Sequence[float] | Float32Array, k: int = 10) -> float:
    """NDCG@k with gain 2^(4 x fraction) - 1; items of equal score count in the order given."""
    order = np.argsort(-np.asarray(scores), kind="stable")
    gains = 2.0 ** (4.0 * np.asarray(fractions)) - 1
    discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
    best = np.sort(gains)[::-1][:k] @ discounts[:k]
    return float(gains[order][:k] @ discounts[:k] / best)


def quality(queries: Sequence[GradedQuery], scores: Probabilities) -> dict[str, float]:
    """Mean NDCG@10, and how often P(match) is on the right side of 0.5."""
    said = np.concatenate(scores) > 0.5
    true = np.concatenate([np.asarray(graded.fractions) == 1 for graded in queries])
    return {
        "ndcg_at_10": mean_ndcg(queries, scores),
        "accuracy": float((said == true).mean()),
        "matches_accepted": float(said[true].mean()),
        "others_rejected": float((~said[~true]).mean()),
    }


def mean_ndcg(queries: Sequence[GradedQuery], scores: Probabilities) -> float:
    """Mean NDCG@10 over the queries."""
    values = [ndcg(q.fractions, s) for q, s in zip(queries, scores, strict=True)]
    return math.fsum(values) / len(values)


def best_accuracy(queries: Sequence[GradedQuery], scores: Probabilities) -> float:
    """Yes/no accuracy with the share of a query's best score as threshold that suits best."""
    flat = np.concatenate([values / values.max() for values in scores])
    true = np.concatenate([np.asarray(graded.fractions) == 1 for graded in queries])
    order = np.argsort(-flat, kind="stable")
    hits = np.cumsum(np.where(true[order], 1, -1))
    last = np.append(np.diff(flat[order]) != 0, True)  # a threshold cannot split equal scores
    return float((max(0, hits[last].max()) + (~true).sum()) / len(true))


def compare(one: Probabilities, other: Probabilities) -> dict[str, float]:
    """How far apart two sets of probabilities are, and how many queries they order differently.

    A ranking differs clearly where two items change places that `other` has more than `TIE` apart.
    """
    errors = np.abs(np.concatenate(one) - np.concatenate(other))
    pairs = list(zip(one, other, strict=True))
    return {
        "max_abs_difference": float(errors.max()),
        "mean_abs_difference": float(errors.mean()),
        "rankings_that_differ": sum(_swaps(a, b, 0.0) for a, b in pairs),
        "rankings_that_differ_clearly": sum(_swaps(a, b, TIE) for a, b in pairs),
    }


def _swaps(one: Float32Array, other: Float32Array, tie: float) -> bool:
    """True where two items stand in another order, unless they are within `tie` in `other`."""
    return bool(((np.subtract.outer(one, one) < 0) & (np.subtract.outer(other, other) > tie)).any())


def parity(folder: Path, queries: Sequence[GradedQuery]) -> dict[str, dict[str, float]]:
    """Itemwise beside transformers in both types, and transformers beside itself."""
    dtypes: tuple[DType, DType] = ("float32", "bfloat16")
    ours = {dtype: itemwise_scores(folder, queries, dtype) for dtype in dtypes}
    theirs = {dtype: transformers_scores(folder, queries, dtype) for dtype in dtypes}
    exact = theirs["float32"]
    int8 = itemwise_scores(folder, queries, "bfloat16", "int8")
    return {
        "int8, transformers float32": compare(int8, exact),
        "float32, transformers float32": compare(ours["float32"], exact),
        "bfloat16, transformers bfloat16": compare(ours["bfloat16"], theirs["bfloat16"]),
        "bfloat16, transformers float32": compare(ours["bfloat16"], exact),
        "transformers bfloat16, float32": compare(theirs["bfloat16"], exact),
    }


def evaluate(folder: Path, queries: Sequence[GradedQuery]) -> dict[str, Any]:
    """Quality of the model in both types, and of BM25."""
    bm25 = bm25_scores(queries)
    return {
        "queries": len(queries),
        "items": sum(len(graded.items) for graded in queries),
        "bfloat16": quality(queries, itemwise_scores(folder, queries, "bfloat16")),
        "float32": quality(queries, itemwise_scores(folder, queries, "float32")),
        "bm25": {
            "ndcg_at_10": mean_ndcg(queries, bm25),
            "accuracy_at_best_threshold": best_accuracy(queries, bm25),
        },
    }


def show(report: dict[str, Any], console: Console) -> None:
    """Prints a report as tables."""
    table = Table(title=f"{report['queries']} held-out queries, {report['items']} items")
    for column in ("", "NDCG@10", "yes/no accuracy", "matches accepted", "others rejected"):
        table.add_column(column, justify="left" if not column else "right")
    for dtype in ("bfloat16", "float32"):
        table.add_row(f"demo model, {dtype}", *(f"{v:.4f}" for v in report[dtype].values()))
    bm25 = report["bm25"]
    best = f"{bm25['accuracy_at_best_threshold']:.4f} (best threshold)"
    table.add_row("BM25", f"{bm25['ndcg_at_10']:.4f}", best, "", "")
    console.print(table)
    if "parity" not in report:
        return
    table = Table(title="Label probabilities beside transformers")
    for column in ("", "largest difference", "mean", "rankings that differ", f"by over {TIE}"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in report["parity"].items():
        values = (f"{value:.2e}" if "abs" in key else str(value) for key, value in row.items())
        table.add_row(name, *values)
    console.print(table)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="the model's folder")
    parser.add_argument("--num-queries", type=int, default=240, help="queries to score (240)")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--parity", action="store_true", help="compare with transformers as well")
    options = parser.parse_args()
    console = Console()
    queries = held_out_set(options.num_queries)
    report = evaluate(options.folder, queries)
    if options.parity:
        report["parity"] = parity(options.folder, queries)
    show(report, console)
    if options.json:
        names = ("itemwise", "jax", "numpy", "tokenizers", "rank-bm25")
        report["versions"] = {name: metadata.version(name) for name in names}
        report["machine"] = f"{platform.machine()}, {platform.system()}"
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
