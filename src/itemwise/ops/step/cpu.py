"""The exact step's attention as C++ (`cpu_step.cc`), called from a program of XLA.

The same meaning as the XLA form (`attention.py`), and the same promise: a query's keys come one
after the other, counted from its row's first token, then from the beginning of its context.
XLA cannot keep a block of scores in registers and cache, nor leave the places of a short row out.
`native.py` compiles it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from itemwise.ops.step.xla import StepLayout, Wanted
from itemwise.types import CppLevel, StepShape

SYMBOL = "itemwise_attend"  # in the library


def target(level: CppLevel) -> str:
    """What XLA knows the kernel by."""
    return f"{SYMBOL}-{level}"


def attend_cpu(
    q: Float32[Array, "T N H"],
    k: Float32[Array, "T K H"],
    v: Float32[Array, "T K H"],
    k_pages: Float32[Array, "P K page H"],
    v_pages: Float32[Array, "P K page H"],
    layout: StepLayout,
    shape: StepShape,
    wanted: Wanted | None = None,
    *,
    level: CppLevel,
) -> Float32[Array, "T N H"]:
    """Attention output of the wanted token places, or of all; zero in the others.

    Places outside lanes count as not wanted, those of a lane behind its rows hold garbage.

    Only after `native.load_kernels` of this level.
    """
    if wanted is None:
        wanted = Wanted(jnp.arange(q.shape[0], dtype=jnp.int32), jnp.int32(q.shape[0]))
    seen: Array = jax.ffi.ffi_call(target(level), jax.ShapeDtypeStruct(q.shape, jnp.float32))(
        q,
        k,
        v,
        k_pages,
        v_pages,
        layout.lane_start,
        layout.num_lanes,
        layout.context_pages,
        layout.context_lens,
        layout.granule_start,
        layout.granule_index,
        layout.num_granules,
        *wanted,
        lane_tokens=np.int64(shape.lane_tokens),
        granule_tokens=np.int64(shape.granule_tokens),
    )
    return seen
