"""Products with weights: how a weight lies on the device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax import Array
from jaxtyping import Float32, Int8

from itemwise.types import CppLevel


class Quantized(NamedTuple):
    """A matrix in eight bits: `values * scale[:, None]`, as checkpoints have it."""

    values: Int8[Array, "outer inner"]
    scale: Float32[Array, " outer"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Panels:
    """A matrix as the C++ kernels of a level read it, see `to_panels`.

    Attributes:
        values: array [panels, inner, width]. Like `scale` of any type while JAX maps over it.
        level: of the kernels that read it.
        scale: float32 [outer], the scales of a quantised matrix, or None.
    """

    values: Any
    level: CppLevel = field(metadata={"static": True})
    scale: Any = None


Matrix = Array | Quantized | Panels  # an array [outer, inner] is as checkpoints have it


class Linear(NamedTuple):
    """The weights of `y = x @ matrix.T + bias`: a `Matrix` and an array [outer], or None.

    Before they are read it holds what describes them: a `WeightSpec` each, or a shape.
    """

    matrix: Any
    bias: Any = None
