"""Packed attention as a TPU kernel: tiles that no reader sees are neither read nor computed.

One program has a tile of readers, with all query heads of one key/value head, and walks the tiles
of keys that some reader sees: those of the prefix, then those from the first item that reaches into
the tile. Which they are is prefetched as scalars. Keys and values of a head stay in VMEM while its
tiles run, so each is read from HBM once.

Within a tile, `last_reader` of a key says who sees it: every place up to the end of its item, or,
for the prefix, every place.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from itemwise.ops.packed.base import PackedArrays
from itemwise.ops.packed.tiles import PackedTiles, packed_tiles
from itemwise.ops.packed.walk import Walk, last_readers, walk_of
from itemwise.ops.pallas_tpu import VECTOR_LANES, VMEM_BYTES, clear_sums, scaled_products, take_in


def attend_packed_tpu(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    arrays: PackedArrays,
    interpret: Any = False,
) -> Float[Array, "T N H"]:
    """Attention output of every token place; padding holds finite garbage.

    Args:
        q: queries.
        k: keys.
        v: values.
        arrays: who sees whom.
        interpret: `pltpu.InterpretParams` to run it on a CPU, for tests.
    """
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[1]
    group = num_heads // num_kv_heads
    tiles = packed_tiles(group, num_tokens)
    walk = walk_of(arrays, num_tokens, tiles)
    rows = group * tiles.readers
    readers = pl.BlockSpec((None, group, tiles.readers, head_dim), lambda h, i, *_: (h, 0, i, 0))
    keys = pl.BlockSpec((None, num_tokens, head_dim), lambda h, i, *_: (h, 0, 0))
    seen = pl.BlockSpec((1, num_tokens), lambda h, i, *_: (0, 0))

    def kernel(*refs: Any) -> None:
        _kernel(Walk(*refs[: len(walk)]), *refs[len(walk) :], tiles=tiles)

    out: Array = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((num_kv_heads, group, num_tokens, head_dim), q.dtype),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(walk),
            grid=(num_kv_heads, num_tokens // tiles.readers),
            in_specs=[seen, readers, keys, keys],
            out_specs=readers,
            scratch_shapes=[
                pltpu.VMEM((rows, VECTOR_LANES), jnp.float32),
                pltpu.VMEM((rows, VECTOR_LANES), jnp.float32),
                pltpu.VMEM((rows, head_dim), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        interpret=interpret,
        name="packed_attention",
    )(
        *walk,
        last_readers(arrays, num_tokens),
        q.reshape(num_tokens, num_kv_heads, group, head_dim).transpose(1, 2, 0, 3),
        k.transpose(1, 0, 2),
        v.transpose(1, 0, 2),
    )
    return out.transpose(2, 0, 1, 3).reshape(num_tokens, num_heads, head_dim)


def _kernel(
    walk: Walk,
    last_reader_vmem: Any,
    q_vmem: Any,
    k_vmem: Any,
    v_vmem: Any,
    out_vmem: Any,
    top_vmem: Any,
    weight_vmem: Any,
    total_vmem: Any,
    *,
    tiles: PackedTiles,
) -> None:
    tile = pl.program_id(1)
    prefix_tiles, own_first = walk.prefix_tiles[tile], walk.own_first[tile]
    clear_sums(top_vmem, weight_vmem, total_vmem)
    rows = q_vmem.shape[0] * q_vmem.shape[1]
    q = q_vmem[...].reshape(rows, q_vmem.shape[2])

    def one_tile(n: Array, _: None, masked: bool) -> None:
        number = jnp.where(n < prefix_tiles, n, n - prefix_tiles + own_first)
        at = pl.multiple_of(number * tiles.keys, tiles.keys)
        keys = pl.ds(at, tiles.keys)
        scores = scaled_products(q, k_vmem[keys, :])
        if masked:
            row = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
            reader = tile * tiles.readers + (row & (tiles.readers - 1))
            place = at + lax.broadcasted_iota(jnp.int32, scores.shape, 1)
            scores = jnp.where(place <= reader, scores, -jnp.inf)
            scores = jnp.where(reader < last_reader_vmem[:, keys], scores, -jnp.inf)
        take_in(scores, v_vmem[keys, :], top_vmem, weight_vmem, total_vmem)

    num_open = walk.open_tiles[tile]
    lax.fori_loop(0, num_open, functools.partial(one_tile, masked=False), None)
    masked = functools.partial(one_tile, masked=True)
    lax.fori_loop(num_open, walk.num_tiles[tile], masked, None)
    out = total_vmem[...] / jnp.maximum(weight_vmem[:, :1], 1e-30)
    out_vmem[...] = out.astype(out_vmem.dtype).reshape(out_vmem.shape)
