"""One suite for every backend of packed attention: the rule of `ops/packed/base.py`, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.experimental.pallas import tpu as pltpu
from numpy.typing import NDArray

from itemwise.engine.packed_sequence import pack, packed_shape
from itemwise.ops.packed.base import PackedArrays
from itemwise.ops.packed.dense import attend_dense
from itemwise.ops.packed.gpu import attend_packed_gpu
from itemwise.ops.packed.segment import attend_segment
from itemwise.ops.packed.tpu import attend_packed_tpu
from tests.ops.plainly import attention

Heads = tuple[int, int, int]
GRANULE = 32
# Largest difference from float64, of values near 1. bfloat16 has 8 bits of mantissa, and rounds
# the weights and the result.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}
# prefix and items in tokens. Tiles are of 256 and 512 tokens, granules of 32.
CASES: dict[str, tuple[int, tuple[int, ...]]] = {
    "short": (5, (3, 1, 7)),
    "prefix of one token": (1, (20, 20, 33)),
    "prefix alone": (300, ()),
    "empty items": (40, (0, 5, 0, 9)),
    "prefix ends with a tile": (512, (20,) * 10),
    "prefix ends one after a tile": (513, (31, 32, 33)),
    "items over several tiles": (100, (300, 1, 299, 64)),
    "as many tokens as places": (496, (1, 8, 7)),
    "many items": (64, tuple(range(1, 34))),
}
FURTHER_SIZES = ("prefix alone", "prefix ends with a tile", "as many tokens as places")
FOR_TPU = ("short", "items over several tiles")  # the cases that its interpreter runs soon


@dataclass(frozen=True)
class Backend:
    """How the suite runs a backend; a new one is one more entry of `BACKENDS`.

    Attributes:
        attend: takes q, k, v and the arrays.
        heads: N, K and H; all cases run with the first, "short" with the others.
    """

    attend: Callable[..., Array]
    heads: list[Heads]


# It fills memory that nobody wrote with NaN, refuses reads out of bounds, and prints data races.
INTERPRET = pltpu.InterpretParams(detect_races=True)
PLAIN_HEADS = [(4, 2, 16), (2, 2, 64), (12, 2, 64), (8, 1, 128)]
BACKENDS = {
    "dense": Backend(attend_dense, PLAIN_HEADS),
    "segment": Backend(functools.partial(attend_segment, granule_tokens=GRANULE), PLAIN_HEADS),
    "gpu": Backend(
        functools.partial(attend_packed_gpu, interpret=True),
        [(4, 2, 64), (1, 1, 128), (2, 1, 64), (6, 1, 128), (8, 2, 16)],
    ),
    "tpu": Backend(
        functools.partial(attend_packed_tpu, interpret=INTERPRET),
        [(4, 2, 64), (1, 1, 128), (2, 1, 64), (6, 1, 128), (8, 1, 128)],
    ),
}


class Sequence(NamedTuple):
    """A packed sequence with random queries, keys and values."""

    case: str
    arrays: PackedArrays
    q: Array
    k: Array
    v: Array


def make_sequence(case: str, heads: Heads, dtype: str = "float32") -> Sequence:
    prefix, lengths = CASES[case]
    rng = np.random.default_rng(0)
    shape = packed_shape(prefix + sum(lengths), len(lengths), 128, GRANULE)
    arrays = pack((0,) * prefix, [(0,) * n for n in lengths], shape)
    drawn = (
        jnp.asarray(rng.standard_normal((shape.tokens, n, heads[2]), np.float32), dtype)
        for n in (heads[0], heads[1], heads[1])
    )
    return Sequence(case, arrays, *drawn)


@functools.cache
def compiled(attend: Callable[..., Array]) -> Callable[..., Array]:
    return jax.jit(attend)


def run(attend: Callable[..., Array], made: Sequence) -> NDArray[np.float64]:
    """The attention output of all places."""
    found = np.asarray(compiled(attend)(made.q, made.k, made.v, made.arrays), np.float64)
    assert np.isfinite(found).all()
    return found


def plainly(made: Sequence) -> NDArray[np.float64]:
    """What it means, of the places in use, in float64."""
    prefix, lengths = CASES[made.case]
    row_start = np.repeat(prefix + np.cumsum((0, *lengths))[:-1], lengths).astype(int)
    row_start = np.concatenate([np.zeros(prefix, int), row_start])
    used = len(row_start)
    i, j = np.arange(used)[:, None], np.arange(used)
    visible = (j <= i) & ((j < prefix) | (j >= row_start[:, None]))
    q, k, v = (np.asarray(a[:used], np.float64) for a in (made.q, made.k, made.v))
    return attention(q, k, v, visible)


def error(attend: Callable[..., Array], made: Sequence) -> float:
    expected = plainly(made)
    return float(np.abs(run(attend, made)[: len(expected)] - expected).max())


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]


@pytest.fixture(autouse=True)
def no_race(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Of those that an interpreter prints."""
    yield
    captured = capfd.readouterr()
    assert "RACE" not in captured.out + captured.err


