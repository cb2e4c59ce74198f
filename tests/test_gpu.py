"""The serving programs with GPU kernels: on an NVIDIA GPU, or in Pallas's interpreter.

On a GPU: `make test ARGS="-m gpu"` runs those marked `gpu` on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import pytest

from itemwise.config import EngineConfig
from itemwise.engine import start
from itemwise.engine.engine import Engine
from itemwise.engine.platform import Platform
from itemwise.ops.packed import gpu as gpu_packed
from itemwise.ops.step import gpu as gpu_step
from itemwise.types import Kernel, TokenLists
from tests.engine.test_packed_batcher import difference, packed, request_of, scores

ON_GPU = jax.devices()[0].platform == "gpu"
interpreted = pytest.mark.skipif(ON_GPU, reason="interprets the kernels")
REQUEST = request_of(0, 200, (5, 3, 140, 20, 1), apply_softmax=True)


def choose_kernel(platform: Platform, config: EngineConfig, *_: Any) -> Kernel | None:
    return None if config.attention_backend == "native" else "gpu"


@pytest.fixture(scope="module")
def engine_of(make_engine: Callable[..., Engine]) -> Iterator[Callable[..., Engine]]:
    """Engines by attention backend, kernels in the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "choose_kernel", choose_kernel)
        for module, name in ((gpu_step, "attend_gpu"), (gpu_packed, "attend_packed_gpu")):
            patch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))

        @functools.cache
        def make(backend: str, dtype: str = "float32") -> Engine:
            settings = {"dtype": dtype, "step_lanes": 3, "skip_self_check": True}
            level = f"xla-{dtype}"
            return make_engine("tiny-qwen2", level, attention_backend=backend, **settings)

        yield make


@interpreted
@pytest.mark.slow
def test_scores_with_kernels_agree_with_xla(engine_of: Callable[..., Engine]) -> None:
    engine, plain = engine_of("fa"), engine_of("native")
    assert engine.info()["attention"] == "gpu kernel"
    assert plain.info()["attention"] == "xla"
    for way in (scores, functools.partial(packed, mask="segment")):
        assert difference(way(engine, REQUEST), way(plain, REQUEST)) <= 1e-5


@interpreted
@pytest.mark.slow
def test_bits_with_kernels_are_equal_in_any_company(engine_of: Callable[..., Engine]) -> None:
    engine = engine_of("fa", "bfloat16")
    base = scores(engine, REQUEST)
    order = (3, 2, 0)
    other = replace(
        REQUEST, items=TokenLists.of([REQUEST.items[i] for i in order]), labels=REQUEST.labels[:3]
    )
    assert [row.tobytes() for row in scores(engine, other)] == [base[i].tobytes() for i in order]
    engine.forget_prefixes()
    assert [row.tobytes() for row in scores(engine, other)] == [base[i].tobytes() for i in order]


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_kernels_run_on_gpu(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(dtype="bfloat16")  # its self-check compares bits in different company
    assert engine.self_check.status == "passed"
    assert engine.info()["attention"] == "gpu kernel"
    segment, dense = (packed(engine, REQUEST, mask) for mask in ("segment", "dense"))
    assert difference(segment, dense) <= 2e-2
    assert difference(segment, scores(engine, REQUEST)) <= 2e-2
