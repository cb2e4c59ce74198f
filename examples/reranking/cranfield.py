#!/usr/bin/env python3
"""Reranks BM25's best documents of the Cranfield collection: NDCG@10 before and after.

    python examples/reranking/cranfield.py COLLECTION MODEL ...

COLLECTION is a folder with `cran.all.1400`, `cran.qry` and `cranqrel`, a public test collection of
1,400 abstracts and 225 questions about aerodynamics with graded judgements. BM25 finds 50 documents
for each of the first questions, and every model ranks them. Some questions are asked again with one
document at a time, which must give the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rank_bm25 import BM25Okapi

from itemwise.machine import environment
from itemwise.progress import progress, say
from itemwise.scorer import Scorer

FIELD = re.compile(r"^\.(?:(I) (\d+)|([TABW]))$")


@dataclass(frozen=True)
class Collection:
    """A test collection.

    Attributes:
        documents: number -> title and abstract.
        queries: the questions, in order.
        grades: for each question, number of a document -> 1 (of minimum interest) to 4 (a complete
            answer); documents that are not judged count as 0.
    """

    documents: Mapping[int, str]
    queries: Sequence[str]
    grades: Sequence[Mapping[int, int]]


def read_collection(folder: Path) -> Collection:
    """Reads the three files. Judgements name questions by their place, from 1 on."""
    documents = {
        int(record["I"]): _whole_text(record["T"], record["W"])
        for record in _records(folder / "cran.all.1400")
    }
    queries = [record["W"] for record in _records(folder / "cran.qry")]
    grades: list[dict[int, int]] = [{} for _ in queries]
    for line in (folder / "cranqrel").read_text(encoding="utf-8").splitlines():
        query, document, code = map(int, line.split())
        grades[query - 1][document] = 5 - code if 1 <= code <= 4 else 0
    return Collection(documents, queries, grades)


def _whole_text(title: str, abstract: str) -> str:
    """Most abstracts begin with the title; the others get it."""
    return abstract if abstract.startswith(title) else f"{title} {abstract}".strip()


def _records(path: Path) -> list[dict[str, str]]:
    """The records of a file: letter of a field -> its text on one line."""
    records: list[dict[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        found = FIELD.match(line)
        if found and found[1]:
            records.append({"I": [found[2]], "T": [], "W": []})
        elif found:
            field = records[-1].setdefault(found[3], [])
        elif line != ".I":  # one at the end of the file
            field.extend(line.split())
    return [{name: " ".join(words) for name, words in each.items()} for each in records]


def words(text: str) -> list[str]:
    """Words and numbers in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def ndcg(order: Sequence[int], grades: Mapping[int, int], k: int = 10) -> float:
    """NDCG@k of documents, best first, with gain 2^grade - 1; the ideal knows all judged ones."""
    ideal = sorted(grades.values(), reverse=True)
    return _dcg([grades.get(each, 0) for each in order[:k]]) / _dcg(ideal[:k])


def _dcg(grades: Sequence[int]) -> float:
    return math.fsum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(grades))


def first_stage(collection: Collection, num_queries: int, depth: int) -> list[list[int]]:
    """For each question, the numbers of BM25's best documents."""
    numbers = np.asarray(list(collection.documents))
    index = BM25Okapi([words(text) for text in collection.documents.values()])
    found = []
    for query in collection.queries[:num_queries]:
        order = np.argsort(-index.get_scores(words(query)), kind="stable")[:depth]
        found.append(numbers[order].tolist())
    return found


def rerank(
    scorer: Scorer, collection: Collection, found: Sequence[Sequence[int]], num_alone: int
) -> dict[str, Any]:
    """NDCG@10 of a model's order, its speed, and whether documents alone get the same bits."""
    values, seconds, num_items, num_cut, same = [], 0.0, 0, 0, True
    tokens = scorer.info()["computed_tokens"]
    alone_tokens = 0
    with progress() as on_progress:
        for place, numbers in enumerate(found):
            query, texts = collection.queries[place], [collection.documents[n] for n in numbers]
            start = time.perf_counter()
            ranking = scorer.rank(query, texts)
            seconds += time.perf_counter() - start
            num_items += len(texts)
            num_cut += sum(item.cut for item in ranking)
            values.append(ndcg([numbers[item.index] for item in ranking], collection.grades[place]))
            if place < num_alone:
                before = scorer.info()["computed_tokens"]
                alone = [scorer.rank(query, [item.text])[0] for item in ranking]
                same &= all(
                    (one.score, one.margin) == (item.score, item.margin)
                    for one, item in zip(alone, ranking, strict=True)
                )
                alone_tokens += scorer.info()["computed_tokens"] - before
            on_progress("questions", place + 1, len(found))
    return {
        "ndcg_at_10": math.fsum(values) / len(values),
        "items": num_items,
        "cut_items": num_cut,
        "computed_tokens": scorer.info()["computed_tokens"] - tokens - alone_tokens,
        "seconds": seconds,
        "items_per_s": num_items / seconds,
        "asked_alone": sum(map(len, found[:num_alone])),
        "same_bits_alone": same,
    }


def main() -> None:
    """Prints a line for BM25 and for each model, and writes all figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("collection", type=Path, help="folder of the collection")
    parser.add_argument("models", nargs="+", help="folders of checkpoints, or Hub ids")
    parser.add_argument("--num-queries", type=int, default=50, help="questions (50)")
    parser.add_argument("--depth", type=int, default=50, help="documents of BM25 for each (50)")
    parser.add_argument(
        "--num-alone", type=int, default=3, help="questions to ask in parts too (3)"
    )
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    options = parser.parse_args()
    collection = read_collection(options.collection)
    found = first_stage(collection, options.num_queries, options.depth)
    bm25 = [ndcg(*each) for each in zip(found, collection.grades, strict=False)]
    report: dict[str, Any] = {"bm25": {"ndcg_at_10": math.fsum(bm25) / len(bm25)}}
    say(f"BM25: NDCG@10 {report['bm25']['ndcg_at_10']:.4f}")
    for model in options.models:
        scorer = Scorer.from_pretrained(model)
        row = report[model] = rerank(scorer, collection, found, options.num_alone)
        bits = "same" if row["same_bits_alone"] else "OTHER"
        say(
            f"{model}: NDCG@10 {row['ndcg_at_10']:.4f}, {row['items_per_s']:.1f} items/s, "
            f"{row['asked_alone']} items alone: {bits} bits"
        )
    if options.json:
        report = {"benchmark": "cranfield", **environment(), "depth": options.depth, **report}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(not all(report[model]["same_bits_alone"] for model in options.models))


if __name__ == "__main__":
    main()
