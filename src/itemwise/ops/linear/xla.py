"""Matrix products in XLA, with a matrix that lies as checkpoints store it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Float32, Shaped

from itemwise.ops.softmax import product


def matmul(
    x: Float[Array, "T inner"],
    matrix: Shaped[Array, "outer inner"],
    result: DTypeLike = jnp.float32,
) -> Float[Array, "T outer"]:
    """`x @ matrix.T`, summed in float32."""
    if matrix.dtype != x.dtype and x.dtype == jnp.float32:
        matrix = _widened(matrix, x)
    return product("ti,oi->to", x, matrix, result)


def _widened(
    matrix: Shaped[Array, "outer inner"], x: Float32[Array, "T inner"]
) -> Float32[Array, "outer inner"]:
    """A bfloat16 or int8 matrix in float32, made when `x` is there and not before.

    XLA would else widen the matrices of all layers first, and hold them all.
    """
    # Not `lax.optimization_barrier`: XLA's compiler for CPU drops the barriers before it orders the
    # program, and six layers of qwen3-0.6b then take 370 MiB of temporaries instead of 33.
    # `never` hangs on `x`: it asks for a sign that no absolute value has, not even that of NaN,
    # which XLA does not know.
    never = (lax.bitcast_convert_type(jnp.abs(x[0, 0]), jnp.int32) < 0).astype(jnp.uint32)
    if matrix.dtype == jnp.int8:
        return (matrix | never.astype(jnp.int8)).astype(jnp.float32)
    bits = lax.bitcast_convert_type(matrix, jnp.uint16).astype(jnp.uint32) << 16
    wide: Array = lax.bitcast_convert_type(bits | never, jnp.float32)
    return wide