for_all = pytest.mark.parametrize("backend", list(BACKENDS), indirect=True)


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        # Further sizes "segment" compiles anew; the interpreter for TPU takes seconds for each.
        pytest.param(
            *(name, case),
            marks=[pytest.mark.slow]
            if case in FURTHER_SIZES or (name == "tpu" and case not in FOR_TPU)
            else [],
        )
        for name in BACKENDS
        for case in CASES
    ],
    indirect=["backend"],
    ids=str,
)
def test_the_rule(case: str, backend: Backend) -> None:
    made = make_sequence(case, backend.heads[0])
    assert error(backend.attend, made) <= TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("backend", "heads", "dtype"),
    [
        pytest.param(
            *(name, heads, dtype),
            marks=[pytest.mark.slow]
            if heads != one.heads[0] or (name, dtype) == ("tpu", "float32")
            else [],
        )
        for name, one in BACKENDS.items()
        for heads in one.heads
        for dtype in TOLERANCE
    ],
    indirect=["backend"],
    ids=str,
)
def test_heads_and_types(dtype: str, heads: Heads, backend: Backend) -> None:
    made = make_sequence("short", heads, dtype)
    assert error(backend.attend, made) <= TOLERANCE[dtype]


@for_all
def test_other_places_change_no_bit(backend: Backend) -> None:
    """Padding and neighbours are exact no-ops, whatever they hold."""
    made = make_sequence("items over several tiles", backend.heads[0], "bfloat16")
    base = run(backend.attend, made)
    for item in (2, 3):
        ends = [*made.arrays.row_starts[:4].tolist(), int(made.arrays.num_places)]
        mine = slice(ends[item], ends[item + 1])
        others = np.arange(len(made.q))
        others = others[(others >= 100) & ((others < mine.start) | (others >= mine.stop))]
        q, k, v = (a.at[others].set(a[others] * -7 + 3) for a in (made.q, made.k, made.v))
        found = run(backend.attend, made._replace(q=q, k=k, v=v))
        assert (found[mine] == base[mine]).all()
        assert (found[:100] == base[:100]).all()
        assert (found[others] != base[others]).any()


@for_all
def test_a_planted_fault_is_seen(backend: Backend) -> None:
    made = make_sequence("many items", backend.heads[0])
    sixth = np.arange(len(made.arrays.row_starts)) == 5
    granule = np.arange(len(made.arrays.granule_start)) == 5
    for faulty in (
        made.arrays._replace(prefix_end=made.arrays.prefix_end + np.int32(1)),
        made.arrays._replace(
            row_starts=made.arrays.row_starts - sixth,
            granule_start=made.arrays.granule_start - granule,
        ),
    ):
        assert error(backend.attend, made._replace(arrays=faulty)) > 1e-3
