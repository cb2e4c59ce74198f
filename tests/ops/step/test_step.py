"""One suite for every backend of the step's attention: what it means, and whose bits it keeps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from itemwise.ops.step.arrays import StepArrays
from tests.conftest import require
from tests.ops.step.backends import BACKENDS, Backend
from tests.ops.step.steps import CASES, SHAPE, cases, largest_difference, make_step, plainly, run

Heads = tuple[int, int, int]
EVERYWHERE = list(BACKENDS)


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen = BACKENDS[request.param]
    if chosen.level is not None:
        require(chosen.level)
    return chosen


@pytest.fixture(autouse=True)
def no_race(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Of those that an interpreter prints."""
    yield
    captured = capfd.readouterr()
    assert "RACE" not in captured.out + captured.err


def combinations() -> Iterator[tuple[str, str, Heads, str]]:
    """Backends with their cases, heads and types."""
    for name, backend in BACKENDS.items():
        for dtype in backend.tolerance:
            for heads in backend.heads:
                every_case = backend.every_heads or heads == backend.heads[0]
                for case in CASES if every_case else ["several requests"]:
                    yield name, case, heads, dtype


def is_slow(name: str, case: str, heads: Heads, dtype: str) -> bool:
    """What takes seconds to compile or to interpret, but for one of each kind.

    With the first heads remain: in XLA all cases in float32; in the interpreter for GPU all in
    bfloat16 and one in float32; in the one for TPU one case, in bfloat16.
    """
    if name not in ("xla", "gpu", "tpu"):
        return False
    if heads != BACKENDS[name].heads[0]:
        return True
    if name == "xla":
        return dtype == "bfloat16"
    if name == "tpu":
        return case != "several requests" or dtype == "float32"
    return case != "several requests" and dtype == "float32"


for_all = pytest.mark.parametrize(
    ("backend", "case", "heads", "dtype"),
    [
        pytest.param(*one, marks=[pytest.mark.slow] if is_slow(*one) else [])
        for one in combinations()
    ],
    indirect=["backend"],
    ids=str,
    scope="module",  # so that what shares a compiled program runs in one process
)


@for_all
def test_rows_see_their_context_and_themselves(
    backend: Backend, case: str, heads: Heads, dtype: str
) -> None:
    step = make_step(backend.shape, cases(backend.shape)[case], heads, dtype=dtype)
    error = largest_difference(run(backend.attend, step), plainly(step))
    assert error <= backend.tolerance[dtype]


@for_all
def test_a_row_has_the_same_bits_in_any_company(
    backend: Backend, case: str, heads: Heads, dtype: str
) -> None:
    """Elsewhere in a step, in other pages, beside other rows and among other garbage."""
    rows = cases(backend.shape)[case]
    base = run(backend.attend, make_step(backend.shape, rows, heads, dtype=dtype))
    backwards = make_step(backend.shape, rows[::-1], heads, dtype=dtype, seed=2)
    turned = run(backend.attend, backwards)[::-1]
    for found, other in zip(base, turned, strict=True):
        assert found.tobytes() == other.tobytes()
    for i in {0, len(rows) // 2, len(rows) - 1}:
        step = make_step(backend.shape, [rows[i]], heads, dtype=dtype, seed=3)
        (alone,) = run(backend.attend, step)
        assert alone.tobytes() == base[i].tobytes()


@pytest.mark.parametrize(
    ("backend", "heads"),
    [(name, heads) for name, one in BACKENDS.items() if one.isolates_nan for heads in one.heads],
    indirect=["backend"],
    ids=str,
)
def test_what_is_no_number_stays_in_its_row(backend: Backend, heads: Heads) -> None:
    rows = cases(backend.shape)["a short context"]
    base = run(backend.attend, make_step(backend.shape, rows, heads, dtype=backend.dtype))
    for broken in (0, 4, 8):
        step = make_step(backend.shape, rows, heads, dtype=backend.dtype, broken=broken)
        for i, found in enumerate(run(backend.attend, step)):
            assert np.isnan(found).all() if i == broken else found.tobytes() == base[i].tobytes()


@pytest.mark.parametrize("backend", EVERYWHERE, indirect=True)
def test_a_step_without_rows_runs(backend: Backend) -> None:
    assert (
        run(backend.attend, make_step(backend.shape, [], backend.heads[0], dtype=backend.dtype))
        == []
    )


def a_key_too_many(arrays: StepArrays) -> StepArrays:
    longest = arrays.context_lens.max()
    last = (arrays.context_lens > 0) & (arrays.context_lens < longest)
    return arrays._replace(context_lens=arrays.context_lens + last)


def a_granule_starts_early(arrays: StepArrays) -> StepArrays:
    return arrays._replace(granule_start=np.maximum(arrays.granule_start - 1, 0))


def all_rows_are_one(arrays: StepArrays) -> StepArrays:
    count = -(-int(arrays.num_places) // SHAPE.granule_tokens)
    index = np.arange(len(arrays.granule_index), dtype=np.int32) % count
    return arrays._replace(
        granule_start=index * np.int32(SHAPE.granule_tokens),
        granule_index=index,
        num_granules=np.asarray(count, np.int32),
    )


@pytest.mark.parametrize("backend", EVERYWHERE, indirect=True)
@pytest.mark.parametrize("fault", [a_key_too_many, a_granule_starts_early, all_rows_are_one])
def test_a_planted_fault_is_seen(backend: Backend, fault: object) -> None:
    assert callable(fault)
    rows = cases(backend.shape)["a long context"]
    step = make_step(backend.shape, rows, backend.heads[0], dtype=backend.dtype)
    base = run(backend.attend, step)
    faulty = run(backend.attend, step._replace(arrays=fault(step.arrays)))
    if fault is a_key_too_many:  # in the context that all rows share
        for found, expected in zip(faulty, base, strict=True):
            assert np.abs(found - expected).max() > 1e-5
    assert largest_difference(faulty, base) > 1e-3
