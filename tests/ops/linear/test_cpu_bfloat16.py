"""Products in C++ of bfloat16 rows: the bits that `bfloat16.h` defines, on every level."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from itemwise.engine.cpu_level import BY_NAME
from itemwise.ops.linear.base import Panels
from itemwise.ops.linear.cpu import linear_cpu
from itemwise.ops.load_cpu import Kernels
from itemwise.types import CppLevel

SIZES = [(32, 64), (1000, 96), (1024, 32), (1025, 160), (2500, 64)]  # inputs and outputs
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
CHUNK = 32
SMALLEST = np.finfo(np.float32).tiny
BFloat16Array = NDArray[Any]


@pytest.fixture(scope="module")
def kernels(bfloat16_level: CppLevel) -> Kernels:
    found = BY_NAME[bfloat16_level].kernels()
    assert found is not None
    return found


def draw(rng: np.random.Generator, *size: int, scale: float = 1.0) -> BFloat16Array:
    return (rng.standard_normal(size, np.float32) * np.float32(scale)).astype(BFLOAT16)


def run(
    x: BFloat16Array, matrix: BFloat16Array, kernels: Kernels, num_rows: int | None = None
) -> NDArray[np.float32]:
    panels = kernels.panels(matrix)
    assert panels is not None
    rows = jnp.int32(len(x) if num_rows is None else num_rows)
    return np.asarray(linear_cpu(jnp.asarray(x), Panels(jnp.asarray(panels), kernels.level), rows))


def chunks_in_order(
    x: BFloat16Array, matrix: BFloat16Array, chunk: int = CHUNK
) -> NDArray[np.float32]:
    """What `bfloat16.h` says, for numbers that are neither huge nor tiny.

    There products of bfloat16 are exact in float32, so that adding one is a fused multiply-add.
    """
    missing = -x.shape[1] % chunk
    left, right = (np.pad(a, ((0, 0), (0, missing))).astype(np.float32) for a in (x, matrix))
    total = np.zeros((len(left), len(right)), np.float32)
    for start in range(0, left.shape[1], chunk):
        chains = []
        for first in (start, start + 1):
            chain = np.zeros_like(total)
            for k in range(first, start + chunk, 2):
                chain += left[:, None, k] * right[None, :, k]
            chains.append(chain)
        total += chains[0] + chains[1]
    return total


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_run_over_chunks_in_order(size: tuple[int, int], kernels: Kernels) -> None:
    inputs, outputs = size
    rng = np.random.default_rng(0)
    matrix, x = draw(rng, outputs, inputs, scale=20), draw(rng, 50, inputs)
    expected = chunks_in_order(x, matrix)
    exact = x.astype(np.float64) @ matrix.astype(np.float64).T
    assert np.abs(expected - exact).max() <= 2e-6 * np.sqrt(inputs) * np.abs(exact).max()
    for num_rows in (0, 1, 2, 3, 6, 7, 33, 50):
        y = run(x, matrix, kernels, num_rows)
        assert y[:num_rows].tobytes() == expected[:num_rows].tobytes()
        assert not y[num_rows:].any()


def two_halves(x: BFloat16Array, matrix: BFloat16Array) -> NDArray[np.float32]:
    middle = x.shape[1] // 2
    left, right = (
        chunks_in_order(a, b)
        for a, b in zip(*(np.split(m, [middle], 1) for m in (x, matrix)), strict=True)
    )
    return left + right


@pytest.mark.parametrize(
    "other",
    [
        two_halves,
        lambda x, matrix: chunks_in_order(x, matrix, 16),
        lambda x, matrix: chunks_in_order(x, matrix, 64),
        lambda x, matrix: x.astype(np.float32) @ matrix.astype(np.float32).T,
    ],
    ids=["two halves of the inputs", "chunks of 16", "chunks of 64", "NumPy's order"],
)
def test_another_order_would_show(
    other: Callable[[BFloat16Array, BFloat16Array], NDArray[np.float32]], kernels: Kernels
) -> None:
    rng = np.random.default_rng(0)
    matrix, x = draw(rng, 64, 1024), draw(rng, 20, 1024)
    assert (run(x, matrix, kernels) != other(x, matrix)).mean() > 0.1


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_row_has_the_same_bits_beside_any_others(size: tuple[int, int], kernels: Kernels) -> None:
    """At any place, of few rows or many, beside rows that are no numbers."""
    inputs, outputs = size
    rng = np.random.default_rng(0)
    matrix, row = draw(rng, outputs, inputs), draw(rng, inputs)
    found = set()
    for places, place, num_rows in (
        (1, 0, 1), (7, 6, 7), (64, 5, 12), (64, 33, 40), (513, 100, 513), (513, 512, 513)
    ):  # fmt: skip
        for around in (None, np.nan, np.inf, -np.inf):
            x = draw(rng, places, inputs) if around is None else np.full((places, inputs), around)
            x = x.astype(BFLOAT16)
            x[place] = row
            found.add(run(x, matrix, kernels, num_rows)[place].tobytes())
    assert len(found) == 1


def tiny(rng: np.random.Generator, *size: int) -> BFloat16Array:
    """Numbers whose products lie around the smallest normal one."""
    scales = np.exp2(rng.integers(-66, -60, size).astype(np.float32))
    return (rng.standard_normal(size, np.float32) * scales).astype(BFLOAT16)


def test_tiny_numbers_are_zero_alike(kernels: Kernels) -> None:
    """As on the plain level: numbers below the smallest normal one, before and after a product."""
    rng = np.random.default_rng(0)
    plain = BY_NAME["cpp-plain-bfloat16"].kernels()
    assert plain is not None
    x, matrix = tiny(rng, 200, 70), tiny(rng, 64, 70)
    y, expected = run(x, matrix, kernels), run(x, matrix, plain)
    assert y.tobytes() == expected.tobytes()
    assert 0.01 < (y == 0).mean() < 0.99
    assert not ((y != 0) & (np.abs(y) < SMALLEST)).any()
    subnormal = np.full((1, 32), SMALLEST / 4, np.float32).astype(BFLOAT16)
    assert subnormal.all()
    large = np.full((32, 32), 2.0**100, np.float32).astype(BFLOAT16)
    assert not run(subnormal, large, kernels).any()


def test_the_thread_keeps_its_own_treatment_of_tiny_numbers(kernels: Kernels) -> None:
    before = np.float32(SMALLEST) / np.float32(2)
    run(draw(np.random.default_rng(0), 1, 32), draw(np.random.default_rng(1), 32, 32), kernels)
    assert before > 0
    assert np.float32(SMALLEST) / np.float32(2) == before


def test_what_is_no_number_stays_so(kernels: Kernels) -> None:
    rng = np.random.default_rng(0)
    matrix, x = draw(rng, 64, 100), draw(rng, 3, 100)
    x[0, 99], x[1, 0] = np.nan, np.inf
    y = run(x, matrix, kernels)
    assert np.isnan(y[0]).all()
    assert (np.isinf(y[1]) == (matrix[:, 0] != 0)).all()
    assert np.isfinite(y[2]).all()


def test_other_matrices_are_left_to_xla(kernels: Kernels) -> None:
    assert kernels.panels(np.zeros((48, 32), BFLOAT16)) is None
    assert kernels.panels(np.zeros((64, 32), np.int8)) is None
