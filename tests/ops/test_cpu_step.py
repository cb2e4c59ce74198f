"""The C++ kernel against the XLA form, and its bits in other company."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from itemwise.native import load_kernels
from itemwise.ops.attention import Wanted, attend
from itemwise.ops.cpu_step import attend_cpu
from tests.ops.steps import CASES, SHAPE, StepAttention, run

HEADS = [(16, 8, 128), (4, 4, 64), (12, 2, 64), (8, 1, 16), (6, 2, 24)]


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    if load_kernels() is None:
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_kernel_gives_what_xla_gives(case: str, heads: tuple[int, int, int]) -> None:
    rows = CASES[case]
    for found, expected in zip(run(attend_cpu, rows, heads), run(attend, rows, heads), strict=True):
        assert np.abs(found - expected).max() <= 2e-6


@pytest.mark.parametrize("case", CASES)
def test_sharp_attention_gives_what_xla_gives(case: str) -> None:
    # Scores that differ by hundreds: weights vanish, or are all but zero.
    found, expected = (run(sharp(way), CASES[case], HEADS[0]) for way in (attend_cpu, attend))
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 2e-4


def sharp(way: StepAttention) -> StepAttention:
    return lambda q, *others: way(100 * q, *others)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_row_has_the_same_bits_in_any_company(case: str, heads: tuple[int, int, int]) -> None:
    rows = CASES[case]
    base = run(attend_cpu, rows, heads)
    backwards = run(attend_cpu, rows[::-1], heads, seed=2)[::-1]
    for one, found, other in zip(rows, base, backwards, strict=True):
        assert found.tobytes() == other.tobytes()
        assert found.tobytes() == run(attend_cpu, [one], heads, seed=3)[0].tobytes()


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_what_is_no_number_stays_in_its_row(heads: tuple[int, int, int]) -> None:
    rows = CASES["a short context"]
    base = run(attend_cpu, rows, heads)
    for broken in (0, 4, 9):
        for i, found in enumerate(run(attend_cpu, rows, heads, broken=broken)):
            assert np.isnan(found).all() if i == broken else found.tobytes() == base[i].tobytes()


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_places_wanted_alone_have_the_same_bits(case: str, heads: tuple[int, int, int]) -> None:
    # The lane from 128 on has none.
    places = np.setdiff1d(np.arange(0, SHAPE.tokens, 7), np.arange(128, 256))

    def some(*arguments: Any) -> jax.Array:
        # Padding points to a place that is not wanted.
        wanted = Wanted(jnp.array([*places, 1, 1]), jnp.int32(len(places)))
        q, k, v, k_pages, v_pages, layout, shape = arguments
        return attend_cpu(q, k, v, k_pages, v_pages, layout, shape, wanted)

    def all_but_some(*arguments: Any) -> jax.Array:
        kept = np.isin(np.arange(SHAPE.tokens), places)
        return jnp.where(kept[:, None, None], attend_cpu(*arguments), 0)

    found, expected = (run(way, CASES[case], heads) for way in (some, all_but_some))
    assert any(row.any() for row in found)
    for one, other in zip(found, expected, strict=True):
        assert one.tobytes() == other.tobytes()


def test_a_step_without_rows_runs() -> None:
    assert run(attend_cpu, [], (4, 2, 16)) == []


def test_a_key_too_many_would_show() -> None:
    rows = CASES["a long context"]
    base = run(attend_cpu, rows, HEADS[0])

    def longer(*arguments: Any) -> jax.Array:
        q, k, v, k_pages, v_pages, layout, shape = arguments
        layout = layout._replace(context_lens=layout.context_lens + (layout.context_lens == 77))
        return attend_cpu(q, k, v, k_pages, v_pages, layout, shape)

    for found, other in zip(run(longer, rows, HEADS[0]), base, strict=True):
        assert np.abs(found - other).max() > 1e-5
