"""The serving programs go through the TPU compiler, for chips that are not there.

Each pair of topology, model and form is compiled in one of nine cases; `make tpu-matrix` compiles
all 27. Layers are alike and unrolled, so one of them stands for all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from itemwise.checkpoint.shapes import model_dict
from itemwise.config import EngineConfig
from itemwise.engine.platform import PLATFORMS, step_shapes
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.tpu.compile import FORMS
from itemwise.tpu.roofline import CHIPS, Workload, chip_of, packed_shape_of, work_of

ROOT = Path(__file__).parents[2]
LIBTPU = Path(sys.prefix) / "libtpu"  # where `make test-all` puts it, apart from other packages
TARGETS = (("v5e:2x2", 1), ("v6e:1x1", 1), ("v6e:2x2", 4))
MODELS = ("qwen3-0.6b", "qwen3-4b", "qwen2.5-1.5b")
# Compile, but the temporaries do not fit beside the pages that the default budget gives.
TOO_LARGE = {(model, "v5e:2x2", "packed dense") for model in ("qwen3-4b", "qwen2.5-1.5b")}
CASES = [
    (model, *target, form)
    for i, target in enumerate(TARGETS)
    for j, model in enumerate(MODELS)
    for k, form in enumerate(FORMS)
    if (i + j + k) % 3 == 0 or "ITEMWISE_TPU_MATRIX" in os.environ
]
needs_libtpu = pytest.mark.skipif(
    not (LIBTPU / "libtpu").exists() and importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed; `make test-all` installs it on Linux x86-64",
)


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT / "src"), str(LIBTPU), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("model", "topology", "tp_size", "form"), CASES)
def test_program_compiles_and_fits(model: str, topology: str, tp_size: int, form: str) -> None:
    done = run_python(
        "-m", "tests.programs.tpu_compile_one", model, topology, str(tp_size), form, "1"
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    (program,) = report["programs"]
    assert program["error"] is None
    assert report["fits"] == ((model, topology, form) not in TOO_LARGE)
    assert report["num_pages"] * 128 > 2020  # the workload's sequence has room
    assert program["kernels"] == (0 if form == "packed dense" else 1)
    assert program["masks_pairs"] == (form == "packed dense")


@needs_libtpu
@pytest.mark.slow
def test_what_cannot_be_had_is_one_line_and_status_2() -> None:
    for arguments, text in (
        (["qwen3-0.6b", "--topology", "v9:1x1"], "`topology` is 'v9:1x1'"),
        (["qwen3-0.6b", "--topology", "v6e:1x1", "--tp-size", "2"], "`tp_size` is 2"),
    ):
        done = run_python("-m", "itemwise", "tpu-compile", *arguments)
        assert done.returncode == 2
        assert text in done.stderr.splitlines()[-1]


def work(form: str, name: str = "qwen3-0.6b", tp: int = 1) -> Any:
    model = ModelConfig.from_hf(model_dict(name))
    (shape,) = step_shapes(EngineConfig(), PLATFORMS["tpu"], model.max_position_embeddings)
    return work_of(form, model, shape, Workload(), CHIPS["v6e"], tp)


def test_segment_computes_less_than_half_of_dense() -> None:
    dense, segment, exact = (work(form) for form in FORMS)
    assert dense.flops > 2 * segment.flops
    assert segment.flops > exact.flops
    assert dense.items_per_s < segment.items_per_s


def test_work_is_what_the_shapes_say() -> None:
    dense = work("packed dense")
    layer = 1024 * (16 + 2 * 8) * 128 + 16 * 128 * 1024 + 3 * 1024 * 3072 + 2 * 1024 + 2 * 128
    assert dense.attention_flops == 4 * 12288**2 * 16 * 128 * 28
    assert dense.flops == dense.attention_flops + 2 * 12288 * 28 * layer
    assert work("packed dense", tp=4).flops == dense.flops / 4
    assert work("exact step").runs == 6  # 16 pages and 10000 / 128 lanes, 16 lanes a step


def test_chips_and_shapes() -> None:
    with pytest.raises(ConfigError, match="`topology` is 'v9:1'"):
        chip_of("v9:1")
    model = ModelConfig.from_hf(model_dict("qwen3-0.6b"))
    (shape,) = step_shapes(EngineConfig(), PLATFORMS["tpu"], model.max_position_embeddings)
    assert packed_shape_of(Workload(), shape).tokens == 12288
    assert replace(Workload(), num_items=1).tokens == 2020
