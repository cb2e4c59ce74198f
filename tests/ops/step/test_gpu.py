"""What the GPU kernel has beyond the suite in `test_step.py`: its walk, and how it writes pages."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from itemwise.engine.step_packer import Context, RowPlan, StepPacker
from itemwise.ops.step.arrays import StepArrays, StepShape
from itemwise.ops.step.base import Pages, write_pages
from itemwise.ops.step.gpu import attend_gpu, lane_walk, page_places, write_places
from tests.ops.step.steps import (
    NUM_PAGES,
    SHAPE,
    cases,
    largest_difference,
    make_step,
    plainly,
    row,
    run,
)


@pytest.mark.parametrize("fault", ["granules start early", "other row"])
def test_a_fault_in_the_walk_is_seen(fault: str) -> None:
    def faulty(
        q: Array, k: Array, v: Array, pages: Pages, arrays: StepArrays, shape: StepShape
    ) -> Array:
        walk = lane_walk(arrays, shape)
        if fault == "granules start early":
            walk = walk._replace(granule_start=jnp.maximum(walk.granule_start - 1, 0))
        else:
            walk = walk._replace(row_start=walk.row_start * 0, granule_row=walk.granule_row * 0)
        return attend_gpu(q, k, v, pages, walk, shape, interpret=True)

    step = make_step(SHAPE, cases(SHAPE)["a long context"], (4, 2, 64))
    assert largest_difference(run(faulty, step), plainly(step)) > 1e-5


def test_pages_take_what_rows_write() -> None:
    """As `write_pages` does, where a row has tokens; what follows it in its page is nobody's."""
    packer = StepPacker(SHAPE)
    rows = [
        RowPlan(range(128), 0, Context(), write_page=3),
        RowPlan(range(40), 128, Context((3,), (128,)), write_page=7),
        row(9, Context((4,), (5,))),
        RowPlan(range(70), 0, Context((2, 9), (128, 77)), write_page=1),
    ]
    for one in rows:
        packer.add(one)
    arrays = StepArrays(*map(jnp.asarray, packer.take().arrays))
    rng = np.random.default_rng(0)
    new = jnp.asarray(rng.standard_normal((SHAPE.tokens, 2, 16), np.float32))
    pool = jnp.asarray(rng.standard_normal((NUM_PAGES, 2, SHAPE.page_tokens, 16), np.float32))
    places = page_places(arrays, lane_walk(arrays, SHAPE), NUM_PAGES)
    found, expected = write_places(pool, new, places), write_pages(pool, new, arrays)
    lens = {one.write_page: len(one.tokens) for one in rows if one.write_page is not None}
    for page in range(NUM_PAGES):
        used = lens.get(page, 0)
        assert (found[page, :, :used] == expected[page, :, :used]).all()
        if not used:
            assert (found[page] == pool[page]).all()
    assert not (found[3] == pool[3]).any()
