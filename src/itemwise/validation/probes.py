"""Isolation probes: change the other items of a request and see whether an item's score changes.

Every probe takes `score`, which scores a list of items against the workload's query, and returns
JSON values: `what` it does, `max_abs_diff`, and `pass`, true only for a difference of 0.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from itemwise.validation.files import Json
from itemwise.validation.measures import Scores, abs_diffs, average, largest, max_abs_diff
from itemwise.validation.workloads import Ids, Workload, as_lists

REPEATS = 5
DUPLICATES = 8
CHUNK_SIZES = (0, 1, 2, 32)


class Score(Protocol):
    """Scores items against the workload's query, or another query."""

    def __call__(self, items: Sequence[Ids], query: Ids | None = None, **more: Any) -> Scores:
        """Scores [items][labels]."""
        ...


def mutation(score: Score, workload: Workload, base: Scores, item: Ids) -> Json:
    """Replaces one item; compares the scores of the other items with those before."""
    scores = score(workload.with_item(item))
    index = workload.mutated_index
    kept = [i for i in range(len(base)) if i != index]
    diffs = abs_diffs([scores[i] for i in kept], [base[i] for i in kept])
    return {
        "mutated_index": index,
        "mutated_item_ids": list(item),
        "scores": scores,
        "unchanged_item_indices": kept,
        "unchanged_item_abs_diffs": diffs,
        "max_abs_diff_unchanged": largest(diffs),
        "mean_abs_diff_unchanged": average(diffs),
    }


def order(score: Score, workload: Workload, base: Scores) -> Json:
    """The items in reverse order, and rotated by two."""
    count = len(base)
    orders = {"reversed": [*range(count)][::-1], "rotated": [(i + 2) % count for i in range(count)]}
    found = {
        name: max_abs_diff(score([workload.items[i] for i in places]), [base[i] for i in places])
        for name, places in orders.items()
    }
    return _probe("The items in another order", found)


def removed(score: Score, workload: Workload, base: Scores) -> Json:
    """Each item left out in turn."""
    found = {}
    for left_out in range(len(base)):
        kept = [i for i in range(len(base)) if i != left_out]
        scores = score([workload.items[i] for i in kept])
        found[f"without item {left_out}"] = max_abs_diff(scores, [base[i] for i in kept])
    return _probe("One item removed", found)


def added(score: Score, workload: Workload, base: Scores) -> Json:
    """A new item in front, and at the end."""
    new = workload.changed_length_item
    found = {
        "in front": max_abs_diff(score([new, *workload.items])[1:], base),
        "at the end": max_abs_diff(score([*workload.items, new])[:-1], base),
    }
    return _probe("One item added", found)


def duplicates(score: Score, workload: Workload, base: Scores) -> Json:
    """One item many times: every copy must score as it did among the others."""
    scores = score([workload.items[0]] * DUPLICATES)
    found = {f"copy {i}": max_abs_diff([row], [base[0]]) for i, row in enumerate(scores)}
    return _probe(f"One item {DUPLICATES} times in one request", found)


def repeated(score: Score, workload: Workload, base: Scores) -> Json:
    """The same request again and again."""
    found = {f"time {i + 1}": max_abs_diff(score(workload.items), base) for i in range(REPEATS)}
    return _probe(f"The same request {REPEATS} times", found)


def chunk_sizes(score: Score, workload: Workload, base: Scores) -> Json:
    """Other values of the request field `chunk_size`, each also with the mutated item."""
    index = workload.mutated_index
    mutated = workload.with_item(workload.changed_length_item)
    found = {}
    for size in CHUNK_SIZES:
        plain = max_abs_diff(score(workload.items, chunk_size=size), base)
        scores = score(mutated, chunk_size=size)
        others = [i for i in range(len(base)) if i != index]
        after = max_abs_diff([scores[i] for i in others], [base[i] for i in others])
        found[f"chunk size {size}"] = max(plain, after)
    return _probe("Other chunk sizes, plain and with one item changed", found)


def not_measured(why: str) -> Json:
    """The result of a probe that this server does not support."""
    return {"what": why, "max_abs_diff": None, "pass": None, "not_measured": why}


def negative_control(score: Score, workload: Workload) -> Json:
    """Whether the probes would detect a leak: makes one on purpose, through the same server.

    Each item after the mutated one is scored with the items before it put into its query, as in a
    packed sequence without a mask; then again with the mutated item in its place.
    """
    scores = []
    for item in (workload.items[workload.mutated_index], workload.same_length_item):
        items = workload.with_item(item)
        rows = []
        for index in range(workload.mutated_index + 1, len(items)):
            seen = tuple(token for one in items[:index] for token in one)
            rows += score([items[index]], query=(*workload.query, *seen))
        scores.append(rows)
    moved = max_abs_diff(*scores)
    return {
        "what": "A leak made on purpose: earlier items inside the query",
        "max_abs_diff": moved,
        "detects_leak": moved > 0.0,
        "mutated_item_ids": as_lists([workload.same_length_item])[0],
    }


def _probe(what: str, found: dict[str, float]) -> Json:
    worst = largest([found.values()])
    return {"what": what, "max_abs_diff": worst, "pass": worst == 0.0, "cases": found}
