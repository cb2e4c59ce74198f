"""How fast a machine multiplies and copies: the ceilings that workloads are held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PROBE_ROWS, PROBE_OUT, PROBE_IN = 512, 6144, 1024  # a product of a step of qwen3-0.6b


def best_seconds(call: Callable[[], Any], total_s: float = 0.3) -> float:
    """The least time of the calls that fit into `total_s`, after one that is not counted."""
    call()
    seconds: list[float] = []
    while not seconds or sum(seconds) < total_s:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def probe_gflops(product: Callable[[], Any]) -> float:
    """Speed of the probe's product."""
    return 2 * PROBE_ROWS * PROBE_OUT * PROBE_IN / best_seconds(product) / 1e9
