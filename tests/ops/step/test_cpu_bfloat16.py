"""What the C++ kernels for bfloat16 have beyond the suite in `test_step.py`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from itemwise.engine.step_packer import Context
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, StepAttention
from itemwise.ops.step.cpu import attend_cpu, key_panels, value_panels
from itemwise.types import CppLevel
from tests.conftest import require
from tests.ops.step.backends import attend_bfloat16
from tests.ops.step.steps import CASES, SHAPE, cases, make_step, row, run

ROWS = cases(SHAPE)
HEADS = (4, 2, 32)  # few, for the plain level
NAN = 0x7FC0  # as bfloat16


@pytest.mark.parametrize("case", CASES)
def test_bits_are_those_of_the_plain_level(case: str, bfloat16_level: CppLevel) -> None:
    require("cpp-plain-bfloat16")
    step = make_step(SHAPE, ROWS[case], HEADS, dtype="bfloat16")
    plain = run(attend_bfloat16("cpp-plain-bfloat16"), step)
    for found, expected in zip(run(attend_bfloat16(bfloat16_level), step), plain, strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("case", CASES)
def test_scored_places_alone_have_the_same_bits(case: str, bfloat16_level: CppLevel) -> None:
    places = np.setdiff1d(np.arange(0, SHAPE.tokens, 7), np.arange(128, 256))
    step = make_step(SHAPE, ROWS[case], HEADS, dtype="bfloat16")
    whole = run(attend_bfloat16(bfloat16_level), step)
    scored = step.arrays._replace(
        score_tokens=np.array([*places, 1, 1], np.int32),  # padding points to another place
        num_scored=np.asarray(len(places), np.int32),
    )

    def attend(
        q: Array, k: Array, v: Array, pages: Pages, arrays: StepArrays, shape: StepShape
    ) -> Array:
        laid_out = Pages(key_panels(pages.k), value_panels(pages.v))
        return attend_cpu(q, k, v, laid_out, arrays, shape, level=bfloat16_level, scored_only=True)

    found = run(attend, step._replace(arrays=scored))
    chosen = step.parts(np.isin(np.arange(SHAPE.tokens), places))
    assert any(one.any() for one in found)
    for one, all_of_row, mine in zip(found, whole, chosen, strict=True):
        assert one.tobytes() == np.where(mine[:, None, None], all_of_row, 0).tobytes()


def with_nan_behind(pages: Pages, context: Context) -> Pages:
    """No numbers in a context's pages behind their last token, and in all other pages."""
    k, v = (np.asarray(pool).copy() for pool in pages)
    for pool in (k, v):
        kept = np.zeros(pool.shape, bool)
        for page, length in zip(context.pages, context.lens, strict=True):
            kept[page, :, :length] = True
        pool[~kept] = NAN
    return Pages(jnp.asarray(k), jnp.asarray(v))


@pytest.mark.parametrize("last", [1, 31, 32, 33, 77, 127])
def test_nothing_behind_the_end_of_a_page_is_seen(last: int, bfloat16_level: CppLevel) -> None:
    context = Context((2, 5), (SHAPE.page_tokens, last))
    attend: StepAttention = attend_bfloat16(bfloat16_level)
    step = make_step(SHAPE, [row(20, context), row(33, context)], HEADS, dtype="bfloat16")
    base = run(attend, step)
    around = step._replace(pages=with_nan_behind(step.pages, context))
    for found, expected in zip(run(attend, around), base, strict=True):
        assert found.tobytes() == expected.tobytes()
    seen = with_nan_behind(step.pages, Context((2, 5), (SHAPE.page_tokens, last - 1)))
    with pytest.raises(AssertionError):  # of `run`: all rows are NaN
        run(attend, step._replace(pages=seen))


def test_pages_are_panels_of_keys_and_of_values() -> None:
    """Each number once, where `bfloat16.h` says."""
    page, head_dim = 128, 96
    numbers = np.arange(page * head_dim, dtype=np.int32).reshape(1, page, head_dim)
    keys = np.asarray(key_panels(jnp.asarray(numbers))).ravel()
    values = np.asarray(value_panels(jnp.asarray(numbers))).ravel()

    def place(given: int, column: int, inputs: int) -> int:
        chunk = (column // 32 * (inputs // 32) + given // 32) * 32 * 32
        return chunk + column % 32 // 16 * 512 + given % 32 // 2 * 32 + column % 16 * 2 + given % 2

    for key, d in [(0, 0), (1, 0), (0, 1), (17, 33), (40, 95), (127, 64), (63, 31)]:
        assert keys[place(d, key, head_dim)] == numbers[0, key, d]
        assert values[place(key, d, page)] == numbers[0, key, d]
    assert sorted(keys) == sorted(values) == list(range(page * head_dim))
