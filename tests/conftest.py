"""Shared fixtures: tiny random checkpoints and engines that start in about two seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from itemwise import checkpoint
from itemwise import engine as engine_module
from itemwise.config import DEMO_MODEL, EngineConfig, ModelConfig
from itemwise.engine import Engine, step_shapes
from itemwise.models.decoder import describe_weights
from itemwise.types import StepShape

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # tests share a GPU
VOCAB_SIZE = 500
# A page of 32 tokens and two lanes: several pages, lanes and steps with few tokens.
SMALL: dict[str, Any] = {
    "page_tokens": 32,
    "step_lanes": 3,
    "kv_cache_bytes": 1 << 20,
    "compilation_cache_dir": "",
}


def tiled_step_shapes(*arguments: Any) -> list[StepShape]:
    """As `step_shapes`, with lanes that lie side by side as on TPU."""
    return [
        replace(shape, lanes=shape.tokens // shape.lane_tokens, lane_alignment=shape.lane_tokens)
        for shape in step_shapes(*arguments)
    ]


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Writes a random checkpoint of a named shape with a small vocabulary, once a session."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            config = checkpoint.model_dict(name, vocab_size=VOCAB_SIZE)
            made[name] = tmp_path_factory.mktemp("checkpoints") / name
            specs = describe_weights(ModelConfig.from_hf(config))
            dtype = np.dtype(ml_dtypes.bfloat16)
            checkpoint.write_random(made[name], config, specs, seed=0, dtype=dtype)
        return made[name]

    return make


@pytest.fixture(scope="session")
def make_engine(make_checkpoint: Callable[[str], Path]) -> Callable[..., Engine]:
    """An engine for a named shape, or for the demo model, with small steps.

    Keywords are fields of `EngineConfig`. With `native_bfloat16`, the processor counts as one that
    multiplies bfloat16, or as one that does not.
    """

    def make(
        name: str = "tiny-qwen3", native_bfloat16: bool | None = None, **settings: Any
    ) -> Engine:
        folder = checkpoint.locate(name) if name == DEMO_MODEL else make_checkpoint(name)
        with pytest.MonkeyPatch.context() as patch:
            if native_bfloat16 is not None:
                patch.setattr(engine_module, "multiplies_bfloat16", lambda _: native_bfloat16)
            return Engine(folder, EngineConfig(**{**SMALL, **settings}))

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-cases", type=int, default=300, help="requests of the HTTP fuzz")


@pytest.fixture(scope="session")
def fuzz_cases(request: pytest.FixtureRequest) -> int:
    """Requests that the HTTP fuzz sends."""
    count: int = request.config.getoption("--fuzz-cases")
    return count
