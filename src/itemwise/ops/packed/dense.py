"""Packed attention under a materialised mask: plain, and the meaning of every other form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from itemwise.ops.packed.base import PackedArrays
from itemwise.ops.softmax import product, scaled_scores


def visible(arrays: PackedArrays, num_tokens: int) -> Bool[Array, "T T"]:
    """The rule of `base.py` as a mask, readers first."""
    places = jnp.arange(num_tokens)
    item = jnp.searchsorted(arrays.row_starts, places, side="right") - 1
    row_start = jnp.where(item < 0, 0, arrays.row_starts[item])
    reader, read = places[:, None], places[None, :]
    seen: Bool[Array, "T T"] = (read < arrays.prefix_end) | (read >= row_start[:, None])
    return (read <= reader) & seen


def attend_dense(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    arrays: PackedArrays,
) -> Float[Array, "T N H"]:
    """Attention output of every token place; padding holds finite garbage.

    Takes one key/value head after the other, and for each all T * T products at once.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    mask = visible(arrays, num_tokens)

    def one_head(parts: tuple[Array, Array, Array]) -> Array:
        q_k, k_k, v_k = parts
        scores = scaled_scores("th,sh->ts", q_k.reshape(-1, head_dim), k_k)
        scores = jnp.where(mask, scores.reshape(-1, num_tokens, num_tokens), -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        seen = product("ts,sh->th", weights.reshape(-1, num_tokens), v_k)
        return seen.astype(q.dtype).reshape(q_k.shape)

    grouped = q.reshape(num_tokens, num_kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    out: Array = lax.map(one_head, (grouped, k.transpose(1, 0, 2), v.transpose(1, 0, 2)))
    return out.transpose(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)
