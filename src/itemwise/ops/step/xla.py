"""Attention of a step: every row sees its context and, causally, itself.

This is the XLA form, and the meaning that any kernel must keep. Two parts are merged by online
softmax (Milakov and Gimelshein, 2018, "Online normalizer calculation for softmax"):

1. The row itself, granule by granule, nearest first. Granules are counted from the row's first
   token, so where a row lies in the step, and beside whom, never enters a sum.
2. The context, block of pages by block of pages, through a page table.

A masked place is an exact no-op: its score is minus infinity, so the running maximum keeps its
value and zero is added. Hence padding, absent pages and neighbours cannot move a bit.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int32, Shaped

from itemwise.ops.softmax import (
    Sums,
    accumulate,
    dot_sum,
    own_rows,
    scaled_scores,
    with_places,
)
from itemwise.types import StepShape


class StepLayout(NamedTuple):
    """The arrays of `StepBatch` that say who sees whom; shapes and padding are given there."""

    lane_start: Int32[Array, " G"]
    num_lanes: Int32[Array, ""]
    context_pages: Int32[Array, "G C"]
    context_lens: Int32[Array, "G C"]
    num_blocks: Int32[Array, " G"]
    granule_start: Int32[Array, " granules"]
    granule_index: Int32[Array, " granules"]
    num_granules: Int32[Array, ""]


class PageWrites(NamedTuple):
    """Which rows fill which pages; entries from `num_writes` on are padding."""

    starts: Int32[Array, " G"]
    pages: Int32[Array, " G"]
    num_writes: Int32[Array, ""]


class Wanted(NamedTuple):
    """Token places whose attention is wanted; entries from `num_places` on are padding."""

    places: Int32[Array, " W"]
    num_places: Int32[Array, ""]


def to_storage(values: Array) -> Array:
    """Keys or values as the page pool keeps them: bfloat16 as its bits, in uint16.

    XLA on CPU slices and updates bfloat16 arrays by way of float32, all of the pool each time.
    """
    if values.dtype != jnp.bfloat16:
        return values
    return lax.bitcast_convert_type(values, jnp.uint16)


def from_storage(stored: Array, dtype: jnp.dtype) -> Array:
    """The inverse of `to_storage`."""
    return stored if stored.dtype == dtype else lax.bitcast_convert_type(stored, dtype)


def write_pages(
    pool: Shaped[Array, "P K page H"],
    new: Float[Array, "T K H"],
    writes: PageWrites,
) -> Shaped[Array, "P K page H"]:
    """The pool with the keys or values of the writing rows in their pages, updated in place.

    A row may be shorter than a page, whose end then holds what follows the row in the step.
    """
    page_tokens = pool.shape[2]
    stored = jnp.pad(to_storage(new), ((0, page_tokens), (0, 0), (0, 0)))

    def one(i: Array, pool: Array) -> Array:
        page = lax.dynamic_slice_in_dim(stored, writes.starts[i], page_tokens)
        page = page.transpose(1, 0, 2)[None]
        return lax.dynamic_update_slice_in_dim(pool, page, writes.pages[i], 0)

    written: Array = lax.fori_loop(0, writes.num_writes, one, pool)
    return written


def attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    k_pages: Shaped[Array, "P K page H"],
    v_pages: Shaped[Array, "P K page H"],
    layout: StepLayout,
    shape: StepShape,
    dot_sums: bool = False,
) -> Float[Array, "T N H"]:
    """Attention output of every token place; places outside rows hold finite garbage.

    Pages are given in storage form, see `to_storage`. With `dot_sums`, bits do not depend on the
    tokens of a lane on CPU, see `dot_sum`.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads
    # The last lane and granule may reach past the step's end.
    q, k, v = (with_places(a, max(shape.lane_tokens, shape.granule_tokens)) for a in (q, k, v))
    # Heads first, the query heads of one kv head side by side: every slice below is contiguous.
    q = q.reshape(-1, num_kv_heads, group, head_dim).transpose(1, 0, 2, 3)
    sums = own_rows(q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), layout, shape.granule_tokens)
    out = _contexts(q, sums, k_pages, v_pages, layout, shape, dot_sums)[:, :num_tokens]
    return out.transpose(1, 0, 2, 3).reshape(num_tokens, num_heads, head_dim)


def _contexts(
    q: Float[Array, "K places group H"],
    sums: Sums,
    k_pages: Shaped[Array, "P K page H"],
    v_pages: Shaped[Array, "P K page H"],
    layout: StepLayout,
    shape: StepShape,
    dot_sums: bool,
) -> Float[Array, "K places group H"]:
    """Adds each lane's context to the sums and divides: the attention output.

    Lane by lane and head by head, so that a block's scores stay in cache and a lane pays for its
    own context alone: whole blocks first, then one or two single pages. The length of the context
    alone decides which. Places of a lane that belong to the next one are overwritten by it.
    """
    num_kv_heads, _, group, head_dim = q.shape
    lane, page, pages = shape.lane_tokens, k_pages.shape[2], shape.block_pages
    rows = lane * group
    take_in = functools.partial(accumulate, sum_keys=dot_sum) if dot_sums else accumulate
    num_pages = (layout.context_lens > 0).sum(1)
    num_blocks = (num_pages + pages // 4) // pages  # one page short of a block is one, too

    def one_lane_head(i: Array, out: Array) -> Array:
        g, head = i // num_kv_heads, i % num_kv_heads
        start = layout.lane_start[g]

        def own(a: Array) -> Array:
            a = lax.dynamic_slice(a, (head, start) + (0,) * (a.ndim - 2), (1, lane, *a.shape[2:]))
            return a.reshape(rows, *a.shape[3:])

        q_g = own(q)

        def one_block(b: Array, lane_sums: Sums, pages: int) -> Sums:
            at, size = (g, b * pages), (1, pages)
            found = lax.dynamic_slice(layout.context_pages, at, size)[0]
            lens = lax.dynamic_slice(layout.context_lens, at, size)[0]

            def read(pool: Array) -> Array:
                return from_storage(pool[found, head], q.dtype).reshape(pages * page, head_dim)

            k_b, v_b = read(k_pages), read(v_pages)
            valid = (jnp.arange(page) < lens[:, None]).reshape(-1)
            scores = jnp.where(valid, scaled_scores("th,sh->ts", q_g, k_b), -jnp.inf)
            return take_in(lane_sums, scores, v_b, "ts,sh->th")

        lane_sums = Sums(*(own(a) for a in sums))
        block, single = (functools.partial(one_block, pages=size) for size in (pages, 1))
        lane_sums = lax.fori_loop(0, num_blocks[g], block, lane_sums)
        lane_sums = lax.fori_loop(num_blocks[g] * pages, num_pages[g], single, lane_sums)
        # A place outside every row has no weight; it gets zero instead of NaN.
        result = lane_sums.total / jnp.maximum(lane_sums.weight, 1e-30)[:, None]
        result = result.astype(q.dtype).reshape(1, lane, group, head_dim)
        return lax.dynamic_update_slice(out, result, (head, start, 0, 0))

    out: Array = lax.fori_loop(0, layout.num_lanes * num_kv_heads, one_lane_head, jnp.zeros_like(q))
    return out
