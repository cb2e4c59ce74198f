"""The TPU kernel of the exact step in Pallas's TPU interpreter, against the XLA form.

The interpreter fills memory that nobody wrote with NaN, refuses reads out of bounds, and prints
each data race it finds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental.pallas import tpu as pltpu
from numpy.typing import NDArray

from itemwise.engine.step_packer import StepPacker
from itemwise.ops.step import tpu as tpu_step
from itemwise.ops.step.tpu import attend_tpu
from itemwise.ops.step.xla import StepLayout, attend, to_storage
from itemwise.types import Context, RowPlan, StepBatch, StepShape

SHAPE = StepShape(
    tokens=256,
    lanes=4,
    lane_tokens=64,
    lane_alignment=64,
    page_tokens=64,
    granule_tokens=32,
    block_pages=2,
    max_context_pages=6,
)
NUM_PAGES = 9
INTERPRET = pltpu.InterpretParams(detect_races=True)
# Largest difference between the two forms, of values near 1: they add in the same order, but a
# product of other shape may add within a block in another one.
TOLERANCE = {"float32": 4e-6, "bfloat16": 2e-2}


class Row(NamedTuple):
    """A row: how many tokens, and the pages it reads with their valid tokens."""

    num_tokens: int
    pages: tuple[int, ...] = ()
    lens: tuple[int, ...] = ()
    writes: int | None = None


FIVE = (4, 3, 5, 1, 8)
FULL = (64,) * 5
CASES: dict[str, list[Row]] = {
    "no context": [Row(1), Row(20), Row(31), Row(32), Row(33)],
    "a part-full page": [Row(20, (2,), (5,)), Row(9, (2,), (5,)), Row(35, (2,), (5,))],
    "several blocks": [Row(20, FIVE, FULL), Row(64, FIVE, FULL)],
    "part-full pages within": [Row(7, (4, 3, 5), (64, 1, 63)), Row(40, (4, 3, 5), (64, 1, 63))],
    "rows over the border of lanes": [Row(n, (2,), (64,)) for n in (50, 40, 60)],
    "several requests": [Row(64, writes=1), Row(3, (2,), (9,)), Row(1), Row(30, FIVE, FULL)],
    "a full step": [Row(64, (2, 7), (64, 64), writes=6)] + [Row(16, (3,), (33,))] * 12,
}


class Inputs(NamedTuple):
    """A packed step with random queries, keys, values and pages."""

    batch: StepBatch
    starts: list[int]
    layout: StepLayout
    q: Array
    k: Array
    v: Array
    k_pages: Array
    v_pages: Array


def pack(rows: Sequence[Row]) -> tuple[StepBatch, list[int]]:
    packer = StepPacker(SHAPE)
    starts = []
    for row in rows:
        plan = RowPlan(
            range(row.num_tokens), 0, Context(row.pages, row.lens), write_page=row.writes
        )
        starts.append(packer._start_of(plan))
        packer.add(plan)
    return packer.take(), starts


def inputs(
    rows: Sequence[Row], dtype: str = "float32", heads: tuple[int, int] = (4, 2), head_dim: int = 64
) -> Inputs:
    batch, starts = pack(rows)
    rng = np.random.default_rng(0)

    def draw(*size: int) -> Array:
        return jnp.asarray(rng.standard_normal(size, np.float32), dtype)

    tokens = SHAPE.tokens
    pool = (NUM_PAGES, heads[1], SHAPE.lane_tokens, head_dim)
    layout = StepLayout(*(jnp.asarray(getattr(batch, name)) for name in StepLayout._fields))
    made = (draw(tokens, n, head_dim) for n in (heads[0], heads[1], heads[1]))
    q, k, v = made
    k_pages, v_pages = (to_storage(draw(*pool)) for _ in range(2))
    return Inputs(batch, starts, layout, q, k, v, k_pages, v_pages)


kernel = jax.jit(functools.partial(attend_tpu, shape=SHAPE, interpret=INTERPRET))
reference = jax.jit(functools.partial(attend, shape=SHAPE))


def run(way: Any, made: Inputs) -> NDArray[np.float64]:
    found = way(made.q, made.k, made.v, made.k_pages, made.v_pages, made.layout)
    values = np.asarray(found, np.float64)
    assert np.isfinite(values).all()
    return values


def error(rows: Sequence[Row], made: Inputs, way: Any = kernel) -> float:
    found, expected = run(way, made), run(reference, made)
    used = places(rows, made)
    return float(np.abs(found[used] - expected[used]).max())


def places(rows: Sequence[Row], made: Inputs) -> NDArray[np.int64]:
    """The token places of all rows."""
    pairs = zip(rows, made.starts, strict=True)
    return np.concatenate([np.arange(start, start + row.num_tokens) for row, start in pairs])


@pytest.fixture
def no_race(capfd: pytest.CaptureFixture[str]) -> object:
    yield
    captured = capfd.readouterr()
    assert "RACE" not in captured.out + captured.err


@pytest.mark.usefixtures("no_race")
@pytest.mark.parametrize("case", CASES)
def test_kernel_agrees_with_the_xla_form(case: str) -> None:
    assert error(CASES[case], inputs(CASES[case])) <= TOLERANCE["float32"]


@pytest.mark.usefixtures("no_race")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("heads", "head_dim"), [((1, 1), 128), ((2, 1), 64), ((6, 1), 128), ((8, 1), 128)]
)
def test_heads_and_types(dtype: str, heads: tuple[int, int], head_dim: int) -> None:
    rows = CASES["several requests"]
    assert error(rows, inputs(rows, dtype, heads, head_dim)) <= TOLERANCE[dtype]


@pytest.mark.usefixtures("no_race")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_bits_are_equal_in_any_company(dtype: str) -> None:
    """A row elsewhere in the step, in other pages, beside other rows, keeps its bits."""
    rows = [Row(45, FIVE, (64, 64, 64, 64, 30)), Row(20, FIVE, (64, 64, 64, 64, 30))]
    made = inputs(rows, dtype)
    base = run(kernel, made)
    moved = [Row(30, (2,), (5,)), Row(7), rows[1], Row(50, *rows[0][1:3]), rows[0]]
    placed, starts = pack(moved)
    other = inputs(moved, dtype)
    rng = np.random.default_rng(5)
    order = jnp.asarray(rng.permutation(NUM_PAGES), jnp.int32)
    table = np.argsort(order).astype(np.int32)
    q, k, v = other.q, other.k, other.v
    for old, new in ((0, 4), (1, 2)):
        count = rows[old].num_tokens
        from_, to = made.starts[old] + np.arange(count), starts[new] + np.arange(count)
        q, k, v = (a.at[to].set(b[from_]) for a, b in ((q, made.q), (k, made.k), (v, made.v)))
    found = run(
        kernel,
        other._replace(
            q=q,
            k=k,
            v=v,
            k_pages=made.k_pages[order],
            v_pages=made.v_pages[order],
            layout=other.layout._replace(context_pages=jnp.asarray(table[placed.context_pages])),
        ),
    )
    for old, new in ((0, 4), (1, 2)):
        count = rows[old].num_tokens
        ours = found[starts[new] : starts[new] + count]
        assert (ours == base[made.starts[old] : made.starts[old] + count]).all()


@pytest.mark.usefixtures("no_race")
def test_garbage_changes_no_bit() -> None:
    """In places of no row, in pages past their valid tokens, in unused slots of the table."""
    rows = CASES["part-full pages within"]
    made = inputs(rows, "bfloat16")
    base = run(kernel, made)
    used = places(rows, made)
    others = np.setdiff1d(np.arange(SHAPE.tokens), used)
    q, k, v = (a.at[others].set(a[others] * -7 + 3) for a in (made.q, made.k, made.v))
    pages = [jnp.asarray(a).at[3, :, 1:].set(17000) for a in (made.k_pages, made.v_pages)]
    table = made.layout.context_pages.at[:, 3:].set(7)
    layout = made.layout._replace(context_pages=table)
    found = run(kernel, Inputs(made.batch, made.starts, layout, q, k, v, *pages))
    assert (found[used] == base[used]).all()


@pytest.mark.parametrize(
    "fault", ["context one too long", "granule starts early", "one place for all blocks"]
)
def test_a_planted_fault_is_seen(
    fault: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = CASES["part-full pages within"]
    way: Any = functools.partial(attend_tpu, shape=SHAPE, interpret=INTERPRET)
    if fault == "one place for all blocks":
        monkeypatch.setattr(tpu_step, "slot_of", lambda block: block * 0)
        rows = CASES["several blocks"]
        error(rows, inputs(rows), way)
        printed = capfd.readouterr()
        assert "RACE" in printed.out + printed.err
        return
    made = inputs(rows)
    if fault == "context one too long":
        layout = made.layout._replace(context_lens=made.layout.context_lens + 1)
    else:
        start = jnp.maximum(made.layout.granule_start - 1, 0)
        layout = made.layout._replace(granule_start=start)

    def faulty(
        q: Array, k: Array, v: Array, k_pages: Array, v_pages: Array, _: StepLayout
    ) -> Array:
        found: Array = way(q, k, v, k_pages, v_pages, layout)
        return found

    assert error(rows, made, faulty) > 1e-3
