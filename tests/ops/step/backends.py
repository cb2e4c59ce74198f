"""The backends of the step's attention, as the suite in `test_step.py` runs them.

A new backend is one more entry: how it is called, with which heads and types, and how near it
comes to float64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from jax import Array
from jax.experimental.pallas import tpu as pltpu

from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, StepAttention
from itemwise.ops.step.cpu import attend_cpu, key_panels, value_panels
from itemwise.ops.step.gpu import attend_gpu, lane_walk
from itemwise.ops.step.tpu import attend_tpu
from itemwise.ops.step.xla import attend_xla
from itemwise.types import CppLevel
from tests.conftest import BFLOAT16_CPP_LEVELS, FLOAT32_CPP_LEVELS
from tests.ops.step.steps import SHAPE, TILED


@dataclass(frozen=True)
class Backend:
    """How the suite runs a backend.

    Attributes:
        attend: the backend.
        heads: N, K and H; all cases run with the first, one case with the others.
        tolerance: by type, the largest difference from float64, of values near 1.
        shape: sizes of the step.
        isolates_nan: whether what is no number in a row stays in that row.
        every_heads: whether it is fast enough to run all cases with all heads.
        level: the CPU level that it needs, or None.
    """

    attend: StepAttention
    heads: list[tuple[int, int, int]]
    tolerance: dict[str, float]
    shape: StepShape = SHAPE
    isolates_nan: bool = False
    every_heads: bool = False
    level: CppLevel | None = None

    @property
    def dtype(self) -> str:
        """The type that cases run in which run in one type alone."""
        return next(iter(self.tolerance))


def interpreted_gpu(
    q: Array, k: Array, v: Array, pages: Pages, arrays: StepArrays, shape: StepShape
) -> Array:
    return attend_gpu(q, k, v, pages, lane_walk(arrays, shape), shape, interpret=True)


def attend_bfloat16(level: CppLevel) -> StepAttention:
    """A C++ kernel for bfloat16, which has an order of its own for pages."""

    def attend(
        q: Array, k: Array, v: Array, pages: Pages, arrays: StepArrays, shape: StepShape
    ) -> Array:
        laid_out = Pages(key_panels(pages.k), value_panels(pages.v))
        return attend_cpu(q, k, v, laid_out, arrays, shape, level=level)

    return attend


# It fills memory that nobody wrote with NaN, refuses reads out of bounds, and prints data races.
interpreted_tpu = functools.partial(attend_tpu, interpret=pltpu.InterpretParams(detect_races=True))

# Sums of a few hundred terms in float32. bfloat16 has 8 bits of mantissa, and rounds the weights
# and the result.
NEAR = {"float32": 2e-6, "bfloat16": 2e-2}
BFLOAT16_HEADS = [(16, 8, 128), (4, 4, 64), (12, 2, 64), (8, 1, 32), (6, 2, 96)]
CPP_HEADS = [(16, 8, 128), (4, 4, 64), (12, 2, 64), (8, 1, 16), (6, 2, 24)]
BACKENDS: dict[str, Backend] = {
    "xla": Backend(attend_xla, [(4, 2, 128), (2, 2, 64), (12, 2, 64), (8, 1, 16)], NEAR),
    **{
        level: Backend(
            functools.partial(attend_cpu, level=level),
            CPP_HEADS,
            {"float32": 2e-6},
            isolates_nan=True,
            every_heads=True,
            level=level,
        )
        for level in FLOAT32_CPP_LEVELS
    },
    **{
        level: Backend(
            attend_bfloat16(level),
            [(4, 2, 32), (3, 1, 64)] if level == "cpp-plain-bfloat16" else BFLOAT16_HEADS,
            {"bfloat16": NEAR["bfloat16"]},
            isolates_nan=True,
            every_heads=level != "cpp-plain-bfloat16",
            level=level,
        )
        for level in BFLOAT16_CPP_LEVELS
    },
    "gpu": Backend(interpreted_gpu, [(4, 2, 64), (2, 1, 128), (3, 1, 16)], NEAR),
    "tpu": Backend(
        interpreted_tpu,
        [(4, 2, 64), (1, 1, 128), (2, 1, 64), (6, 1, 128), (8, 1, 128)],
        NEAR,
        shape=TILED,
    ),
}
