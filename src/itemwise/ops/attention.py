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

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32, Int32, Shaped

from itemwise.types import StepShape

# Finite, so that the difference of two running maxima is never "inf - inf"; any score exceeds it.
LOWEST = -1e30


class StepLayout(NamedTuple):
    """The arrays of `StepBatch` that say who sees whom; shapes and padding are given there."""

    context_pages: Int32[Array, "G C"]
    context_lens: Int32[Array, "G C"]
    num_blocks: Int32[Array, " G"]
    granule_start: Int32[Array, " granules"]
    granule_index: Int32[Array, " granules"]
    num_granules: Int32[Array, ""]


class _Sums(NamedTuple):
    """Running state of the online softmax: maximum, sum of weights, weighted sum of values."""

    top: Float32[Array, "*rows"]
    weight: Float32[Array, "*rows"]
    total: Float32[Array, "*rows H"]


def dot_precision(dtype: jnp.dtype) -> lax.Precision | None:
    """Full precision for float32; accelerators else multiply it in fewer bits."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


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


def attend(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    k_pages: Shaped[Array, "P K R H"],
    v_pages: Shaped[Array, "P K R H"],
    layout: StepLayout,
    shape: StepShape,
) -> Float[Array, "T N H"]:
    """Attention output of every token place; places outside rows hold finite garbage.

    Pages are given in storage form, see `to_storage`.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads
    # Heads first, the query heads of one kv head side by side: every slice below is contiguous.
    q = q.reshape(num_tokens, num_kv_heads, group, head_dim).transpose(1, 0, 2, 3)
    sums = _own_rows(q, k.transpose(1, 0, 2), v.transpose(1, 0, 2), layout, shape.granule_tokens)
    out = _contexts(q, sums, k_pages, v_pages, layout, shape)
    return out.transpose(1, 0, 2, 3).reshape(num_tokens, num_heads, head_dim)


def _scores(equation: str, q: Array, k: Array) -> Array:
    """Scaled products of queries and keys, float32 [..., keys]."""
    products = jnp.einsum(
        equation, q, k, preferred_element_type=jnp.float32, precision=dot_precision(k.dtype)
    )
    scores: Array = products * q.shape[-1] ** -0.5
    return scores


def _accumulate(sums: _Sums, scores: Array, v: Array, equation: str) -> _Sums:
    """Takes one block of keys into the sums. `scores` [..., keys], masked with minus infinity."""
    top = jnp.maximum(sums.top, scores.max(-1))
    p, shrink = jnp.exp(scores - top[..., None]), jnp.exp(sums.top - top)
    seen = jnp.einsum(
        equation,
        p.astype(v.dtype),
        v,
        preferred_element_type=jnp.float32,
        precision=dot_precision(v.dtype),
    )
    total = sums.total * shrink[..., None] + seen
    return _Sums(top, sums.weight * shrink + p.sum(-1), total)


