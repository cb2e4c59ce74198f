"""Tensor parallelism: the same scores on several devices, here several CPU devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from itemwise.checkpoint.shapes import model_dict
from itemwise.checkpoint.write import write_random
from itemwise.config import EngineConfig
from itemwise.engine.engine import Engine
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.models.sharding import make_mesh, partition, stored_shape

# float32: sums over devices add in another order.
MAX_DIFFERENCE = 1e-5


def score_on_devices(folder: Path, sizes: str) -> dict[str, Any]:
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    environment["JAX_PLATFORMS"] = "cpu"
    command = [
        sys.executable,
        "-m",
        "tests.programs.tensor_parallel",
        str(folder),
        "float32",
        sizes,
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["devices"] == 4
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("model", "sizes"), [("tiny-llama", (1, 2, 4)), ("tiny-qwen2", (1, 2))])
def test_scores_do_not_depend_on_the_number_of_devices(
    model: str, sizes: tuple[int, ...], make_checkpoint: Callable[[str], Path]
) -> None:
    found = score_on_devices(make_checkpoint(model), ",".join(map(str, sizes)))
    base = np.array(found["step 1"])
    for tp in sizes:
        assert found[f"self-check {tp}"] == "passed"
        assert found[f"alone {tp}"] == found[f"step {tp}"][2:3], "bits in other company"
        for way in ("step", "dense", "segment"):
            assert np.abs(np.array(found[f"{way} {tp}"]) - base).max() <= MAX_DIFFERENCE
        assert found[f"bytes {tp}"] == pytest.approx(1)
    assert found["shards 2"] < 0.6


@pytest.mark.slow
def test_key_value_heads_are_copied_where_devices_are_more(tmp_path: Path) -> None:
    """Qwen2.5's two key/value heads on four devices."""
    config = model_dict("tiny-qwen2", vocab_size=500)
    config |= {"num_attention_heads": 12, "num_key_value_heads": 2}
    specs = describe_weights(ModelConfig.from_hf(config))
    write_random(tmp_path / "model", config, specs, seed=0, dtype="bfloat16")
    found = score_on_devices(tmp_path / "model", "1,4")
    assert found["alone 4"] == found["step 4"][2:3]
    for way in ("step", "dense", "segment"):
        difference = np.abs(np.array(found[f"{way} 4"]) - np.array(found["step 1"])).max()
        assert difference <= MAX_DIFFERENCE


def test_what_cannot_be_cut_is_refused() -> None:
    model = ModelConfig.from_hf(model_dict("qwen2.5-1.5b"))
    devices = [jax.devices()[0]] * 5
    with pytest.raises(ConfigError, match="`tp_size` is 5") as caught:
        make_mesh(model, devices)
    for name in ("num_attention_heads", "vocab_size", "num_key_value_heads"):
        assert name in str(caught.value)
    assert "intermediate_size" not in str(caught.value)
    assert make_mesh(model, devices[:1]) is None


def test_more_devices_than_there_are_is_refused(make_checkpoint: Callable[[str], Path]) -> None:
    config = EngineConfig(tp_size=1000, compilation_cache_dir="")
    with pytest.raises(ConfigError, match="`tp_size` is 1000, expected at most"):
        Engine(make_checkpoint("tiny-qwen3"), config)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_every_large_weight_is_cut(tp: int) -> None:
    model = ModelConfig.from_hf(model_dict("qwen2.5-1.5b"))
    for spec in jax.tree.leaves(describe_weights(model)):
        if len(spec.shape) == 2:
            assert "tp" in partition(spec), spec.name
        copies = 2 if tp == 4 and "kv_heads" in spec.axes else 1
        sizes = zip(stored_shape(spec, model, tp), spec.shape, spec.axes, strict=True)
        assert all(s == n * (copies if axis == "kv_heads" else 1) for s, n, axis in sizes)
