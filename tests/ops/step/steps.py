"""Steps with random queries, keys, values and pages, and what attention means in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from itemwise.engine.step_packer import Context, RowPlan, StepPacker
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, to_storage
from tests.ops.plainly import attention

SHAPE = StepShape(
    tokens=384,
    lanes=24,
    lane_tokens=128,
    lane_alignment=1,
    page_tokens=128,
    granule_tokens=32,
    block_pages=4,
    max_context_pages=8,
)
# Lanes that lie side by side, as on TPU; smaller, since that interpreter is slow.
TILED = replace(SHAPE, lanes=6, lane_tokens=64, lane_alignment=64, page_tokens=64, block_pages=2)
NUM_PAGES = 10


def row(num_tokens: int, context: Context = Context()) -> RowPlan:  # noqa: B008
    return RowPlan(range(num_tokens), 0, context, score_id=0)


def cases(shape: StepShape) -> dict[str, list[RowPlan]]:
    """Rows of every kind, in so many tokens as the pages of the shape allow."""
    page = shape.page_tokens
    short = Context((4,), (5,))
    long = Context((2, 9, 1, 3, 6), (page,) * 4 + (page * 3 // 5,))
    parts = Context((5, 8, 7), (page, 1, page - 1))
    full = [row(page, short)] * (shape.tokens // page - 1)
    return {
        "no context": [row(n) for n in (1, 20, 31, 32, 33, page)],
        "a short context": [row(n, short) for n in (1, 2, 3, 5, 8, 13, 21, 34, 55)],
        "a long context": [row(n, long) for n in (20, 20, 7, page - 8)],
        "part-full pages": [row(n, parts) for n in (page // 2, 1, 40)],
        "several requests": [row(n, c) for n in (1, 9, page) for c in (short, long)],
        "a short last granule": [*full, row(page - 20, short), row(20, short)],
        "long rows": [row(page, long), row(page, short), row(page, short)],
        "a full step": [row(page, parts), *[row(16, short)] * ((shape.tokens - page) // 16)],
    }


CASES = tuple(cases(SHAPE))


class Step(NamedTuple):
    """A packed step; `starts` has the first token place of each row."""

    shape: StepShape
    rows: Sequence[RowPlan]
    starts: list[int]
    arrays: StepArrays
    q: Array
    k: Array
    v: Array
    pages: Pages

    def parts(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """What belongs to each row."""
        pairs = zip(self.starts, self.rows, strict=True)
        return [values[start : start + len(one.tokens)] for start, one in pairs]


@functools.lru_cache(maxsize=128)
def drawn(seed: int | tuple[int, ...], *shape: int) -> NDArray[np.float32]:
    """Normal values of a seed, which most steps of a test have in common; not to be written to."""
    values = np.random.default_rng(seed).standard_normal(shape, np.float32)
    values.flags.writeable = False
    return values


def make_step(
    shape: StepShape,
    rows: Sequence[RowPlan],
    heads: tuple[int, int, int],
    *,
    dtype: str = "float32",
    seed: int = 0,
    broken: int | None = None,
) -> Step:
    """A step of these rows. Their queries, keys, values and contexts go by what they are.

    `seed` draws all else: which pages a context lies in, and what is in pages past their valid
    tokens, in unused slots of the page table, and in token places of no row. The row `broken` has
    keys and values that are no numbers. `heads` are N, K and H.
    """
    num_heads, num_kv_heads, head_dim = heads
    around = np.random.default_rng(seed)
    moved = around.permutation(NUM_PAGES) if seed else np.arange(NUM_PAGES)
    packer = StepPacker(shape)
    for one in rows:
        assert packer.fits(one)
        pages = tuple(int(moved[page]) for page in one.context.pages)
        packer.add(replace(one, context=replace(one.context, pages=pages)))
    arrays = packer.take().arrays
    unused = arrays.context_lens == 0
    arrays.context_pages[unused] = around.integers(0, NUM_PAGES, unused.sum())
    in_use = slice(int(arrays.num_granules))
    starts = arrays.granule_start[in_use][arrays.granule_index[in_use] == 0].tolist()

    q, k, v = (
        drawn((seed, part), shape.tokens, n, head_dim).copy()
        for part, n in enumerate((num_heads, num_kv_heads, num_kv_heads))
    )
    pool = drawn((seed, 3), 2, NUM_PAGES, num_kv_heads, shape.page_tokens, head_dim).copy()
    for index, (one, start) in enumerate(zip(rows, starts, strict=True)):
        size = len(one.tokens)
        for part, array in enumerate((q, k, v)):
            own = drawn((size, part, *one.context.pages), *array[:size].shape)
            array[start : start + size] = own
        for array in (k, v) if index == broken else ():
            array[start : start + size] = np.nan
        for page, length in zip(one.context.pages, one.context.lens, strict=True):
            cached = drawn(page, *pool[:, page].shape)
            pool[:, moved[page], :, :length] = cached[:, :, :length]
    stored = Pages(*(to_storage(jnp.asarray(a, dtype)) for a in pool))
    q_own, k_own, v_own = (jnp.asarray(a, dtype) for a in (q, k, v))
    return Step(shape, rows, starts, arrays, q_own, k_own, v_own, stored)


@functools.cache
def compiled(attend: Callable[..., Array]) -> Callable[..., Array]:
    """The backend as a program, compiled once for each shape."""
    return jax.jit(attend, static_argnums=5)


def run(attend: Callable[..., Array], step: Step) -> list[NDArray[np.float32]]:
    """The attention output of each row."""
    found = compiled(attend)(step.q, step.k, step.v, step.pages, step.arrays, step.shape)
    values = np.asarray(found, np.float32)
    assert np.isfinite(values).all() or not np.isfinite(np.asarray(step.k, np.float32)).all()
    return step.parts(values)


def plainly(step: Step) -> list[NDArray[np.float64]]:
    """What it means: softmax over a row's context and itself, in float64. For seed 0 alone."""
    q, k, v = (np.asarray(a, np.float64) for a in (step.q, step.k, step.v))
    dtype = step.q.dtype
    pools = [np.asarray(a if a.dtype == dtype else a.view(dtype), np.float64) for a in step.pages]
    outs = []
    for one, q_row, *own in zip(step.rows, *(step.parts(a) for a in (q, k, v)), strict=True):
        context = list(zip(one.context.pages, one.context.lens, strict=True))
        keys, values = (
            np.concatenate([*(pool[page, :, :n].swapaxes(0, 1) for page, n in context), mine])
            for pool, mine in zip(pools, own, strict=True)
        )
        size, seen = len(q_row), len(keys)
        visible = np.arange(seen) <= np.arange(seen - size, seen)[:, None]
        outs.append(attention(q_row, keys, values, visible))
    return outs


def largest_difference(ours: Sequence[NDArray[Any]], theirs: Sequence[NDArray[Any]]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
