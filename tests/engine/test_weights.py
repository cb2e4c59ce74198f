"""Weights in panels and in eight bits."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from itemwise.engine.engine import Engine
from itemwise.engine.weights import quantize
from itemwise.errors import ConfigError
from itemwise.types import CpuLevelName, ScoreRequest
from tests.conftest import CPU_LEVELS, VOCAB_SIZE, slow_unless_default


def test_quantised_values_are_the_nearest() -> None:
    matrix = np.random.default_rng(0).standard_normal((50, 300)).astype(ml_dtypes.bfloat16)
    matrix[7] = 0
    values, scale = quantize(matrix)
    assert values.dtype == np.int8
    assert scale.dtype == np.float32
    error = np.abs(values * scale[:, None] - matrix.astype(np.float32))
    assert (error <= scale[:, None] * 0.5001).all()
    assert (np.abs(values).max(1) == np.where(np.arange(50) == 7, 0, 127)).all()


def request() -> ScoreRequest:
    rng = np.random.default_rng(0)
    items = tuple(tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in (20, 5, 0, 31, 12))
    return ScoreRequest(tuple(range(70)), items, ((1, 2),) * 5, apply_softmax=True)


@pytest.mark.parametrize("level", slow_unless_default(CPU_LEVELS))
def test_int8_is_near_and_exact_in_any_company(
    level: CpuLevelName, shared_engine: Callable[..., Engine]
) -> None:
    engine = shared_engine(level=level, quantization="int8")
    found = np.asarray(engine.score([request()])[0].scores)
    plain = shared_engine(level=level)
    expected = np.asarray(plain.score([request()])[0].scores)
    assert 0 < np.abs(found - expected).max() < 0.1
    assert engine.info()["weight_bytes"] < plain.info()["weight_bytes"]
    whole = request()
    for i, item in enumerate(whole.items):
        engine.forget_prefixes()
        alone = ScoreRequest(whole.query, (item,), whole.labels[:1], apply_softmax=True)
        assert np.asarray(engine.score([alone])[0].scores).tobytes() == found[i].tobytes()


def test_int8_on_several_devices_is_refused(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itemwise.engine.start.make_mesh", lambda *_: object())
    with pytest.raises(ConfigError, match="`quantization` is int8, expected none"):
        make_engine(quantization="int8")
