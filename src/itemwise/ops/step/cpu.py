"""The exact step's attention as C++ (`cpu.cc`), called from a program of XLA.

The same meaning as the XLA form, and the same promise: a query's keys come one after the other,
counted from its row's first token, then from the beginning of its context. XLA cannot keep a block
of scores in registers and cache, nor leave the places of a short row out. `build_cpu.py` compiles
it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages
from itemwise.types import CppLevel

SYMBOL = "itemwise_attend"  # in the library


def target(level: CppLevel) -> str:
    """What XLA knows the kernel by."""
    return f"{SYMBOL}-{level}"


def attend_cpu(
    q: Float32[Array, "T N H"],
    k: Float32[Array, "T K H"],
    v: Float32[Array, "T K H"],
    pages: Pages,
    arrays: StepArrays,
    shape: StepShape,
    *,
    level: CppLevel,
    scored_only: bool = False,
) -> Float32[Array, "T N H"]:
    """As `StepAttention`, or the attention of the scored tokens alone, and zero in other places.

    Places of a lane behind its rows hold garbage, places outside lanes zero. Only after
    `load_kernels` of this level.
    """
    places = jnp.arange(q.shape[0], dtype=jnp.int32), jnp.int32(q.shape[0])
    if scored_only:
        places = arrays.score_tokens, arrays.num_scored
    seen: Array = jax.ffi.ffi_call(target(level), jax.ShapeDtypeStruct(q.shape, jnp.float32))(
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