def _own_rows(
    q: Float[Array, "K T group H"],
    k: Float[Array, "K T H"],
    v: Float[Array, "K T H"],
    layout: StepLayout,
    granule: int,
) -> _Sums:
    """Sums over each token's own row up to itself. Returns arrays [K, T, group(, H)].

    A granule may hold fewer tokens than it has places: what lies past them belongs to a later
    granule, which overwrites it, or to nobody. Granules come in the order of their start.
    """
    num_kv_heads, num_tokens, group, head_dim = q.shape
    # The last granule may reach past the step's end.
    q, k, v = (jnp.pad(a, [(0, 0), (0, granule)] + [(0, 0)] * (a.ndim - 2)) for a in (q, k, v))
    rows = (num_kv_heads, granule * group)
    # Place t sees place s <= t of its granule; the heads of a group sit side by side.
    causal = jnp.arange(granule * group)[:, None] // group >= jnp.arange(granule)

    def one_granule(n: Array, sums: _Sums) -> _Sums:
        start = layout.granule_start[n]
        q_n = lax.dynamic_slice_in_dim(q, start, granule, 1).reshape(*rows, head_dim)

        def one_product(j: Array, own: _Sums) -> _Sums:
            k_j = lax.dynamic_slice_in_dim(k, start - j * granule, granule, 1)
            v_j = lax.dynamic_slice_in_dim(v, start - j * granule, granule, 1)
            scores = jnp.where(causal | (j > 0), _scores("kth,ksh->kts", q_n, k_j), -jnp.inf)
            return _accumulate(own, scores, v_j, "kts,ksh->kth")

        own = lax.fori_loop(0, layout.granule_index[n] + 1, one_product, _no_sums(rows, head_dim))

        def put(whole: Array, part: Array) -> Array:
            part = part.reshape(num_kv_heads, granule, group, *part.shape[2:])
            return lax.dynamic_update_slice_in_dim(whole, part, start, 1)

        return _Sums(*map(put, sums, own))

    empty = _no_sums((num_kv_heads, num_tokens + granule, group), head_dim)
    sums = lax.fori_loop(0, layout.num_granules, one_granule, empty)
    return _Sums(*(a[:, :num_tokens] for a in sums))


def _contexts(
    q: Float[Array, "K T group H"],
    sums: _Sums,
    k_pages: Shaped[Array, "P K R H"],
    v_pages: Shaped[Array, "P K R H"],
    layout: StepLayout,
    shape: StepShape,
) -> Float[Array, "K T group H"]:
    """Adds each lane's context to the sums and divides: the attention output.

    Lane by lane and head by head, so that a block's scores stay in cache and a lane pays for its
    own context alone.
    """
    num_kv_heads, num_tokens, group, head_dim = q.shape
    lane, page, pages = shape.lane_tokens, k_pages.shape[2], shape.block_pages
    rows = lane * group

    def one_lane_head(i: Array, out: Array) -> Array:
        g, head = i // num_kv_heads, i % num_kv_heads

        def own(a: Array) -> Array:
            a = lax.dynamic_slice(
                a, (head, g * lane) + (0,) * (a.ndim - 2), (1, lane, *a.shape[2:])
            )
            return a.reshape(rows, *a.shape[3:])

        q_g = own(q)

        def one_block(b: Array, lane_sums: _Sums) -> _Sums:
            at, size = (g, b * pages), (1, pages)
            found = lax.dynamic_slice(layout.context_pages, at, size)[0]
            lens = lax.dynamic_slice(layout.context_lens, at, size)[0]

            def read(pool: Array) -> Array:
                return from_storage(pool[found, head], q.dtype).reshape(pages * page, head_dim)

            k_b, v_b = read(k_pages), read(v_pages)
            valid = (jnp.arange(page) < lens[:, None]).reshape(-1)
            scores = jnp.where(valid, _scores("th,sh->ts", q_g, k_b), -jnp.inf)
            return _accumulate(lane_sums, scores, v_b, "ts,sh->th")

        lane_sums = lax.fori_loop(
            0, layout.num_blocks[g], one_block, _Sums(*(own(a) for a in sums))
        )
        # A place outside every row has no weight; it gets zero instead of NaN.
        result = lane_sums.total / jnp.maximum(lane_sums.weight, 1e-30)[:, None]
        result = result.astype(q.dtype).reshape(1, lane, group, head_dim)
        return lax.dynamic_update_slice(out, result, (head, g * lane, 0, 0))

    out: Array = lax.fori_loop(0, shape.lanes * num_kv_heads, one_lane_head, jnp.zeros_like(q))
    return out


def _no_sums(rows: tuple[int, ...], head_dim: int) -> _Sums:
    return _Sums(
        jnp.full(rows, LOWEST, jnp.float32),
        jnp.zeros(rows, jnp.float32),
        jnp.zeros((*rows, head_dim), jnp.float32),
    )
