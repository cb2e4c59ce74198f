"""What the C++ kernels have beyond the suite in `test_step.py`."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpy.typing import NDArray

from itemwise.engine.step_packer import RowPlan
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, StepAttention
from itemwise.ops.step.cpu import attend_cpu
from itemwise.ops.step.xla import attend_xla
from itemwise.types import CppLevel
from tests.ops.plainly import attention_weights, by_head
from tests.ops.step.backends import CPP_HEADS as HEADS
from tests.ops.step.steps import CASES, SHAPE, Step, cases, make_step, run

ROWS = cases(SHAPE)


@pytest.fixture(scope="module")
def kernel(level: CppLevel) -> StepAttention:
    """`attend_cpu` of each level that this machine runs."""
    return functools.partial(attend_cpu, level=level)


# Sharp attention: scores that differ by hundreds, so that weights vanish or are all but zero.
#
# There float32 has few digits left for what decides: a score of 500 is rounded by 500 u = 3e-5, and
# its sum over H by several times that, in an order that is XLA's own on each processor. Drawn from
# a normal distribution, output is 1.7e-4 off for that sum and 3e-5 for all the rest. So queries are
# multiples of 25 and keys of 1/4, which makes that sum exact in any order: below 2^24 such units.
#
# What remains, relative to the weight of a key i whose score s_i lies x_i below the highest, with
# u = 2^-24 and B maxima one after the other (a block or a page each) and n keys:
#     s_i and the highest, one rounding each                      u (|s_i| + |s_max|)
#     the scale, of three roundings in C++, and x_i               4 u |x_i|
#     exp, and for each maximum exp and a product                 (EXP_ULPS + 1) u (B + 1)
#     sum of the weights, each term in at most n sums             n u
# A relative error e_i of weights w_i, which sum to 1, moves the output sum w_i v_i by at most
# sum w_i e_i |v_i - out| to first order. Summing and dividing the values adds
# (n + 2) u sum w_i |v_i|.
UNIT_ROUNDOFF = 2.0**-24
EXP_ULPS = 4  # in u: two units in the last place, of either form
SECOND_ORDER = 1.01  # e_i stays below 1e-3 where w_i is not zero

FIRST = ("no context", "several requests")
FIRST_CASES = [
    pytest.param(case, marks=[] if case in FIRST else [pytest.mark.slow]) for case in CASES
]


SHARP_HEADS = (4, 2, 128)


def sharp_step(rows: list[RowPlan]) -> Step:
    step = make_step(SHAPE, rows, SHARP_HEADS)
    q = 25 * jnp.rint(4 * step.q)
    k, k_pages = (jnp.rint(4 * a) / 4 for a in (step.k, step.pages.k))
    assert max(np.abs(k).max(), np.abs(k_pages).max()) * np.abs(q).max() * SHARP_HEADS[2] < 2**22
    return step._replace(q=q, k=k, pages=step.pages._replace(k=k_pages))


def exact_attention(
    step: Step, row: RowPlan, start: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A row's attention [t, N, H] in float64, and the bound on what float32 may be off."""
    places = slice(start, start + len(row.tokens))
    q, k, v, k_pages, v_pages = (
        np.asarray(a, np.float64) for a in (step.q, step.k, step.v, *step.pages)
    )
    keys, values = (
        np.concatenate(
            [
                *(
                    pages[page, :, :count].swapaxes(0, 1)
                    for page, count in zip(row.context.pages, row.context.lens, strict=True)
                ),
                own[places],
            ]
        )
        for pages, own in ((k_pages, k), (v_pages, v))
    )
    q = q[places]
    n, t = len(keys), len(q)
    seen = np.arange(n) <= np.arange(n - t, n)[:, None]
    weights = attention_weights(q, keys, seen)  # [N, t, n]
    q, keys, values = by_head(q), by_head(keys, q.shape[1]), by_head(values, q.shape[1])
    out = weights @ values
    scores = q @ keys.swapaxes(1, 2) / np.sqrt(q.shape[2])
    top = np.where(seen, scores, -np.inf).max(-1, keepdims=True)
    maxima = len(row.context.pages) + -(-t // SHAPE.granule_tokens)
    error = np.abs(scores) + np.abs(top) + 4 * np.abs(scores - top)
    error = weights * UNIT_ROUNDOFF * (error + (EXP_ULPS + 1) * (maxima + 1) + n)
    bound = UNIT_ROUNDOFF * (n + 2) * (weights @ np.abs(values))
    for i in range(t):
        bound[:, i] += (error[:, i, None] @ np.abs(values - out[:, i, None]))[:, 0]
    out, bound = out.swapaxes(0, 1), bound.swapaxes(0, 1)
    return out, SECOND_ORDER * bound


def excess(way: StepAttention, rows: list[RowPlan]) -> float:
    """The largest error of sharp attention, in bounds on it."""
    step, worst = sharp_step(rows), 0.0
    for one, start, found in zip(rows, step.starts, run(way, step), strict=True):
        out, bound = exact_attention(step, one, start)
        assert bound.max() < 5e-4, "a bound that forgives anything"
        error = np.abs(found - out)
        worst = max(worst, float((error / np.maximum(bound, 1e-30)).max()))
    return worst


@pytest.mark.parametrize("case", CASES)
def test_sharp_attention_is_as_right_as_float32_can_be(case: str, kernel: StepAttention) -> None:
    assert excess(kernel, ROWS[case]) <= 1


@pytest.mark.parametrize("case", FIRST_CASES)
def test_sharp_attention_of_xla_is_as_right_as_float32_can_be(case: str) -> None:
    assert excess(attend_xla, ROWS[case]) <= 1


@pytest.mark.parametrize("case", FIRST_CASES)
def test_a_scale_that_is_off_by_a_thousandth_would_show(case: str, kernel: StepAttention) -> None:
    def sharper(
        q: Array, k: Array, v: Array, pages: Pages, arrays: StepArrays, shape: StepShape
    ) -> Array:
        return kernel(1.001 * q, k, v, pages, arrays, shape)

    assert excess(sharper, ROWS[case]) > 10


def test_a_skipped_key_would_show(kernel: StepAttention) -> None:
    def shorter(
        q: Array, k: Array, v: Array, pages: Pages, arrays: StepArrays, shape: StepShape
    ) -> Array:
        arrays = arrays._replace(context_lens=jnp.maximum(arrays.context_lens - 1, 0))
        return kernel(q, k, v, pages, arrays, shape)

    for case in ("a short context", "a long context", "part-full pages", "several requests"):
        assert excess(shorter, ROWS[case]) > 100


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_scored_places_alone_have_the_same_bits(
    case: str, heads: tuple[int, int, int], level: CppLevel, kernel: StepAttention
) -> None:
    # The lane from 128 on has none.
    places = np.setdiff1d(np.arange(0, SHAPE.tokens, 7), np.arange(128, 256))
    step = make_step(SHAPE, ROWS[case], heads)
    scored = step.arrays._replace(
        score_tokens=np.array([*places, 1, 1], np.int32),  # padding points to another place
        num_scored=np.asarray(len(places), np.int32),
    )
    found = run(
        functools.partial(attend_cpu, level=level, scored_only=True), step._replace(arrays=scored)
    )
    chosen = step.parts(np.isin(np.arange(SHAPE.tokens), places))
    assert any(row.any() for row in found)
    for one, whole, mine in zip(found, run(kernel, step), chosen, strict=True):
        assert one.tobytes() == np.where(mine[:, None, None], whole, 0).tobytes()
