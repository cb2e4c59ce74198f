"""Which tiles of keys each tile of readers of a packed sequence sees; for its kernels."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int32

from itemwise.ops.packed.base import PackedArrays
from itemwise.ops.packed.tiles import PackedTiles


class Walk(NamedTuple):
    """The key tiles that each tile of readers walks; all are computed on the device."""

    open_tiles: Int32[Array, " tiles"]  # from the first on, seen by every reader
    prefix_tiles: Int32[Array, " tiles"]  # from the first on, with the open ones
    own_first: Int32[Array, " tiles"]  # first tile of the items, after those of the prefix
    num_tiles: Int32[Array, " tiles"]  # in all; 0 for a tile of padding


def walk_of(arrays: PackedArrays, num_tokens: int, tiles: PackedTiles) -> Walk:
    """Which tiles of keys each tile of readers sees."""
    first = jnp.arange(0, num_tokens, tiles.readers)
    end = jnp.minimum(first + tiles.readers, arrays.num_places)
    open_tiles = jnp.minimum(first, arrays.prefix_end) // tiles.keys
    prefix_tiles = _ceil_div(jnp.minimum(end, arrays.prefix_end), tiles.keys)
    item = _following(arrays, first) - 1
    item = jnp.where(first < arrays.prefix_end, 0, item)
    start = jnp.minimum(arrays.row_starts[item], num_tokens)
    own_first = jnp.maximum(start // tiles.keys, prefix_tiles)
    own_tiles = jnp.maximum(_ceil_div(end, tiles.keys) - own_first, 0)
    used = first < arrays.num_places
    counts = (open_tiles, prefix_tiles, own_first, prefix_tiles + own_tiles)
    return Walk(*(jnp.where(used, count, 0).astype(jnp.int32) for count in counts))


def last_readers(arrays: PackedArrays, num_tokens: int) -> Int32[Array, "one T"]:
    """For each place one more than the last place that sees it."""
    places = jnp.arange(num_tokens)
    ends = jnp.append(arrays.row_starts, num_tokens)[_following(arrays, places)]
    last: Array = jnp.where(places < arrays.prefix_end, num_tokens, ends).astype(jnp.int32)
    return last[None]


def _following(arrays: PackedArrays, places: Int32[Array, " n"]) -> Int32[Array, " n"]:
    """The number of the first item after each place; by comparing all pairs, without a loop."""
    found: Array = jnp.searchsorted(arrays.row_starts, places, side="right", method="compare_all")
    return found


def _ceil_div(a: Array, b: int) -> Array:
    return (a + b - 1) // b
