"""How fast a machine multiplies and copies: the ceilings that workloads are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Probe:
    """Sizes of a matrix product, [rows, inner] by [outer, inner]."""

    rows: int
    outer: int
    inner: int

    def gflops(self, product: Callable[[], Any]) -> float:
        """Speed of the product, in GFLOP/s."""
        return 2 * self.rows * self.outer * self.inner / best_seconds(product) / 1e9


def probe_of(device: str) -> Probe:
    """The product that measures a device's ceiling: on CPU, one from a step of qwen3-0.6b."""
    return Probe(512, 6144, 1024) if device == "cpu" else Probe(8192, 8192, 8192)


def best_seconds(call: Callable[[], Any], total_s: float = 0.3) -> float:
    """The shortest time of the calls that fit into `total_s`, after one warm-up call."""
    call()
    seconds: list[float] = []
    while not seconds or sum(seconds) < total_s:
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
