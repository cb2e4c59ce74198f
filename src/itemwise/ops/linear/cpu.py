"""Matrix products as C++ (`cpu.cc`, `cpu_bfloat16.cc`), called from a program of XLA.

Of a step that is not full only the rows in use are computed, weights are read in the type they are
kept in, and each result is summed in one order whatever the number of rows. `build_cpu.py`
compiles it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int32
from numpy.typing import NDArray

from itemwise.ops.linear.base import Panels
from itemwise.types import CppLevel

SYMBOL = "itemwise_linear"  # in the library
PAIRED_WIDTH = 32  # outputs of a panel beside bfloat16, and inputs of a chunk


def target(level: CppLevel) -> str:
    """What XLA knows the kernel by."""
    return f"{SYMBOL}-{level}"


def to_panels(matrix: NDArray[Any], width: int) -> NDArray[Any]:
    """A matrix [out, in] as the kernel reads it, [out / width, in, width].

    `width` is `load_cpu.Kernels.panel_width`, a divisor of `out`. For activations in float32.
    """
    outputs, inputs = matrix.shape
    panels = matrix.reshape(outputs // width, width, inputs).transpose(0, 2, 1)
    return np.ascontiguousarray(panels)


def to_paired_panels(matrix: NDArray[Any]) -> NDArray[Any]:
    """A bfloat16 matrix [out, in] as the kernel reads it, [out / 32, in, 32], see `bfloat16.h`.

    `in` is filled with zeros to a multiple of 32. In a panel the order is [chunks of 32 inputs,
    2 tiles, 16 pairs of inputs, 16 outputs, 2].
    """
    outputs, inputs = matrix.shape
    chunks = -(-inputs // PAIRED_WIDTH)
    filled = np.pad(matrix, ((0, 0), (0, chunks * PAIRED_WIDTH - inputs)))
    parts = filled.reshape(outputs // PAIRED_WIDTH, 2, 16, chunks, 16, 2)
    panels = parts.transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(panels).reshape(outputs // PAIRED_WIDTH, -1, PAIRED_WIDTH)


def linear_cpu(
    x: Float[Array, "T inner"],
    panels: Panels,
    num_rows: Int32[Array, ""],
) -> Float32[Array, "T outer"]:
    """`x @ panels.T`, without their scale, of the first `num_rows` rows; zero in the others.

    Rows have the type of the level's activations. Weights beside float32 are float32, bfloat16 or
    int8, beside bfloat16 they are bfloat16. Only after `load_kernels` of the panels' level.
    """
    size = (x.shape[0], panels.values.shape[0] * panels.values.shape[2])
    y: Array = jax.ffi.ffi_call(target(panels.level), jax.ShapeDtypeStruct(size, jnp.float32))(
        x, panels.values, num_rows
    )
    return y
