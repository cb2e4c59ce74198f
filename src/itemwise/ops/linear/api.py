"""Products with weights, by whichever backend the weight was laid out for."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float, Int32

from itemwise.ops.linear.base import Linear, Matrix, Panels, Quantized
from itemwise.ops.linear.cpu import linear_cpu
from itemwise.ops.linear.xla import matmul


def linear(
    x: Float[Array, "T inner"],
    weights: Linear,
    num_rows: Int32[Array, ""],
    result: DTypeLike = jnp.float32,
    axis: str | None = None,
) -> Float[Array, "T outer"]:
    """`x @ matrix.T + bias`, summed in float32.

    Args:
        x: rows; those from `num_rows` on may be left out, and then hold the bias alone.
        weights: matrix and bias.
        num_rows: rows in use.
        result: type of the result where the matrix has no scale; float32 else.
        axis: the mesh axis over which the inner axis is sharded, or None.
    """
    y = _times(x, weights.matrix, num_rows, result)
    if axis is not None:
        y = lax.psum(y, axis)
    return y if weights.bias is None else y + weights.bias.astype(y.dtype)[None]


def _times(
    x: Float[Array, "T inner"], matrix: Matrix, num_rows: Int32[Array, ""], result: DTypeLike
) -> Float[Array, "T outer"]:
    if isinstance(matrix, Panels):
        y = linear_cpu(x, matrix, num_rows)
        return y if matrix.scale is None else y * matrix.scale[None]
    if isinstance(matrix, Quantized):
        return matmul(x, matrix.values) * matrix.scale[None]
    return matmul(x, matrix, result)
