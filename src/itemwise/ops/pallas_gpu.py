"""What the GPU kernels share: online softmax in registers, in powers of two."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Bool, Float, Float32

from itemwise.ops.softmax import LOWEST, SoftmaxState

LOG2_E = 1.4426950408889634
# Of Triton: warps of a program, and loads on their way while a block is computed.
NUM_WARPS, NUM_STAGES = 8, 2


def no_sums(shape: tuple[int, ...]) -> SoftmaxState:
    """The sums before any block, for queries of this shape."""
    weight = jnp.zeros(shape[:1], jnp.float32)
    return SoftmaxState(jnp.full_like(weight, LOWEST), weight, jnp.zeros(shape, jnp.float32))


def take_in(
    sums: SoftmaxState,
    q: Float[Array, "rows H"],
    k: Float[Array, "keys H"],
    v: Float[Array, "keys H"],
    visible: Bool[Array, "#rows keys"] | None = None,
) -> SoftmaxState:
    """Takes a block of keys into the sums, as `softmax.accumulate`; without `visible` all of it."""
    scores, scale = plgpu.dot(q, k, trans_b=True), q.shape[-1] ** -0.5 * LOG2_E
    if visible is not None:
        scores = jnp.where(visible, scores, -jnp.inf)
    # Scaled as late as this, the scores are multiplied and reduced by `top` in one instruction.
    top = jnp.maximum(sums.top, scores.max(1) * scale)
    p, shrink = jnp.exp2(scores * scale - top[:, None]), jnp.exp2(sums.top - top)
    total = sums.total * shrink[:, None] + plgpu.dot(p.astype(v.dtype), v)
    return SoftmaxState(top, sums.weight * shrink + p.sum(1), total)


def divided(sums: SoftmaxState) -> Float32[Array, "rows H"]:
    """The attention output; a place that has seen nothing gets zero instead of NaN."""
    return sums.total / jnp.maximum(sums.weight, 1e-30)[:, None]
