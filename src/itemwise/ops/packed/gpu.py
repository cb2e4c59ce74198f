"""Packed attention as a kernel for NVIDIA GPUs: tiles that no reader sees are not computed.

As on TPU (`tpu.py`), a program has a tile of readers and walks the tiles of keys that some
reader sees (`walk.py`); here it has one query head, and keeps its sums in registers. Pallas hands
it to Triton.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Float

from itemwise.ops.packed.base import PackedArrays
from itemwise.ops.packed.tiles import GPU_PACKED_TILES, PackedTiles
from itemwise.ops.packed.walk import Walk, last_readers, walk_of
from itemwise.ops.pallas_gpu import NUM_STAGES, NUM_WARPS, divided, no_sums, take_in
from itemwise.ops.softmax import SoftmaxState


def attend_packed_gpu(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    arrays: PackedArrays,
    interpret: bool = False,
) -> Float[Array, "T N H"]:
    """Attention output of every token place; padding holds finite garbage.

    Args:
        q: queries; head_dim must be a power of two, at least 16. T is a multiple of the tiles'.
        k: keys.
        v: values.
        arrays: who sees whom.
        interpret: run it without a GPU, for tests.
    """
    num_tokens, num_heads, _ = q.shape
    tiles, group = GPU_PACKED_TILES, num_heads // k.shape[1]
    walk = walk_of(arrays, num_tokens, tiles)

    def kernel(*refs: Any) -> None:
        tile_walk, others = refs[: len(walk)], refs[len(walk) :]
        _kernel(Walk(*tile_walk), *others, group=group, tiles=tiles)

    attended: Array = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        grid=(num_tokens // tiles.readers, num_heads),
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS, num_stages=NUM_STAGES),
        interpret=interpret,
        name="packed_attention",
    )(*walk, last_readers(arrays, num_tokens)[0], q, k, v)
    return attended


def _kernel(
    walk: Walk,
    last_reader_ref: Any,
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    out_ref: Any,
    *,
    group: int,
    tiles: PackedTiles,
) -> None:
    tile, head = pl.program_id(0), pl.program_id(1)
    kv_head = lax.div(head, group)
    readers = pl.ds(tile * tiles.readers, tiles.readers)
    q, reader = q_ref[readers, head, :], tile * tiles.readers + jnp.arange(tiles.readers)
    prefix_tiles, own_first = walk.prefix_tiles[tile], walk.own_first[tile]

    def one_tile(n: Array, sums: SoftmaxState) -> SoftmaxState:
        number = jnp.where(n < prefix_tiles, n, n - prefix_tiles + own_first)
        keys = pl.ds(number * tiles.keys, tiles.keys)
        place = number * tiles.keys + jnp.arange(tiles.keys)
        visible = (place[None, :] <= reader[:, None]) & (
            reader[:, None] < last_reader_ref[keys][None, :]
        )
        return take_in(sums, q, k_ref[keys, kv_head, :], v_ref[keys, kv_head, :], visible)

    sums = lax.fori_loop(0, walk.num_tiles[tile], one_tile, no_sums(q.shape))
    out_ref[readers, head, :] = divided(sums).astype(q.dtype)
