"""Products in C++ against NumPy's in float64, and their bits for any number of rows."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from itemwise.engine.cpu_level import BY_NAME
from itemwise.ops.linear.base import Panels
from itemwise.ops.linear.cpu import linear_cpu, to_panels
from itemwise.ops.load_cpu import Kernels
from itemwise.types import CppLevel

SIZES = [(32, 64), (1000, 96), (1024, 32), (1025, 160), (2500, 64)]  # inputs and outputs
TYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}


@pytest.fixture(scope="module")
def kernels(level: CppLevel) -> Kernels:
    found = BY_NAME[level].kernels()
    assert found is not None
    return found


def draw(rng: np.random.Generator, *size: int) -> NDArray[np.float32]:
    return rng.standard_normal(size, np.float32)


def panels_of(matrix: NDArray[Any], kernels: Kernels) -> Panels:
    return Panels(jnp.asarray(to_panels(matrix, kernels.panel_width)), kernels.level)


def run(x: NDArray[Any], panels: Panels, num_rows: int) -> NDArray[np.float32]:
    return np.asarray(linear_cpu(jnp.asarray(x), panels, jnp.int32(num_rows)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_product_is_right_in_the_rows_in_use(
    size: tuple[int, int], dtype: str, kernels: Kernels
) -> None:
    inputs, outputs = size
    rng = np.random.default_rng(0)
    matrix = (draw(rng, outputs, inputs) * 20).astype(TYPES[dtype])
    x = draw(rng, 300, inputs)
    exact = x.astype(np.float64) @ matrix.astype(np.float64).T
    panels = panels_of(matrix, kernels)
    for num_rows in (0, 1, 5, 6, 47, 300):
        y = run(x, panels, num_rows)
        error = np.abs(y[:num_rows] - exact[:num_rows])
        assert error.max(initial=0) <= 2e-6 * np.sqrt(inputs) * np.abs(exact).max()
        assert not y[num_rows:].any()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_row_has_the_same_bits_wherever_it_lies(
    size: tuple[int, int], dtype: str, kernels: Kernels
) -> None:
    inputs, outputs = size
    rng = np.random.default_rng(0)
    panels = panels_of((draw(rng, outputs, inputs) * 20).astype(TYPES[dtype]), kernels)
    row = draw(rng, inputs)
    found = set()
    for places, place, num_rows in (
        (1, 0, 1),
        (7, 6, 7),
        (64, 5, 12),
        (64, 5, 13),
        (64, 33, 40),
        (513, 100, 513),
        (513, 512, 513),
    ):
        x = draw(rng, places, inputs)
        x[place] = row
        found.add(run(x, panels, num_rows)[place].tobytes())
    assert len(found) == 1
