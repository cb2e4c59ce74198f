"""Small checkpoints for the tests of this folder, and how they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from itemwise.checkpoint.read import read_weights
from itemwise.errors import CheckpointError
from itemwise.types import WeightSpec

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)


def spec(name: str, *shape: int, init: Any = "normal", scale: float = 0.5) -> WeightSpec:
    return WeightSpec(name, shape, ("any",) * len(shape), init, scale)


FLAT = [
    spec("embed.weight", 8, 4),
    spec("layers.0.w", 4, 3),
    spec("layers.1.w", 4, 3),
    spec("norm", 4, init="gain", scale=1.5),
    spec("bias", 4, init="bias"),
]
NAMES = [leaf.name for leaf in FLAT]
# The same in a tree with every kind of node that `read_weights` takes.
SPECS = {"embed": FLAT[0], "layers": [{"w": FLAT[1]}, {"w": FLAT[2]}], "ends": (FLAT[3], FLAT[4])}


def whole(dtype: Any = np.float32) -> dict[str, Array]:
    """Tensors that fit `SPECS`, all values apart from each other."""
    random = np.random.default_rng(0)
    return {leaf.name: random.normal(size=leaf.shape).astype(dtype) for leaf in FLAT}


def refuse_put(_: Array, __: WeightSpec) -> Array:
    raise AssertionError("a tensor was read although headers tell that the checkpoint is bad")


def failure(folder: Path, specs: Any = SPECS) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(folder, specs, np.float32, refuse_put)
    assert caught.value.code == "invalid_checkpoint"
    return str(caught.value)
