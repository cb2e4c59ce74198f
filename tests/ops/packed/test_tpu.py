"""The TPU kernel for packed sequences in Pallas's TPU interpreter, against the dense form.

The interpreter fills memory that nobody wrote with NaN, refuses reads out of bounds, and prints
each data race it finds.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from itemwise.engine.packed_sequence import pack, packed_shape
from itemwise.ops.packed import tpu as tpu_packed
from itemwise.ops.packed.base import PackedLayout
from itemwise.ops.packed.dense import attend_dense
from itemwise.ops.packed.tiles import PackedTiles
from itemwise.ops.packed.tpu import attend_packed_tpu
from itemwise.ops.packed.walk import Walk, last_readers, walk_of
from tests.ops.packed.test_packed import CASES, TOLERANCE, Inputs, inputs

INTERPRET = pltpu.InterpretParams(detect_races=True)
attend = jax.jit(functools.partial(attend_packed_tpu, interpret=INTERPRET))
reference = jax.jit(attend_dense)
SMALL_TILES = PackedTiles(64, 128)


@pytest.fixture(autouse=True)
def no_race(capfd: pytest.CaptureFixture[str]) -> object:
    yield
    captured = capfd.readouterr()
    assert "RACE" not in captured.out + captured.err


def error(made: Inputs) -> float:
    found, expected = (
        np.asarray(way(made.q, made.k, made.v, made.layout), np.float64)
        for way in (attend, reference)
    )
    assert np.isfinite(found).all()
    used = int(made.batch.num_tokens)
    return float(np.abs(found[:used] - expected[:used]).max())


@pytest.mark.parametrize("case", CASES)
def test_the_rule(case: str) -> None:
    assert error(inputs(case, "float32", (4, 2), 64)) <= 2 * TOLERANCE["float32"]


@pytest.mark.parametrize("case", ["prefix ends one after a tile", "items over several tiles"])
def test_the_rule_over_many_tiles(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_packed, "packed_tiles", lambda group, tokens: SMALL_TILES)
    made = inputs(case, "float32", (2, 2), 64)
    attend_small = functools.partial(attend_packed_tpu, interpret=INTERPRET)
    monkeypatch.setitem(globals(), "attend", attend_small)
    assert error(made) <= 2 * TOLERANCE["float32"]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("heads", "head_dim"), [((1, 1), 128), ((2, 1), 64), ((6, 1), 128), ((8, 1), 128)]
)
def test_heads_and_types(dtype: str, heads: tuple[int, int], head_dim: int) -> None:
    assert error(inputs("short", dtype, heads, head_dim)) <= 2 * TOLERANCE[dtype]


def test_other_places_change_no_bit() -> None:
    made = inputs("items over several tiles", "bfloat16", (4, 2), 64)
    base = np.asarray(attend(made.q, made.k, made.v, made.layout))
    start, end = int(made.batch.row_starts[2]), int(made.batch.row_starts[3])
    others = np.arange(made.shape.tokens)
    others = others[(others >= 100) & ((others < start) | (others >= end))]
    q, k, v = (a.at[others].set(a[others] * -7 + 3) for a in (made.q, made.k, made.v))
    found = np.asarray(attend(q, k, v, made.layout))
    assert (found[start:end] == base[start:end]).all()
    assert (found[others] != base[others]).any()


def test_tiles_that_no_reader_sees_are_not_walked() -> None:
    """Of the contract workload: a prefix of 2000 and 500 items of 20."""
    shape = packed_shape(12000, 500, 128, 32)
    batch = pack((0,) * 2000, [(0,) * 20] * 500, shape)
    tiles = PackedTiles(512, 512)
    layout = PackedLayout(*(jnp.asarray(getattr(batch, n)) for n in PackedLayout._fields))
    num_tiles = np.asarray(walk_of(layout, shape.tokens, tiles).num_tiles)
    assert list(num_tiles[:4]) == [1, 2, 3, 4]  # the prefix, causally
    assert num_tiles[4:].max() <= 4 + 2  # prefix, and at most two tiles of items
    assert num_tiles.sum() * 4 < (shape.tokens // 512) ** 2


def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = inputs("many items", "float32", (2, 2), 64)
    monkeypatch.setattr(tpu_packed, "packed_tiles", lambda group, tokens: SMALL_TILES)

    def short(*arguments: object) -> Walk:
        walk = walk_of(*arguments)  # type: ignore[arg-type]
        return walk._replace(num_tiles=walk.num_tiles - (walk.num_tiles > 1))

    attend_small = functools.partial(attend_packed_tpu, interpret=INTERPRET)
    monkeypatch.setitem(globals(), "attend", attend_small)
    assert error(made) <= 2 * TOLERANCE["float32"]
    monkeypatch.setattr(tpu_packed, "walk_of", short)
    assert error(made) > 1e-3
    monkeypatch.setattr(tpu_packed, "walk_of", walk_of)
    monkeypatch.setattr(tpu_packed, "last_readers", lambda *a: last_readers(*a) + 1)
    assert error(made) > 1e-3
