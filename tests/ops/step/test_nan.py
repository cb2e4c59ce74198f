"""What is not finite, or so large that it overflows, stays in its own row: for every backend.

It may lie in any row, in pages that nobody else reads, past the valid tokens of a page, and in
token places of no row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import Array

from itemwise.ops.softmax import mark_in_keys
from itemwise.ops.step.base import Pages, from_storage, to_storage
from tests.conftest import require
from tests.ops.step.backends import BACKENDS, Backend
from tests.ops.step.steps import CASES, NUM_PAGES, Step, cases, compiled, make_step

BAD = [np.nan, np.inf, -np.inf, 3e38, -3e38]
Mark = Callable[[Array, Array], tuple[Array, Array]]
SLOW = ("tpu",)  # to interpret
few = settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen = BACKENDS[request.param]
    if chosen.level is not None:
        require(chosen.level)
    return chosen


PARAMETERS = [
    pytest.param(
        *(name, dtype),
        marks=[pytest.mark.slow] if name in SLOW else [],
        id=f"{name}-{dtype}",
    )
    for name, one in BACKENDS.items()
    for dtype in one.tolerance
]
for_all = pytest.mark.parametrize(("backend", "dtype"), PARAMETERS, indirect=["backend"])


def attend(backend: Backend, step: Step) -> list[bytes]:
    """Bits of each row's attention."""
    run: Callable[..., Array] = backend.attend
    found = compiled(run)(step.q, step.k, step.v, step.pages, step.arrays, step.shape)
    return [part.tobytes() for part in step.parts(np.asarray(found, np.float32))]


def spoil(step: Step, broken: set[int], rng: np.random.Generator, mark: Mark) -> Step:
    """The step with bad numbers in some rows, and everywhere where no other row should look."""

    def put(array: Any, places: Any) -> None:
        """Bad numbers at some of the places of a view [..., H]; all of one vector at times."""
        where = rng.random(array[places].shape) < rng.choice([0.01, 0.3, 1.0])
        array[places] = np.where(where, rng.choice(BAD, where.shape), array[places])

    dtype = step.q.dtype
    q, k, v = (np.array(a, np.float32) for a in (step.q, step.k, step.v))
    pools = [np.array(from_storage(a, dtype), np.float32) for a in step.pages]
    free = np.ones(len(q), bool)
    valid = np.zeros((NUM_PAGES, step.shape.page_tokens), bool)  # for a row that is not broken
    for index, (one, start) in enumerate(zip(step.rows, step.starts, strict=True)):
        mine = slice(start, start + len(one.tokens))
        free[mine] = index in broken
        if index not in broken:
            for page, length in zip(one.context.pages, one.context.lens, strict=True):
                valid[page, :length] = True
    for array in (q, k, v):
        put(array, free)
    for pool in pools:
        put(pool.swapaxes(1, 2), ~valid)
    k_own, v_own = mark(jnp.asarray(k, dtype), jnp.asarray(v, dtype))
    k_pages, v_pages = (to_storage(a) for a in mark(*(jnp.asarray(pool, dtype) for pool in pools)))
    return step._replace(q=jnp.asarray(q, dtype), k=k_own, v=v_own, pages=Pages(k_pages, v_pages))


def moved_rows(backend: Backend, dtype: str, case: str, seed: int, mark: Mark) -> list[int]:
    """The rows whose bits change although nothing bad is in them or in what they see."""
    rng = np.random.default_rng(seed)
    step = make_step(backend.shape, cases(backend.shape)[case], backend.heads[0], dtype=dtype)
    count = len(step.rows)
    broken = set(rng.choice(count, rng.integers(0, count), replace=False).tolist())
    found = attend(backend, spoil(step, broken, rng, mark))
    clean = attend(backend, step)
    return [i for i in range(count) if i not in broken and found[i] != clean[i]]


@for_all
@few
@given(case=st.sampled_from(CASES), seed=st.integers(0, 2**32 - 1))
def test_bad_numbers_stay_in_their_rows(backend: Backend, dtype: str, case: str, seed: int) -> None:
    assert moved_rows(backend, dtype, case, seed, mark_in_keys) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@for_all
def test_who_sees_a_value_that_is_not_finite_gets_nan(
    backend: Backend, dtype: str, bad: float
) -> None:
    step = make_step(
        backend.shape, cases(backend.shape)["a long context"], backend.heads[0], dtype=dtype
    )
    v = step.v.at[step.starts[1] + 3, 0, 0].set(bad)
    k, v = mark_in_keys(step.k, v)
    first = attend(backend, step)
    found = attend(backend, step._replace(k=k, v=v))
    assert [a == b for a, b in zip(first, found, strict=True)] == [True, False, True, True]
    heads = backend.heads[0][0] // backend.heads[0][1]
    row = np.frombuffer(found[1], np.float32).reshape(-1, *step.q.shape[1:])
    assert np.isnan(row[3:, :heads]).all()
    assert np.isfinite(row[:, heads:]).all()
    page = step.rows[0].context.pages[1]
    pools = [from_storage(a, step.q.dtype) for a in step.pages]
    marked = mark_in_keys(pools[0], pools[1].at[page, 0, 5, 0].set(bad))
    found = attend(backend, step._replace(pages=Pages(*map(to_storage, marked))))
    for bits in found:
        row = np.frombuffer(bits, np.float32).reshape(-1, *step.q.shape[1:])
        assert np.isnan(row[:, :heads]).all()
        assert np.isfinite(row[:, heads:]).all()


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [one for one in PARAMETERS if BACKENDS[str(one.values[0])].level is None],
    indirect=["backend"],
)
def test_without_marks_they_do_not_stay(backend: Backend, dtype: str) -> None:
    """The planted fault. The C++ kernels need no mark: they do not read what a row does not see."""

    def unmarked(k: Array, v: Array) -> tuple[Array, Array]:
        return k, v

    assert any(moved_rows(backend, dtype, "several requests", seed, unmarked) for seed in range(4))
