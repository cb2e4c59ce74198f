"""Attention of a packed sequence: a prefix, then items that must not see each other.

One rule says who sees whom. With places i (reader) and j (read),

    visible(i, j) = j <= i and (j < prefix_end or j >= row_start(i))

where `row_start(i)` is the place of the first token of the item that holds i. Backends:

    dense     the rule as a [T, T] mask: the meaning (`dense.py`)
    segment   tiles that no reader sees are never computed, memory grows with T: XLA
              (`segment.py`) or a kernel (`tpu_packed.py`, `gpu_packed.py`)
"""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Int32


class PackedLayout(NamedTuple):
    """The arrays of `PackedBatch` that say who sees whom; shapes and padding are given there."""

    row_starts: Int32[Array, " I"]
    prefix_end: Int32[Array, ""]
    num_tokens: Int32[Array, ""]
    granule_start: Int32[Array, " granules"]
    granule_index: Int32[Array, " granules"]
    num_granules: Int32[Array, ""]
