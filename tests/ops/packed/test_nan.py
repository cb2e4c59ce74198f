"""What is not finite, or so large that it overflows, stays with those who see it, by the rule.

For every backend of packed attention: an item's, with that item; the prefix and other items keep
their bits. It may also lie in padding.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import Array

from itemwise.ops.softmax import mark_in_keys
from tests.ops.packed.test_packed import (
    BACKENDS,
    CASES,
    TOLERANCE,
    Backend,
    compiled,
    make_sequence,
)

SLOW = ("tpu", "segment")  # to interpret, and to run
BAD = [np.nan, np.inf, -np.inf, 3e38, -3e38]
Mark = Callable[[Array, Array], tuple[Array, Array]]
ITEMS = ["short", "items over several tiles", "many items"]
few = settings(
    max_examples=6,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


for_all = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in BACKENDS
        for dtype in TOLERANCE
    ],
    indirect=["backend"],
)


def moved_parts(backend: Backend, dtype: str, case: str, seed: int, mark: Mark) -> list[int]:
    """The items whose bits change although nothing bad is in them; 0 stands for the prefix."""
    rng = np.random.default_rng(seed)
    prefix, lengths = CASES[case]
    made = make_sequence(case, backend.heads[0], dtype)
    ends = np.cumsum((0, prefix, *lengths))
    broken = set(
        (1 + rng.choice(len(lengths), rng.integers(0, len(lengths)), replace=False)).tolist()
    )
    spoilt = np.arange(len(made.q)) >= ends[-1]
    for part in broken:
        spoilt[ends[part] : ends[part + 1]] = True

    def put(array: Array) -> Array:
        values = np.array(array, np.float32)
        where = rng.random(values.shape) < rng.choice([0.01, 0.3, 1.0])
        where &= spoilt[:, None, None]
        return jnp.asarray(np.where(where, rng.choice(BAD, values.shape), values), dtype)

    q, (k, v) = put(made.q), mark(put(made.k), put(made.v))
    run = compiled(backend.attend)
    clean = np.asarray(run(made.q, made.k, made.v, made.arrays), np.float32)
    found = np.asarray(run(q, k, v, made.arrays), np.float32)
    return [
        part
        for part in range(len(lengths) + 1)
        if part not in broken
        and found[ends[part] : ends[part + 1]].tobytes()
        != clean[ends[part] : ends[part + 1]].tobytes()
    ]


@for_all
@few
@given(case=st.sampled_from(ITEMS), seed=st.integers(0, 2**32 - 1))
def test_bad_numbers_stay_in_their_items(
    backend: Backend, dtype: str, case: str, seed: int
) -> None:
    assert moved_parts(backend, dtype, case, seed, mark_in_keys) == []


@for_all
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_who_sees_a_value_that_is_not_finite_gets_nan(
    backend: Backend, dtype: str, bad: float
) -> None:
    made = make_sequence("short", backend.heads[0], dtype)  # prefix 0 to 4, items from 5, 8, 9
    run = compiled(backend.attend)
    clean = np.asarray(run(made.q, made.k, made.v, made.arrays), np.float32)
    for place, readers in ((6, [6, 7]), (2, list(range(2, 16)))):
        k, v = mark_in_keys(made.k, made.v.at[place, 0, 0].set(bad))
        found = np.asarray(run(made.q, k, v, made.arrays), np.float32)
        group = backend.heads[0][0] // backend.heads[0][1]
        others = [i for i in range(16) if i not in readers]
        assert np.isnan(found[readers, :group]).all()
        assert found[readers, group:].tobytes() == clean[readers, group:].tobytes()
        assert found[others].tobytes() == clean[others].tobytes()


@for_all
def test_without_marks_they_do_not_stay(backend: Backend, dtype: str) -> None:
    """The planted fault."""

    def unmarked(k: Array, v: Array) -> tuple[Array, Array]:
        return k, v

    assert any(moved_parts(backend, dtype, "short", seed, unmarked) for seed in range(4))
