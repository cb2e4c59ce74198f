"""Packed attention by tiles, in XLA: what no reader sees is never computed.

Every token sees the prefix up to itself, tile by tile, and an item's tokens see their item, granule
by granule. Granules are counted from the item's first token, as in the exact step, so neither an
item's place nor its neighbours enter a sum: at one padded length, items are isolated bit by bit.
Memory grows with T, not with T * T.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from itemwise.ops.packed.base import PackedArrays
from itemwise.ops.softmax import SoftmaxState, accumulate, own_rows, scaled_scores, with_places

# Readers and keys of a tile; scores of a tile stay in a CPU's cache (decision 0006).
TILE_READERS, TILE_KEYS = 256, 512


def attend_segment(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    arrays: PackedArrays,
    granule_tokens: int,
) -> Float[Array, "T N H"]:
    """Attention output of every token place; padding holds finite garbage.

    T must be a multiple of 256, and of 512 where it is longer.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    q, k, v = (with_places(a, granule_tokens) for a in (q, k, v))
    q = q.reshape(q.shape[0], num_kv_heads, -1, head_dim).transpose(1, 0, 2, 3)
    k, v = k.transpose(1, 0, 2), v.transpose(1, 0, 2)
    sums = own_rows(q, k, v, arrays, granule_tokens)
    out = _prefix(q, k, v, sums, arrays, num_tokens)[:, :num_tokens]
    return out.transpose(1, 0, 2, 3).reshape(num_tokens, num_heads, head_dim)


def _prefix(
    q: Float[Array, "K places group H"],
    k: Float[Array, "K places H"],
    v: Float[Array, "K places H"],
    sums: SoftmaxState,
    arrays: PackedArrays,
    num_tokens: int,
) -> Float[Array, "K places group H"]:
    """Adds to each token's sums what it sees of the prefix, and divides."""
    num_kv_heads, _, group, head_dim = q.shape
    readers, keys = min(TILE_READERS, num_tokens), min(TILE_KEYS, num_tokens)
    assert num_tokens % readers == num_tokens % keys == 0  # what `bucket_tokens` gives
    rows = readers * group

    def one_tile_head(n: Array, out: Array) -> Array:
        tile, head = n // num_kv_heads, n % num_kv_heads
        first = tile * readers

        def own(a: Array) -> Array:
            a = lax.dynamic_slice(
                a, (head, first) + (0,) * (a.ndim - 2), (1, readers, *a.shape[2:])
            )
            return a.reshape(rows, *a.shape[3:])

        q_n = own(q)
        reader = first + jnp.arange(rows)[:, None] // group

        def one_block(b: Array, tile_sums: SoftmaxState) -> SoftmaxState:
            def read(a: Array) -> Array:
                return lax.dynamic_slice(a, (head, b * keys, 0), (1, keys, head_dim))[0]

            place = b * keys + jnp.arange(keys)[None]
            seen = (place <= reader) & (place < arrays.prefix_end)
            scores = jnp.where(seen, scaled_scores("th,sh->ts", q_n, read(k)), -jnp.inf)
            return accumulate(tile_sums, scores, read(v), "ts,sh->th")

        # A tile of padding sees nothing; one of the prefix, no further than itself.
        end = jnp.minimum(first + readers, arrays.prefix_end)
        blocks = jnp.where(first < arrays.num_places, (end + keys - 1) // keys, 0)
        tile_sums = lax.fori_loop(0, blocks, one_block, SoftmaxState(*(own(a) for a in sums)))
        # A place of padding may have no weight; it gets zero instead of NaN.
        result = tile_sums.total / jnp.maximum(tile_sums.weight, 1e-30)[:, None]
        result = result.astype(q.dtype).reshape(1, readers, group, head_dim)
        return lax.dynamic_update_slice(out, result, (head, first, 0, 0))

    tiles = num_tokens // readers * num_kv_heads
    out: Array = lax.fori_loop(0, tiles, one_tile_head, jnp.zeros_like(q))
    return out
