"""The C++ kernel against the XLA form, and its bits in other company."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
from numpy.typing import NDArray

from itemwise.native import load_kernels
from itemwise.ops.attention import StepLayout, attend
from itemwise.ops.cpu_step import attend_cpu
from itemwise.packing import StepPacker
from itemwise.types import Context, RowPlan, StepShape

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
    "long rows": [row(128, LONG), row(128), row(128)],
}
HEADS = [(16, 8, 128), (4, 4, 64), (12, 2, 64), (8, 1, 16), (6, 2, 24)]


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if load_kernels() is None:
        pytest.skip("no C++ compiler")


def run(
    rows: Sequence[RowPlan],
    heads: tuple[int, int, int],
    *,
    xla: bool = False,
    seed: int = 0,
    broken: int | None = None,
) -> list[NDArray[np.float32]]:
    """The attention output of each row; `seed` draws what surrounds the rows in the step.

    The row `broken` has keys and values that are no numbers.
    """
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
    if broken is not None:
        for array in (k, v):
            array[starts[broken] :][: len(rows[broken].tokens)] = np.nan
    rng = np.random.default_rng(1)
    pool = (NUM_PAGES, num_kv_heads, SHAPE.page_tokens, head_dim)
    pages = [rng.standard_normal(pool, np.float32) for _ in range(2)]
    way = attend if xla else attend_cpu
    found = np.asarray(jax.jit(way, static_argnums=6)(q, k, v, *pages, layout, SHAPE))
    assert np.isfinite(found).all() or broken is not None
    return [found[s : s + len(r.tokens)] for r, s in zip(rows, starts, strict=True)]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernel_gives_what_xla_gives(case: str, heads: tuple[int, int, int]) -> None:
    rows = CASES[case]
    for found, expected in zip(run(rows, heads), run(rows, heads, xla=True), strict=True):
        assert np.abs(found - expected).max() <= 2e-6


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_row_has_the_same_bits_in_any_company(case: str, heads: tuple[int, int, int]) -> None:
    rows = CASES[case]
    base = run(rows, heads)
    backwards = run(rows[::-1], heads, seed=2)[::-1]
    for one, found, other in zip(rows, base, backwards, strict=True):
        assert found.tobytes() == other.tobytes()
        assert found.tobytes() == run([one], heads, seed=3)[0].tobytes()


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_what_is_no_number_stays_in_its_row(heads: tuple[int, int, int]) -> None:
    rows = CASES["a short context"]
    base = run(rows, heads)
    for broken in (0, 4, 9):
        for i, found in enumerate(run(rows, heads, broken=broken)):
            assert np.isnan(found).all() if i == broken else found.tobytes() == base[i].tobytes()


def test_a_step_without_rows_runs() -> None:
    assert run([], (4, 2, 16)) == []


def test_a_key_too_many_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = CASES["a long context"]
    base = run(rows, HEADS[0])

    kernel = attend_cpu

    def longer(*arguments: Any) -> jax.Array:
        q, k, v, k_pages, v_pages, layout, shape = arguments
        layout = layout._replace(context_lens=layout.context_lens + (layout.context_lens == 77))
        return kernel(q, k, v, k_pages, v_pages, layout, shape)

    monkeypatch.setitem(globals(), "attend_cpu", longer)
    for found, other in zip(run(rows, HEADS[0]), base, strict=True):
        assert np.abs(found - other).max() > 1e-5
