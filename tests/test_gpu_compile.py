"""The serving programs go through XLA's compiler for an H100 that is not there."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CUDA = Path(sys.prefix) / "cuda"  # where `make test-all` puts JAX's GPU plugin, apart from others
LAYERS, PAGES = 2, "8192"  # so many that a copy of a layer's keys would show
MODELS = ("qwen3-0.6b", "qwen3-4b", "qwen2.5-1.5b", "llama-3.2-1b")
pytestmark = pytest.mark.skipif(
    not (CUDA / "jax_cuda12_plugin").exists(),
    reason="the GPU plugin is not installed; `make test-all` installs it on Linux x86-64",
)


@functools.cache
def compiled(model: str, form: str) -> dict[str, Any]:
    paths = [str(ROOT / "src"), str(CUDA), os.environ.get("PYTHONPATH", "")]
    tools = [str(CUDA / "nvidia" / "cuda_nvcc" / "bin"), os.environ.get("PATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join(tools),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.gpu_compile_one", model, form, str(LAYERS), PAGES],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_exact_step_compiles(model: str) -> None:
    found = compiled(model, "exact step")
    assert found["kernels"] == LAYERS  # one of ours a layer
    assert found["cublas_products"] == 7 * LAYERS
    assert found["loops"] == 0  # at each turn of which the device would wait for the host
    assert found["concatenated_weights"] == 0  # which would copy them in every step
    assert found["alias_bytes"] == found["pool_bytes"]  # pages are updated in place
    assert found["temp_bytes"] < 400e6


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_no_loop_over_the_vocabulary_waits_for_the_host(model: str) -> None:
    found = compiled(model, "log-sum-exp")
    assert found["loops_of_unknown_length"] == 0
    assert found["temp_bytes"] < 400e6


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_packed_sequence_compiles(model: str) -> None:
    found = compiled(model, "packed segment")
    assert found["kernels"] == LAYERS
    assert found["loops"] == 0
    assert not found["masks_pairs"]  # of 12,288 tokens
