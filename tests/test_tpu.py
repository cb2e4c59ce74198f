"""The serving programs with TPU kernels: on a TPU, or in Pallas's TPU interpreter.

On a TPU VM: `make test ARGS="-m tpu"` runs those marked `tpu` on the chip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from itemwise.config import EngineConfig
from itemwise.engine import start
from itemwise.engine.engine import Engine
from itemwise.engine.platform import Platform
from itemwise.types import Kernel, TokenLists
from tests.conftest import tiled_step_shapes
from tests.engine.test_packed_batcher import difference, packed, request_of, scores

ON_TPU = jax.devices()[0].platform == "tpu"
REQUEST = request_of(0, 40, (5, 3, 20, 1), apply_softmax=True)


def choose_kernel(platform: Platform, config: EngineConfig, *_: Any) -> Kernel | None:
    return None if config.attention_backend == "native" else "tpu"


@pytest.fixture(scope="module")
def engine_of(make_engine: Callable[..., Engine]) -> Iterator[Callable[..., Engine]]:
    """Engines by attention backend; kernels run in the interpreter where there is no TPU."""
    interpreted = pltpu.InterpretParams()  # the kernels' own suites look for races
    with pytest.MonkeyPatch.context() as patch, pltpu.force_tpu_interpret_mode(interpreted):
        patch.setattr(start, "choose_kernel", choose_kernel)
        patch.setattr(start, "step_shapes", tiled_step_shapes)

        @functools.cache
        def make(backend: str) -> Engine:
            settings = {"dtype": "float32", "step_lanes": 2, "skip_self_check": True}
            level = "xla-float32"
            return make_engine("tiny-qwen2", level, attention_backend=backend, **settings)

        yield make


@pytest.mark.slow
@pytest.mark.skipif(ON_TPU, reason="interprets what test_segment_mode_runs_on_tpu runs")
def test_segment_mode_runs_in_the_tpu_interpreter(engine_of: Callable[..., Engine]) -> None:
    engine, plain = engine_of("fa"), engine_of("native")
    assert engine.info()["attention"] == "tpu kernel"
    assert plain.info()["attention"] == "xla"
    for way in (scores, functools.partial(packed, mask="segment")):
        assert difference(way(engine, REQUEST), way(plain, REQUEST)) <= 1e-5


@pytest.mark.slow
@pytest.mark.skipif(ON_TPU, reason="interprets the kernels")
def test_bits_with_kernels_are_equal_in_any_company(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of("fa")
    base = scores(engine, REQUEST)
    order = (3, 1, 0)
    other = replace(
        REQUEST, items=TokenLists.of([REQUEST.items[i] for i in order]), labels=REQUEST.labels[:3]
    )
    engine.forget_prefixes()
    found = scores(engine, other)
    assert [row.tobytes() for row in found] == [base[i].tobytes() for i in order]


@pytest.mark.tpu
def test_segment_mode_runs_on_tpu(make_engine: Callable[..., Engine]) -> None:
    """The runbook's regression test of the same name: compiles, runs, and agrees with `dense`."""
    engine = make_engine(dtype="float32")  # its self-check compares bits in different company
    assert engine.self_check.status == "passed"
    assert engine.info()["attention"] == "tpu kernel"
    segment, dense = (packed(engine, REQUEST, mask) for mask in ("segment", "dense"))
    assert difference(segment, dense) <= 1e-4
    assert difference(segment, scores(engine, REQUEST)) <= 1e-4
    assert len({row.tobytes() for row in np.stack(segment)}) == len(REQUEST.items)
