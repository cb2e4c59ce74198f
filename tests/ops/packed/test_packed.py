"""One suite for every backend of packed attention: the rule of `ops/packed.py`, in float64."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from numpy.typing import NDArray

from itemwise.engine.packed_sequence import pack, packed_shape
from itemwise.ops.api import attend_packed
from itemwise.ops.packed.base import PackedLayout
from itemwise.types import Mask, PackedBatch, PackedShape

attend = jax.jit(attend_packed, static_argnums=(4, 5))  # compiled once a shape
BACKENDS: tuple[Mask, ...] = ("dense", "segment")
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


class Inputs(NamedTuple):
    """A packed sequence with random queries, keys and values."""

    shape: PackedShape
    batch: PackedBatch
    layout: PackedLayout
    q: Array
    k: Array
    v: Array


def inputs(case: str, dtype: str, heads: tuple[int, int], head_dim: int) -> Inputs:
    prefix, lengths = CASES[case]
    rng = np.random.default_rng(0)
    shape = packed_shape(prefix + sum(lengths), len(lengths), 128, 32)
    batch = pack((0,) * prefix, [(0,) * n for n in lengths], shape)
    layout = PackedLayout(*(jnp.asarray(getattr(batch, name)) for name in PackedLayout._fields))
    drawn = (
        jnp.asarray(rng.standard_normal((shape.tokens, n, head_dim), np.float32), dtype)
        for n in (heads[0], heads[1], heads[1])
    )
    return Inputs(shape, batch, layout, *drawn)


def plainly(made: Inputs) -> NDArray[np.float64]:
    """Attention of the places in use, one token and one head at a time, in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (made.q, made.k, made.v))
    group, scale = q.shape[1] // k.shape[1], q.shape[2] ** -0.5
    prefix, used = int(made.batch.prefix_end), int(made.batch.num_tokens)
    starts = [int(start) for start in made.batch.row_starts if start < made.shape.tokens]
    out = np.empty_like(q[:used])
    for i in range(used):
        first = max((start for start in starts if start <= i), default=0)
        seen = np.array([j for j in range(i + 1) if j < prefix or j >= first])
        for head in range(q.shape[1]):
            scores = k[seen, head // group] @ q[i, head] * scale
            weights = np.exp(scores - scores.max())
            out[i, head] = weights @ v[seen, head // group] / weights.sum()
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_the_rule(case: str, backend: Mask) -> None:
    made = inputs(case, "float32", (4, 2), 16)
    found = attend(made.q, made.k, made.v, made.layout, made.shape, backend)
    expected = plainly(made)
    assert np.abs(np.asarray(found, np.float64)[: len(expected)] - expected).max() <= 2e-6
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "head_dim"), [((2, 2), 64), ((12, 2), 64), ((8, 1), 128)])
def test_heads_and_types(dtype: str, heads: tuple[int, int], head_dim: int, backend: Mask) -> None:
    made = inputs("short", dtype, heads, head_dim)
    found = attend(made.q, made.k, made.v, made.layout, made.shape, backend)
    expected = plainly(made)
    error = np.abs(np.asarray(found, np.float64)[: len(expected)] - expected).max()
    assert error <= TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_places_change_no_bit(backend: Mask) -> None:
    """Padding and neighbours are exact no-ops, whatever they hold."""
    made = inputs("items over several tiles", "bfloat16", (4, 2), 16)
    base = np.asarray(attend(made.q, made.k, made.v, made.layout, made.shape, backend))
    last = slice(int(made.batch.row_starts[3]), int(made.batch.num_tokens))
    others = np.arange(made.shape.tokens)
    others = others[(others >= 100) & ((others < last.start) | (others >= last.stop))]
    q, k, v = (a.at[others].set(a[others] * -7 + 3) for a in (made.q, made.k, made.v))
    found = np.asarray(attend(q, k, v, made.layout, made.shape, backend))
    assert (found[last] == base[last]).all()
    assert (found[:100] == base[:100]).all()
    assert (found[others] != base[others]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_planted_fault_is_seen(backend: Mask) -> None:
    made = inputs("many items", "float32", (4, 2), 16)
    expected = plainly(made)
    for faulty in (
        made.layout._replace(prefix_end=made.layout.prefix_end + 1),
        made.layout._replace(
            row_starts=made.layout.row_starts.at[5].add(-1),
            granule_start=made.layout.granule_start.at[5].add(-1),
        ),
    ):
        found = attend(made.q, made.k, made.v, faulty, made.shape, backend)
        assert np.abs(np.asarray(found)[: len(expected)] - expected).max() > 1e-3
