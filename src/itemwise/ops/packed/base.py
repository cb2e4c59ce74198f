"""Attention of a packed sequence: a prefix, then items that must not see each other.

One rule says who sees whom. With places i (reader) and j (read),

    visible(i, j) = j <= i and (j < prefix_end or j >= row_start(i))

where `row_start(i)` is the place of the first token of the item that holds i. Backends take
`(q, k, v, arrays)`, where values must be finite (`softmax.mark_in_keys`), and give the attention
output of every token place; padding holds garbage:

    dense     the rule as a [T, T] mask: the meaning (`dense.py`)
    segment   tiles that no reader sees are never computed, memory grows with T: XLA
              (`segment.py`) or a kernel (`tpu.py`, `gpu.py`)

The packer fills `PackedArrays` with NumPy, and `forward_packed` takes the same ones as JAX arrays.
Imports no JAX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Int32

from itemwise.types import AnyArray


@dataclass(frozen=True)
class PackedShape:
    """The fixed sizes of a packed sequence; its program depends on these alone.

    Attributes:
        tokens: T, token places of the sequence.
        max_rows: I, items of the sequence at most.
        granule_tokens: tokens of a granule; items attend to themselves granule by granule.
    """

    tokens: int
    max_rows: int
    granule_tokens: int

    @property
    def max_granules(self) -> int:
        """Granules that any `max_rows` items can need."""
        return self.tokens // self.granule_tokens + self.max_rows


class PackedArrays(NamedTuple):
    """The arrays of a packed sequence: the prefix, then the items, without a gap.

    Attributes:
        tokens: token ids; padding holds 0.
        positions: positions as if each item alone followed the prefix; padding holds 0.
        row_starts: the place of each item's first token, increasing; padding holds T.
        prefix_end: tokens of the prefix.
        granule_start: first token place of each granule of an item, increasing; the prefix has
            none.
        granule_index: granules of the same item before it; padding holds 0.
        num_granules: granules in use.
        score_tokens: the place at which each item is scored; padding holds 0.
        num_scored: items in use.
        num_places: token places in use.
    """

    tokens: Int32[AnyArray, " T"]
    positions: Int32[AnyArray, " T"]
    row_starts: Int32[AnyArray, " I"]
    prefix_end: Int32[AnyArray, ""]
    granule_start: Int32[AnyArray, " granules"]
    granule_index: Int32[AnyArray, " granules"]
    num_granules: Int32[AnyArray, ""]
    score_tokens: Int32[AnyArray, " I"]
    num_scored: Int32[AnyArray, ""]
    num_places: Int32[AnyArray, ""]
