"""What each platform does differently, and that nothing else asks which platform it is."""

from __future__ import annotations

import ast
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import itemwise
from itemwise import machine
from itemwise.checkpoint.shapes import model_dict
from itemwise.config import EngineConfig
from itemwise.engine.platform import (
    PLATFORMS,
    choose_kernel,
    choose_platform,
    platform_of,
    step_shapes,
)
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.types import DTypes

SOURCE = Path(itemwise.__file__).parent
MODEL = ModelConfig.from_hf(model_dict("qwen3-0.6b"))
HALF, SINGLE = (DTypes(np.dtype(t), np.dtype(t)) for t in (ml_dtypes.bfloat16, np.float32))


@pytest.mark.parametrize(
    ("name", "head_dim", "dtypes", "page_tokens", "expected"),
    [
        ("gpu", 128, HALF, 128, "gpu"),
        ("gpu", 64, HALF, 32, "gpu"),
        ("gpu", 128, SINGLE, 128, None),
        ("gpu", 80, HALF, 128, None),
        ("gpu", 8, HALF, 128, None),
        ("gpu", 128, HALF, 96, None),
        ("gpu", 128, HALF, 256, None),
        ("tpu", 128, HALF, 128, "tpu"),
        ("tpu", 128, SINGLE, 128, "tpu"),
        ("tpu", 256, HALF, 128, "tpu"),
        ("tpu", 64, HALF, 128, None),
        ("tpu", 96, HALF, 128, None),
    ],
)
def test_a_kernel_is_chosen_only_if_it_serves_the_model(
    name: Any, head_dim: int, dtypes: DTypes, page_tokens: int, expected: str | None
) -> None:
    model = replace(MODEL, head_dim=head_dim)
    assert PLATFORMS[name].kernel_for(model, dtypes, page_tokens) == expected


@pytest.mark.parametrize(("backend", "warns"), [("fa", True), ("auto", False), ("native", False)])
def test_asking_for_an_absent_kernel_is_logged(
    backend: Any, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config, model = EngineConfig(attention_backend=backend), replace(MODEL, head_dim=64)
    with caplog.at_level(logging.WARNING, "itemwise.engine"):
        assert choose_kernel(PLATFORMS["tpu"], config, model, HALF) is None
    assert ("`attention_backend` is fa, but no kernel" in caplog.text) is warns
    assert choose_kernel(PLATFORMS["tpu"], config, MODEL, HALF) == (
        None if backend == "native" else "tpu"
    )


def test_a_processor_gets_its_level_and_others_none() -> None:
    config = EngineConfig(cpu_level="xla-float32")
    here = choose_platform(jax.devices("cpu")[0], config, HALF.weights)
    assert here.level is not None
    assert here.level.name == "xla-float32"
    assert here.dtypes(HALF.weights) == DTypes(HALF.weights, SINGLE.weights)
    assert here.kernel_for(MODEL, SINGLE, 128) is None
    for name in ("gpu", "tpu"):
        device: Any = SimpleNamespace(platform=name)
        other = choose_platform(device, EngineConfig(), HALF.weights)
        assert other == PLATFORMS[name]
        assert other.dtypes(HALF.weights) == HALF


def test_an_unknown_platform_is_refused() -> None:
    device: Any = SimpleNamespace(platform="npu")
    with pytest.raises(ConfigError, match="is a 'npu', expected one of cpu, gpu, tpu"):
        platform_of(device)


def test_memory_is_the_devices_own_or_the_hosts() -> None:
    device: Any = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 7})
    assert PLATFORMS["gpu"].memory_of(device) == (7, 7)
    total, available = PLATFORMS["cpu"].memory_of(device)
    assert total == machine.memory_limit_bytes() > available


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cpu", [(64, 8, 32, 1), (256, 32, 32, 1), (512, 64, 128, 1)]),
        ("gpu", [(256, 8, 128, 1), (1024, 32, 128, 1), (4096, 128, 128, 1)]),
        ("tpu", [(2048, 16, 128, 128)]),
    ],
)
def test_steps_of_a_platform(name: Any, steps: list[tuple[int, ...]]) -> None:
    shapes = step_shapes(EngineConfig(), PLATFORMS[name], 4096)
    assert [(s.tokens, s.lanes, s.lane_tokens, s.lane_alignment) for s in shapes] == steps


def test_on_a_gpu_products_of_scored_rows_have_one_shape() -> None:
    shapes = step_shapes(EngineConfig(), PLATFORMS["gpu"], 4096)
    assert {shape.max_scored_rows for shape in shapes} == {1024}
    assert [shape.max_granules for shape in shapes] == [272, 1088, 1280]


OWN_RECORD = {f"{owner}.platform" for owner in ("self._parts", "self._spec", "parts", "spec")}


def questions(text: str) -> list[str]:
    """Where a source asks JAX for the platform, or compares its name with one."""
    found = []
    for node in ast.walk(ast.parse(text)):
        code = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Compare) else ""
        if isinstance(node, ast.Attribute) and node.attr in ("platform", "default_backend"):
            found += [code] if code not in {"sys.platform", *OWN_RECORD} else []
        elif code and "platform" in code:
            constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            found += [code] if constants & {*PLATFORMS} else []
    return found


def test_no_other_module_asks_for_the_platform() -> None:
    asking = {str(p.relative_to(SOURCE)): questions(p.read_text()) for p in SOURCE.rglob("*.py")}
    assert asking.pop("engine/platform.py")
    assert {path: found for path, found in asking.items() if found} == {}


@pytest.mark.parametrize(
    "fault",
    [
        "if jax.devices()[0].platform != 'cpu': pass",
        "lanes = LANES[self.device.platform]",
        "fast = platform.name == 'gpu'",
        "jax.default_backend()",
    ],
)
def test_a_question_is_found(fault: str) -> None:
    assert questions(fault)
