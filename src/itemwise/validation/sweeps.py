"""Sweeps over sizes: number of items, tokens of items, tokens of the query.

Each case scores seeded items together, then the first and the last of them alone, and compares.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from itemwise.errors import RequestRefusedError
from itemwise.progress import ProgressFn
from itemwise.validation.files import Json
from itemwise.validation.measures import max_abs_diff
from itemwise.validation.probes import Score
from itemwise.validation.workloads import Workload

Sweep = Literal["none", "quick", "full"]
NUM_ITEMS = 4
ITEM_TOKENS = 5
# Numbers of items, tokens of an item, tokens of the query.
SIZES: dict[Sweep, dict[str, tuple[int, ...]]] = {
    "none": {},
    "quick": {
        "num_items": (1, 8, 32),
        "item_tokens": (1, 20, 60),
        "query_tokens": (1, 64, 300),
    },
    "full": {
        "num_items": (1, 2, 3, 8, 32, 64, 128, 200, 256, 512),
        "item_tokens": (1, 2, 5, 20, 50, 100, 150, 200),
        "query_tokens": (1, 16, 128, 300, 1000, 2000, 4000),
    },
}


@dataclass(frozen=True)
class Case:
    """Sizes of one request; `varied` is the one that its sweep changes."""

    varied: str
    query_tokens: int
    num_items: int
    item_tokens: int


def cases(sweep: Sweep, workload: Workload) -> list[Case]:
    """The cases of a sweep; sizes that it does not vary are the workload's."""
    found = []
    for varied, sizes in SIZES[sweep].items():
        for size in sizes:
            fixed = {
                "query_tokens": len(workload.query),
                "num_items": NUM_ITEMS,
                "item_tokens": ITEM_TOKENS,
            }
            found.append(Case(varied, **{**fixed, varied: size}))
    return found


def run_sweeps(score: Score, workload: Workload, sweep: Sweep, on_progress: ProgressFn) -> Json:
    """Runs the cases; one that the server refuses is recorded with the reason, not as pass or fail.

    Raises:
        EndpointError: the server is unreachable, too slow or failing.
    """
    todo = cases(sweep, workload)
    rows = []
    for done, case in enumerate(todo, 1):
        rows.append(_run(score, workload, case))
        on_progress("sweeps", done, len(todo))
    diffs = [row["max_abs_diff_alone"] for row in rows if "max_abs_diff_alone" in row]
    worst = max(diffs, default=None)
    return {
        "sweep": sweep,
        "what": "Seeded items in other numbers and lengths: together and alone",
        "cases": rows,
        "max_abs_diff": worst,
        "pass": None if worst is None else worst == 0.0,
    }


def _run(score: Score, workload: Workload, case: Case) -> Json:
    (query,) = workload.random_ids(1, case.query_tokens, seed=1)
    items = workload.random_ids(case.num_items, case.item_tokens, seed=2)
    row: Json = {
        "varied": case.varied,
        "query_tokens": case.query_tokens,
        "num_items": case.num_items,
        "item_tokens": case.item_tokens,
    }
    try:
        start = time.perf_counter()
        together = score(items, query=query)
        row["latency_sec"] = time.perf_counter() - start
        ends = sorted({0, case.num_items - 1})
        alone = [score([items[i]], query=query)[0] for i in ends]
    except RequestRefusedError as error:
        return {**row, "refused": str(error)}
    diff = max_abs_diff(alone, [together[i] for i in ends])
    return {**row, "items_compared": ends, "max_abs_diff_alone": diff}
