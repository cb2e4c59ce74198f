"""How weights lie on the device: as checkpoints have them, in panels for C++, or in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from itemwise.checkpoint.read import read_weights
from itemwise.config import Quantization
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import Weights, describe_weights
from itemwise.models.sharding import place
from itemwise.ops.linear.base import Panels, Quantized
from itemwise.ops.load_cpu import Kernels
from itemwise.progress import ProgressFn
from itemwise.types import DTypes, Float32Array, WeightSpec

INT8_MAX = 127


def load_weights(
    folder: Path,
    model: ModelConfig,
    dtypes: DTypes,
    mesh: Mesh | None,
    *,
    quantization: Quantization,
    kernels: Kernels | None,
    on_progress: ProgressFn,
) -> Weights:
    """The weights on their devices, in the tree of `describe_weights`.

    Matrices of layers are arrays, `Quantized` or in `Panels`.

    Args:
        folder: holds the checkpoint.
        model: its shape.
        dtypes: type of weights that are not quantised.
        mesh: the devices that share the model, or None for a single one.
        quantization: `int8` for the matrices of the layers.
        kernels: those that multiply, where products are C++; else None.
        on_progress: called after each tensor with (what, done, total).

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """

    def put(array: NDArray[Any], spec: WeightSpec) -> Any:
        if not is_layer_matrix(spec):
            return place(array, spec, model, mesh)
        scale = None
        if quantization == "int8":
            array, scales = quantize(array)
            scale = place(scales, spec, model, mesh)
        panels = None if kernels is None else kernels.panels(array)
        if kernels is not None and panels is not None:
            return Panels(place(panels, spec, model, mesh), kernels.level, scale)
        matrix = place(array, spec, model, mesh)
        return matrix if scale is None else Quantized(matrix, scale)

    weights: Weights = read_weights(
        folder, describe_weights(model), dtypes.weights, put, on_progress
    )
    return weights


def is_layer_matrix(spec: WeightSpec) -> bool:
    """Whether a weight is a matrix that tokens are multiplied with in each layer."""
    return len(spec.shape) == 2 and not {"vocab", "label"} & set(spec.axes)


def quantize(matrix: NDArray[Any]) -> tuple[NDArray[np.int8], Float32Array]:
    """The nearest int8 matrix [out, in], and the scale [out] of each output, in float32."""
    wide = matrix.astype(np.float32)
    scale = np.abs(wide).max(1) / INT8_MAX
    scale[scale == 0] = 1
    return np.rint(wide / scale[:, None]).astype(np.int8), scale
