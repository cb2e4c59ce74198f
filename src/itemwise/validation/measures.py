"""Differences of scores and statistics of latencies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Scores = list[list[float]]  # [items][labels]


def abs_diffs(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Scores:
    """|a - b| for each number, for the labels that both have."""
    if len(a) != len(b):
        raise ValueError(f"`a` has {len(a)} items, `b` has {len(b)}, expected equally many")
    return [[abs(x - y) for x, y in zip(p, q, strict=False)] for p, q in zip(a, b, strict=True)]


def largest(diffs: Iterable[Iterable[float]]) -> float:
    """The largest number; NaN if any number is NaN, 0.0 if there are no numbers."""
    numbers = [number for row in diffs for number in row]
    if any(math.isnan(number) for number in numbers):
        return math.nan
    return max(numbers, default=0.0)


def average(diffs: Iterable[Iterable[float]]) -> float:
    """The mean of all numbers, 0.0 if there are none."""
    numbers = [number for row in diffs for number in row]
    return math.fsum(numbers) / len(numbers) if numbers else 0.0


def max_abs_diff(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> float:
    """The largest of |a - b|."""
    return largest(abs_diffs(a, b))


def speed(latencies_s: Sequence[float], num_items: int) -> dict[str, Any]:
    """The reported statistics of the latencies of one number of items."""
    p50, p95 = map(float, np.percentile(latencies_s, (50, 95)))
    return {
        "latencies_sec": list(latencies_s),
        "p50_sec": p50,
        "p95_sec": p95,
        "items_per_sec_p50": num_items / p50,
        "items_per_sec_p95": num_items / p95,
    }
