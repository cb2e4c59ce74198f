"""Steps with random queries, keys, values and pages, for kernels of the exact step's attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from itemwise.engine.step_packer import StepPacker
from itemwise.ops.step.xla import StepLayout, to_storage
from itemwise.types import Context, RowPlan, StepShape

# As `attention.attend`: q, k, v, the pages of keys and values, layout and shape.
StepAttention = Callable[..., Array]
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
NUM_PAGES = 10
SHORT = Context((4,), (5,))
LONG = Context((2, 9, 1, 3, 6), (128, 128, 128, 128, 77))
PARTS = Context((5, 8), (1, 127))


def row(num_tokens: int, context: Context = SHORT) -> RowPlan:
    return RowPlan(range(num_tokens), 0, context, score_id=0)


CASES: dict[str, list[RowPlan]] = {
    "no context": [row(n, Context()) for n in (1, 20, 31, 32, 33, 128)],
    "a short context": [row(n) for n in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89)],
    "a long context": [row(n, LONG) for n in (20, 20, 7, 120)],
    "part-full pages": [row(n, PARTS) for n in (64, 1)],
    "several requests": [row(n, c) for n in (1, 9, 128) for c in (SHORT, LONG)],
    "a short last granule": [row(n) for n in (128, 128, 108, 20)],
    "long rows": [row(128, LONG), row(128), row(128)],
}


class Step(NamedTuple):
    """Rows packed into a step, with the arrays that attention takes: float32, and the layout."""

    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]
    k_pages: NDArray[np.float32]
    v_pages: NDArray[np.float32]
    layout: StepLayout
    starts: list[int]  # the first place of each row


def run(
    way: StepAttention,
    rows: Sequence[RowPlan],
    heads: tuple[int, int, int],
    *,
    dtype: str = "float32",
    seed: int = 0,
    broken: int | None = None,
) -> list[NDArray[np.float32]]:
    """The attention output of each row; arguments as in `draw_step`.

    The row `broken` has keys and values that are no numbers.
    """
    step = draw_step(rows, heads, seed)
    if broken is not None:
        for array in (step.k, step.v):
            array[step.starts[broken] :][: len(rows[broken].tokens)] = np.nan
    found = attention(way, step, dtype)
    assert np.isfinite(found).all() or broken is not None
    return [found[s : s + len(r.tokens)] for r, s in zip(rows, step.starts, strict=True)]


def attention(way: StepAttention, step: Step, dtype: str = "float32") -> NDArray[np.float32]:
    """What comes out at every place of the step."""
    own = [jnp.asarray(a, dtype) for a in (step.q, step.k, step.v)]
    kept = [to_storage(jnp.asarray(a, dtype)) for a in (step.k_pages, step.v_pages)]
    jitted = jax.jit(way, static_argnums=6)
    return np.asarray(jitted(*own, *kept, step.layout, SHAPE), np.float32)


def draw_step(rows: Sequence[RowPlan], heads: tuple[int, int, int], seed: int = 0) -> Step:
    """A step of the rows; `seed` draws what surrounds them. `heads` are N, K and H."""
    num_heads, num_kv_heads, head_dim = heads
    packer, starts = StepPacker(SHAPE), []
    for one in rows:
        starts.append(packer._start_of(one))
        packer.add(one)
    batch = packer.take()
    layout = StepLayout(*(getattr(batch, name) for name in StepLayout._fields))
    around = np.random.default_rng(seed)
    q, k, v = (
        around.standard_normal((SHAPE.tokens, n, head_dim), np.float32)
        for n in (num_heads, num_kv_heads, num_kv_heads)
    )
    for one, start in zip(rows, starts, strict=True):  # a row's values go by what it is
        mine = np.random.default_rng([len(one.tokens), *one.context.pages])
        for array in (q, k, v):
            size = (len(one.tokens), *array.shape[1:])
            array[start : start + size[0]] = mine.standard_normal(size, np.float32)
    rng = np.random.default_rng(1)
    pool = (NUM_PAGES, num_kv_heads, SHAPE.page_tokens, head_dim)
    k_pages, v_pages = (rng.standard_normal(pool, np.float32) for _ in range(2))
    return Step(q, k, v, k_pages, v_pages, layout, starts)
