"""`attend` against plain attention over each row's context and itself, in float64."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from itemwise.engine.step_packer import StepPacker
from itemwise.ops.step.xla import StepLayout, attend, from_storage, to_storage
from itemwise.types import Context, RowPlan, StepShape

SHAPE = StepShape(
    tokens=128,
    lanes=8,
    lane_tokens=32,
    lane_alignment=1,
    page_tokens=32,
    granule_tokens=8,
    block_pages=2,
    max_context_pages=4,
)
NUM_PAGES = 6
ROWS = [
    RowPlan(range(32), 0, Context(), write_page=1),
    RowPlan(range(20), 0, Context((2,), (5,)), score_id=0),
    RowPlan(range(9), 0, Context((2,), (5,)), score_id=1),
    RowPlan(range(7), 0, Context((2,), (5,)), score_id=2),
    RowPlan(range(1), 0, Context((4, 3, 5), (32, 32, 31)), score_id=3),
    RowPlan(range(31), 0, Context((4, 3, 5), (32, 32, 31)), score_id=4),
]
# Largest difference from float64, of values near 1. bfloat16 has 8 bits of mantissa, and rounds
# the weights and the result.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


def draw(rng: np.random.Generator, *size: int) -> NDArray[np.float32]:
    return rng.standard_normal(size, np.float32)


def plain_attention(
    q: NDArray[np.float64], k: NDArray[np.float64], v: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Causal attention of the last `len(q)` places of k and v; heads on axis 1 of all."""
    group = q.shape[1] // k.shape[1]
    out = np.empty_like(q)
    for t in range(len(q)):
        seen = len(k) - len(q) + t + 1
        for head in range(q.shape[1]):
            scores = k[:seen, head // group] @ q[t, head] / np.sqrt(q.shape[2])
            weights = np.exp(scores - scores.max())
            out[t, head] = weights @ v[:seen, head // group] / weights.sum()
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(2, 2, 64), (4, 2, 128), (12, 2, 64), (8, 1, 16)]
)
def test_rows_see_their_context_and_themselves(
    dtype: str, num_heads: int, num_kv_heads: int, head_dim: int
) -> None:
    rng = np.random.default_rng(0)
    packer = StepPacker(SHAPE)
    for row in ROWS:
        assert packer.fits(row)
        packer.add(row)
    batch = packer.take()
    q, k, v = (
        jnp.asarray(draw(rng, SHAPE.tokens, heads, head_dim), dtype)
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    pool = (NUM_PAGES, num_kv_heads, SHAPE.lane_tokens, head_dim)
    k_pages, v_pages = (jnp.asarray(draw(rng, *pool), dtype) for _ in range(2))
    layout = StepLayout(*(jnp.asarray(getattr(batch, name)) for name in StepLayout._fields))

    found = attend(q, k, v, to_storage(k_pages), to_storage(v_pages), layout, SHAPE)

    wide = [np.asarray(a, np.float64) for a in (q, k, v, k_pages, v_pages)]
    starts = batch.granule_start[: batch.num_granules][
        batch.granule_index[: batch.num_granules] == 0
    ]
    assert len(starts) == len(ROWS)
    for row, start in zip(ROWS, starts, strict=True):
        places = slice(int(start), int(start) + len(row.tokens))
        keys, values = (
            np.concatenate(
                [
                    pages[page, :, :length].swapaxes(0, 1)
                    for page, length in zip(row.context.pages, row.context.lens, strict=True)
                ]
                + [own[places]]
            )
            for pages, own in ((wide[3], wide[1]), (wide[4], wide[2]))
        )
        expected = plain_attention(wide[0][places], keys, values)
        error = np.abs(np.asarray(found[places], np.float64) - expected).max()
        assert error <= TOLERANCE[dtype]
    assert np.isfinite(np.asarray(found, np.float64)).all()


def test_storage_keeps_every_bit() -> None:
    for dtype in (jnp.bfloat16, jnp.float32):
        values = jnp.asarray(draw(np.random.default_rng(0), 100), dtype)
        assert (from_storage(to_storage(values), jnp.dtype(dtype)) == values).all()
