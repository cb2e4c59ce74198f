"""Matrix products as C++ (`cpu_linear.cc`), called from a program of XLA.

Of a step that is not full only the rows in use are computed, weights are read in the type they are
kept in, and each result is summed in one order whatever the number of rows. `native.py` compiles
it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int32, Shaped
from numpy.typing import NDArray

TARGET = "itemwise_linear"  # what XLA knows it by, and the symbol in the library


def to_panels(matrix: NDArray[Any], width: int) -> NDArray[Any]:
    """A matrix [out, in] as the kernel reads it, [out / width, in, width].

    `width` is `native.Kernels.panel_width`, a divisor of `out`.
    """
    outputs, inputs = matrix.shape
    panels = matrix.reshape(outputs // width, width, inputs).transpose(0, 2, 1)
    return np.ascontiguousarray(panels)


def linear_cpu(
    x: Float32[Array, "T inner"],
    panels: Shaped[Array, "panels inner width"],
    num_rows: Int32[Array, ""],
) -> Float32[Array, "T outer"]:
    """`x @ matrix.T` of the first `num_rows` rows; zero in the others.

    Weights are float32, bfloat16 or int8. Only after `native.load_kernels`.
    """
    size = (x.shape[0], panels.shape[0] * panels.shape[2])
    y: Array = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(size, jnp.float32))(
        x, panels, num_rows
    )
    return y
