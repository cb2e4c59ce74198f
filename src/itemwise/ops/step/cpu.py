"""The exact step's attention as C++ (`cpu.cc`, `cpu_bfloat16.cc`), called from a program of XLA.

The same meaning as the XLA form, and the same promise: a query's keys come one after the other,
counted from its row's first token, then from the beginning of its context. XLA cannot keep a block
of scores in registers and cache, nor leave the places of a short row out. `build_cpu.py` compiles
it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import PageLayout, Pages
from itemwise.types import CppLevel

SYMBOL = "itemwise_attend"  # in the library
PANEL = 32  # keys or dimensions of a panel of bfloat16, and of a chunk


def target(level: CppLevel) -> str:
    """What XLA knows the kernel by."""
    return f"{SYMBOL}-{level}"


def serves(dtype: jnp.dtype | np.dtype[Any], head_dim: int, page_tokens: int) -> bool:
    """Whether there is a kernel for activations of a type, heads and pages."""
    whole = head_dim % PANEL == 0 and page_tokens % PANEL == 0
    return dtype == jnp.float32 or whole


def page_layouts(dtype: jnp.dtype) -> tuple[PageLayout, PageLayout]:
    """The orders of pages of keys and of values, for activations of a type."""
    if dtype == jnp.bfloat16:
        return key_panels, value_panels
    return lambda page: page, lambda page: page


def key_panels(pages: Shaped[Array, "*pages page H"]) -> Shaped[Array, "*pages page H"]:
    """Pages of keys as the kernel for bfloat16 reads them, see `bfloat16.h`.

    The order is [panels of 32 keys, chunks of 32 dimensions, 2 tiles, 16 pairs of dimensions,
    16 keys, 2].
    """
    *outer, page, head_dim = pages.shape
    parts = pages.reshape(*outer, page // PANEL, 2, 16, head_dim // PANEL, 16, 2)
    return _reordered(parts, (0, 3, 1, 4, 2, 5)).reshape(pages.shape)


def value_panels(pages: Shaped[Array, "*pages page H"]) -> Shaped[Array, "*pages page H"]:
    """Pages of values as the kernel for bfloat16 reads them, see `bfloat16.h`.

    The order is [panels of 32 dimensions, chunks of 32 keys, 2 tiles, 16 pairs of keys,
    16 dimensions, 2].
    """
    *outer, page, head_dim = pages.shape
    parts = pages.reshape(*outer, page // PANEL, 16, 2, head_dim // PANEL, 2, 16)
    return _reordered(parts, (3, 0, 4, 1, 5, 2)).reshape(pages.shape)


def _reordered(parts: Array, order: tuple[int, ...]) -> Array:
    """The array with its last axes in this order."""
    outer = parts.ndim - len(order)
    return parts.transpose(*range(outer), *(outer + axis for axis in order))


def attend_cpu(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    pages: Pages,
    arrays: StepArrays,
    shape: StepShape,
    *,
    level: CppLevel,
    scored_only: bool = False,
) -> Float[Array, "T N H"]:
    """As `StepAttention`, or the attention of the scored tokens alone, and zero in other places.

    Places of a lane behind its rows hold garbage, places outside lanes zero. Arrays have the type
    of the level's activations; pages in bfloat16 have the order of `key_panels` and `value_panels`.
    Only after `load_kernels` of this level.
    """
    places = jnp.arange(q.shape[0], dtype=jnp.int32), jnp.int32(q.shape[0])
    if scored_only:
        places = arrays.score_tokens, arrays.num_scored
    seen: Array = jax.ffi.ffi_call(target(level), jax.ShapeDtypeStruct(q.shape, q.dtype))(
        q,
        k,
        v,
        *pages,
        arrays.lane_start,
        arrays.num_lanes,
        arrays.context_pages,
        arrays.context_lens,
        arrays.granule_start,
        arrays.granule_index,
        arrays.num_granules,
        *places,
        lane_tokens=np.int64(shape.lane_tokens),
        granule_tokens=np.int64(shape.granule_tokens),
    )
    return seen
