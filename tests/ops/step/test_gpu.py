"""The GPU kernel of the exact step in Pallas's interpreter, against the XLA form."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from itemwise.engine.step_packer import StepPacker
from itemwise.ops.step.gpu import attend_gpu, lane_walk, page_places, write_places
from itemwise.ops.step.xla import PageWrites, StepLayout, attend, write_pages
from itemwise.types import Context, RowPlan, StepShape
from tests.ops.step.steps import CASES, LONG, NUM_PAGES, SHAPE, SHORT, row, run

HEADS = [(4, 2, 64), (2, 1, 128), (3, 1, 16)]
# Largest difference from the XLA form, of values near 1; in bfloat16 a result is rounded once.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


def kernel(
    q: Array,
    k: Array,
    v: Array,
    k_pages: Array,
    v_pages: Array,
    layout: StepLayout,
    shape: StepShape,
) -> Array:
    walk = lane_walk(layout, shape)
    return attend_gpu(q, k, v, k_pages, v_pages, walk, shape, interpret=True)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernel_gives_what_xla_gives(case: str, heads: tuple[int, int, int], dtype: str) -> None:
    rows = CASES[case]
    ours, expected = (run(way, rows, heads, dtype=dtype) for way in (kernel, attend))
    for found, other in zip(ours, expected, strict=True):
        assert np.abs(found - other).max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES)
def test_a_row_has_the_same_bits_in_any_company(case: str) -> None:
    rows, dtype = CASES[case], "bfloat16"
    base = run(kernel, rows, HEADS[0], dtype=dtype)
    backwards = run(kernel, rows[::-1], HEADS[0], dtype=dtype, seed=2)[::-1]
    for one, found, other in zip(rows, base, backwards, strict=True):
        assert found.tobytes() == other.tobytes()
        assert found.tobytes() == run(kernel, [one], HEADS[0], dtype=dtype, seed=3)[0].tobytes()


def test_a_step_without_rows_runs() -> None:
    assert run(kernel, [], HEADS[0]) == []


@pytest.mark.parametrize("fault", ["context one too long", "granules start early", "other row"])
def test_a_planted_fault_is_seen(fault: str) -> None:
    rows = [row(45, LONG), row(20, LONG), row(40, LONG)]
    base = run(attend, rows, HEADS[0])

    def faulty(*arguments: Any) -> Array:
        q, k, v, k_pages, v_pages, layout, shape = arguments
        if fault == "context one too long":
            lens = layout.context_lens
            layout = layout._replace(context_lens=lens + (lens == LONG.lens[-1]))
        walk = lane_walk(layout, shape)
        if fault == "granules start early":
            walk = walk._replace(granule_start=jnp.maximum(walk.granule_start - 1, 0))
        if fault == "other row":
            walk = walk._replace(row_start=walk.row_start * 0, granule_row=walk.granule_row * 0)
        return attend_gpu(q, k, v, k_pages, v_pages, walk, shape, interpret=True)

    found = run(faulty, rows, HEADS[0])
    assert max(np.abs(a - b).max() for a, b in zip(found, base, strict=True)) > 1e-5


def test_pages_take_what_rows_write() -> None:
    """As `write_pages` does, where a row has tokens; what follows it in its page is nobody's."""
    packer = StepPacker(SHAPE)
    rows = [
        RowPlan(range(128), 0, Context(), write_page=3),
        RowPlan(range(40), 128, Context((3,), (128,)), write_page=7),
        row(9, SHORT),
        RowPlan(range(70), 0, LONG, write_page=1),
    ]
    for one in rows:
        packer.add(one)
    batch = packer.take()
    layout = StepLayout(*(jnp.asarray(getattr(batch, name)) for name in StepLayout._fields))
    writes = PageWrites(
        jnp.asarray(batch.write_starts),
        jnp.asarray(batch.write_pages),
        jnp.asarray(batch.num_writes),
    )
    rng = np.random.default_rng(0)
    new = jnp.asarray(rng.standard_normal((SHAPE.tokens, 2, 16), np.float32))
    pool = jnp.asarray(rng.standard_normal((NUM_PAGES, 2, SHAPE.page_tokens, 16), np.float32))
    places = page_places(writes, lane_walk(layout, SHAPE), NUM_PAGES)
    found, expected = write_places(pool, new, places), write_pages(pool, new, writes)
    lens = {one.write_page: len(one.tokens) for one in rows if one.write_page is not None}
    for page in range(NUM_PAGES):
        used = lens.get(page, 0)
        assert (found[page, :, :used] == expected[page, :, :used]).all()
        if not used:
            assert (found[page] == pool[page]).all()
    assert not (found[3] == pool[3]).any()


def test_what_is_no_number_stays_in_its_row() -> None:
    rows = CASES["a short context"]
    base = run(kernel, rows, HEADS[0])
    for broken in (0, 4, 9):
        for i, found in enumerate(run(kernel, rows, HEADS[0], broken=broken)):
            if i == broken:
                assert np.isnan(found).all()
            else:
                assert found.tobytes() == base[i].tobytes()
