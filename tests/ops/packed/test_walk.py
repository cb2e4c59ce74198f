"""Which tiles the kernels for packed sequences walk."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from itemwise.engine.packed_sequence import pack, packed_shape
from itemwise.ops.packed import gpu, tpu
from itemwise.ops.packed.base import PackedArrays
from itemwise.ops.packed.tiles import PackedTiles
from itemwise.ops.packed.walk import Walk, last_readers, walk_of
from tests.ops.packed.test_packed import INTERPRET, TOLERANCE, error, make_sequence

SMALL_TILES = PackedTiles(64, 128)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu, "packed_tiles", lambda group, tokens: SMALL_TILES)


def anew(module: ModuleType) -> Any:
    """The kernel as it stands now: a program of its own."""
    if module is gpu:
        return functools.partial(gpu.attend_packed_gpu, interpret=True)
    return functools.partial(tpu.attend_packed_tpu, interpret=INTERPRET)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("case", ["prefix ends one after a tile", "items over several tiles"])
def test_the_rule_over_many_tiles(case: str) -> None:
    assert error(anew(tpu), make_sequence(case, (2, 2, 64))) <= TOLERANCE["float32"]


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "module", [gpu, pytest.param(tpu, marks=pytest.mark.slow)], ids=["gpu", "tpu"]
)
def test_planted_faults_are_seen(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_sequence("many items", (2, 2, 64))
    assert error(anew(module), made) <= TOLERANCE["float32"]

    def short(*arguments: Any) -> Walk:
        walk = walk_of(*arguments)
        return walk._replace(num_tiles=walk.num_tiles - (walk.num_tiles > 1).astype(jnp.int32))

    monkeypatch.setattr(module, "walk_of", short)
    assert error(anew(module), made) > 1e-3
    monkeypatch.setattr(module, "walk_of", walk_of)
    monkeypatch.setattr(module, "last_readers", lambda *a: last_readers(*a) + 1)
    assert error(anew(module), made) > 1e-3


def test_tiles_that_no_reader_sees_are_not_walked() -> None:
    """Of the contract workload: a prefix of 2000 and 500 items of 20."""
    shape = packed_shape(12000, 500, 128, 32)
    arrays = pack((0,) * 2000, [(0,) * 20] * 500, shape)
    tiles = PackedTiles(512, 512)
    walk = walk_of(PackedArrays(*map(jnp.asarray, arrays)), shape.tokens, tiles)
    num_tiles = np.asarray(walk.num_tiles)
    assert list(num_tiles[:4]) == [1, 2, 3, 4]  # the prefix, causally
    assert num_tiles[4:].max() <= 4 + 2  # prefix, and at most two tiles of items
    assert num_tiles.sum() * 4 < (shape.tokens // 512) ** 2
