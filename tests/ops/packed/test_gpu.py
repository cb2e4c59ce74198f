"""The GPU kernel for packed sequences in Pallas's interpreter, against the dense form."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from itemwise.ops.packed import gpu as gpu_packed
from itemwise.ops.packed.dense import attend_dense
from itemwise.ops.packed.gpu import attend_packed_gpu
from itemwise.ops.packed.walk import Walk, last_readers, walk_of
from tests.ops.packed.test_packed import CASES, TOLERANCE, Inputs, inputs

reference = jax.jit(attend_dense)


def error(made: Inputs) -> float:
    attend = jax.jit(functools.partial(attend_packed_gpu, interpret=True))
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


@pytest.mark.parametrize(
    ("heads", "head_dim"), [((1, 1), 128), ((2, 1), 64), ((6, 1), 128), ((8, 2), 16)]
)
def test_heads_in_bfloat16(heads: tuple[int, int], head_dim: int) -> None:
    assert error(inputs("short", "bfloat16", heads, head_dim)) <= 2 * TOLERANCE["bfloat16"]


def test_planted_faults_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made = inputs("many items", "float32", (2, 2), 64)
    assert error(made) <= 2 * TOLERANCE["float32"]

    def short(*arguments: object) -> Walk:
        walk = walk_of(*arguments)  # type: ignore[arg-type]
        return walk._replace(num_tiles=walk.num_tiles - (walk.num_tiles > 1))

    monkeypatch.setattr(gpu_packed, "walk_of", short)
    assert error(made) > 1e-3
    monkeypatch.setattr(gpu_packed, "walk_of", walk_of)
    monkeypatch.setattr(gpu_packed, "last_readers", lambda *a: last_readers(*a) + 1)
    assert error(made) > 1e-3
