"""Scores on the CPU levels that share their bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from itemwise.config import DEMO_MODEL
from itemwise.engine.engine import Engine
from itemwise.types import ScoreRequest
from tests.conftest import BFLOAT16_CPP_LEVELS, VOCAB_SIZE


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny-qwen3", DEMO_MODEL])
def test_levels_of_cpp_in_bfloat16_give_the_same_bits(
    model: str, make_engine: Callable[..., Engine]
) -> None:
    rng = np.random.default_rng(0)
    query, *items = (
        rng.integers(0, VOCAB_SIZE, size, np.int32) for size in (75, 1, 20, 40, 0, 7, 32, 33, 64)
    )
    request = ScoreRequest(query, items, ((3, 5, 8),) * len(items), apply_softmax=True)
    scores = {}
    for level in BFLOAT16_CPP_LEVELS:
        engine = make_engine(model, level)
        assert engine.info()["cpu_level"] == level
        scores[level] = engine.score([request])[0].scores
    plain = scores.pop("cpp-plain-bfloat16")
    for found in scores.values():
        assert np.asarray(found).tobytes() == np.asarray(plain).tobytes()
    other = make_engine(model, "xla-bfloat16").score([request])[0].scores
    assert np.asarray(other).tobytes() != np.asarray(plain).tobytes(), "the same by any arithmetic"
