"""The exact step's attention in XLA: the plain form, to which all others are compared.

Two parts are merged by online softmax (Milakov and Gimelshein, 2018, "Online normalizer
calculation for softmax"):

1. The row itself, granule by granule, nearest first. Granules are counted from the row's first
   token, so where a row lies in the step, and beside whom, never enters a sum.
2. The context, block of pages by block of pages, through a page table.

A masked place is an exact no-op: its score is minus infinity, so the running maximum keeps its
value and zero is added. Hence padding, absent pages and neighbours cannot move a bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from itemwise.ops.softmax import (
    SoftmaxState,
    accumulate,
    dot_sum,
    own_rows,
    scaled_scores,
    with_places,
)
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, from_storage


def attend_xla(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    pages: Pages,
    arrays: StepArrays,
    shape: StepShape,
    *,
    dot_sums: bool = False,
) -> Float[Array, "T N H"]:
    """As `StepAttention`. With `dot_sums`, bits do not depend on the tokens of a lane on CPU."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads
    # The last lane and granule may reach past the step's end.
    q, k, v = (with_places(a, max(shape.lane_tokens, shape.granule_tokens)) for a in (q, k, v))
    # Heads first, the query heads of one kv head side by side: every slice below is contiguous.
    q = q.reshape(-1, num_kv_heads, group, head_dim).transpose(1, 0, 2, 3)
    sums = own_rows(q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), arrays, shape.granule_tokens)
    take_in = functools.partial(accumulate, sum_keys=dot_sum) if dot_sums else accumulate
    out = _contexts(q, sums, pages, arrays, shape, take_in)[:, :num_tokens]
    return out.transpose(1, 0, 2, 3).reshape(num_tokens, num_heads, head_dim)


def _contexts(
    q: Float[Array, "K places group H"],
    sums: SoftmaxState,
    cached: Pages,
    arrays: StepArrays,
    shape: StepShape,
    take_in: Callable[..., SoftmaxState],
) -> Float[Array, "K places group H"]:
    """Adds each lane's context to the sums and divides: the attention output.

    Lane by lane and head by head, so that a block's scores stay in cache and a lane pays for its
    own context alone: whole blocks first, then one or two single pages. The length of the context
    alone decides which. Places of a lane that belong to the next one are overwritten by it.
    """
    num_kv_heads, _, group, head_dim = q.shape
    lane, page, pages = shape.lane_tokens, cached.k.shape[2], shape.block_pages
    rows = lane * group
    num_pages = (arrays.context_lens > 0).sum(1)
    num_blocks = (num_pages + pages // 4) // pages  # one page short of a block is one, too

    def one_lane_head(i: Array, out: Array) -> Array:
        g, head = i // num_kv_heads, i % num_kv_heads
        start = arrays.lane_start[g]

        def own(a: Array) -> Array:
            a = lax.dynamic_slice(a, (head, start) + (0,) * (a.ndim - 2), (1, lane, *a.shape[2:]))
            return a.reshape(rows, *a.shape[3:])

        q_g = own(q)

        def one_block(b: Array, lane_sums: SoftmaxState, pages: int) -> SoftmaxState:
            at, size = (g, b * pages), (1, pages)
            found = lax.dynamic_slice(arrays.context_pages, at, size)[0]
            lens = lax.dynamic_slice(arrays.context_lens, at, size)[0]

            def read(pool: Array) -> Array:
                return from_storage(pool[found, head], q.dtype).reshape(pages * page, head_dim)

            k_b, v_b = read(cached.k), read(cached.v)
            valid = (jnp.arange(page)[None] < lens[:, None]).reshape(-1)
            scores = jnp.where(valid, scaled_scores("th,sh->ts", q_g, k_b), -jnp.inf)
            return take_in(lane_sums, scores, v_b, "ts,sh->th")

        lane_sums = SoftmaxState(*(own(a) for a in sums))
        block, single = (functools.partial(one_block, pages=size) for size in (pages, 1))
        lane_sums = lax.fori_loop(0, num_blocks[g], block, lane_sums)
        lane_sums = lax.fori_loop(num_blocks[g] * pages, num_pages[g], single, lane_sums)
        # A place outside every row has no weight; it gets zero instead of NaN.
        result = lane_sums.total / jnp.maximum(lane_sums.weight, 1e-30)[:, None]
        result = result.astype(q.dtype).reshape(1, lane, group, head_dim)
        return lax.dynamic_update_slice(out, result, (head, start, 0, 0))

    out: Array = lax.fori_loop(0, arrays.num_lanes * num_kv_heads, one_lane_head, jnp.zeros_like(q))
    return out
