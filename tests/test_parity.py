"""Itemwise scores what transformers scores, on checkpoints that transformers itself wrote.

Norm gains and biases are random and far from their usual values, so that one left out shows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise.config import CpuLevelSetting, DType, EngineConfig
from itemwise.engine.cpu_level import BY_NAME
from itemwise.engine.engine import Engine
from itemwise.types import CpuLevelName, Float32Array, ScoreRequest
from itemwise.validation.reference import (
    PackedTorch,
    TorchLogits,
    load_torch,
    to_scores,
    torch_label_logits,
    torch_scores,
)
from tests.conftest import CPU_LEVELS, require, slow_unless_default

pytest.importorskip("torch")
pytest.importorskip("transformers")
# torch and transformers warn about themselves when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]

CaseFolder = Callable[[str], Path]
CaseEngine = Callable[..., Engine]
FLOAT32_LEVELS = tuple(name for name in CPU_LEVELS if BY_NAME[name].activations == "float32")

VOCAB_SIZE = 500
LABELS = (0, 1, 17, 99, 250, 333, 498, 499)
# float32: largest error of a log-probability, in standard deviations of the logits.
MAX_ERROR_FLOAT32 = 1e-4
# bfloat16: error of the probabilities against float32, in errors of transformers' own bfloat16.
MAX_ERROR_RATIO_BFLOAT16 = 1.5

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 30000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "factor": 3.0, "rope_theta": 7000.0}


def rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def heads(query: int, key_value: int, dim: int) -> dict[str, int]:
    return {"num_attention_heads": query, "num_key_value_heads": key_value, "head_dim": dim}


CASES: dict[str, dict[str, Any]] = {
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 48,
        "tie_word_embeddings": True,
        "rope_parameters": rope(1e6),
        **heads(12, 2, 64),
    },
    "qwen3-biases-untied-sharded": {
        "model_type": "qwen3",
        "hidden_size": 64,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "rope_parameters": LINEAR_ROPE,
        "max_shard_size": "100KB",
        **heads(4, 4, 128),
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 96,
        "tie_word_embeddings": True,
        "rope_parameters": rope(5432.1),
        **heads(12, 2, 64),
    },
    "qwen2-untied-heads-as-wide-as-model": {
        "model_type": "qwen2",
        "hidden_size": 96,
        "tie_word_embeddings": False,
        "rope_parameters": LLAMA3_ROPE,
        "rms_norm_eps": 1e-3,
        **heads(6, 1, 16),
    },
    "llama": {
        "model_type": "llama",
        "hidden_size": 64,
        "tie_word_embeddings": False,
        "rope_parameters": LLAMA3_ROPE,
        **heads(8, 2, 64),
    },
    "llama-biases-tied-sharded": {
        "model_type": "llama",
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": LINEAR_ROPE,
        "max_shard_size": "60KB",
        **heads(12, 2, 128),
    },
}
FAMILIES = ("qwen3", "qwen2", "llama")
FIRST_FAMILY = [
    pytest.param(case, marks=[] if case == FAMILIES[0] else [pytest.mark.slow]) for case in FAMILIES
]


@pytest.fixture(scope="module")
def case_folder(tmp_path_factory: pytest.TempPathFactory) -> CaseFolder:
    """A case's checkpoint, written by transformers once a module."""

    @functools.cache
    def make(case: str) -> Path:
        folder = tmp_path_factory.mktemp("parity") / case
        write_with_transformers(folder, **CASES[case])
        return folder

    return make


@pytest.fixture(scope="module")
def case_engine(case_folder: CaseFolder, cache_folder: str) -> CaseEngine:
    """An engine for a case, a type and a CPU level, compiled once a module."""

    @functools.cache
    def make(case: str, dtype: DType, level: CpuLevelSetting = "auto") -> Engine:
        if level != "auto":
            require(level)
        config = EngineConfig(
            dtype=dtype,
            cpu_level=level,
            page_tokens=32,
            step_lanes=2,
            kv_cache_bytes=4 << 20,
            skip_self_check=True,
            compilation_cache_dir=cache_folder,
        )
        return Engine(case_folder(case), config)

    return make


def write_with_transformers(
    folder: Path, model_type: str, max_shard_size: str = "1GB", **config: Any
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fixed = {
        "vocab_size": VOCAB_SIZE,
        "num_hidden_layers": 2,
        "intermediate_size": 112,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    random = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **(fixed | config)), dtype=torch.float32
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=random)
            if "norm" in name:
                drawn = 1.3 + 0.4 * drawn
            elif name.endswith("bias"):
                drawn = 0.5 * drawn
            elif "embed" in name or "lm_head" in name:
                drawn = 3 * drawn * weight.shape[1] ** -0.5
            else:
                drawn = drawn * weight.shape[1] ** -0.5
            # Rounded to bfloat16, so that both types start from the same weights.
            weight.copy_(drawn.bfloat16())
    model.save_pretrained(folder, max_shard_size=max_shard_size)


def draw(seed: int, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, VOCAB_SIZE, n).tolist()) for n in lengths]


def itemwise_scores(
    engine: Engine,
    query: tuple[int, ...],
    items: Sequence[tuple[int, ...]],
    apply_softmax: bool = False,
) -> Float32Array:
    request = ScoreRequest(query, tuple(items), (LABELS,) * len(items), apply_softmax=apply_softmax)
    return np.asarray(engine.score([request])[0].scores)


def error_in_spreads(scores: Float32Array, truth: TorchLogits) -> float:
    """Largest error of a log-probability, in standard deviations of the item's logits."""
    errors = np.abs(np.log(scores.astype(np.float64)) - truth.logprobs)
    return float((errors / truth.spread[:, None]).max())


@pytest.mark.parametrize("level", slow_unless_default(FLOAT32_LEVELS))
@pytest.mark.parametrize("case", CASES)
def test_float32_parity(
    case: str, level: CpuLevelName, case_folder: CaseFolder, case_engine: CaseEngine
) -> None:
    folder = case_folder(case)
    engine = case_engine(case, "float32", level)
    model = load_torch(folder, "float32")
    query, *items = draw(1, (75, 1, 20, 40, 0, 100, 7, 32, 33, 64))
    truth = torch_label_logits(model, query, items, LABELS)
    assert error_in_spreads(itemwise_scores(engine, query, items), truth) <= MAX_ERROR_FLOAT32
    over_labels = itemwise_scores(engine, query, items, apply_softmax=True)
    np.testing.assert_allclose(over_labels, to_scores(truth, apply_softmax=True), atol=1e-4)


def test_one_token_query(case_folder: CaseFolder, case_engine: CaseEngine) -> None:
    folder = case_folder("qwen3")
    engine = case_engine("qwen3", "float32")
    truth = torch_label_logits(load_torch(folder, "float32"), (5,), [(), (6,)], LABELS)
    assert error_in_spreads(itemwise_scores(engine, (5,), [(), (6,)]), truth) <= MAX_ERROR_FLOAT32


def test_sharded_checkpoints_are_sharded(case_folder: CaseFolder) -> None:
    for case in ("qwen3-biases-untied-sharded", "llama-biases-tied-sharded"):
        assert len(list(case_folder(case).glob("*.safetensors"))) > 2


@pytest.mark.parametrize("level", slow_unless_default(CPU_LEVELS))
@pytest.mark.parametrize("case", FIRST_FAMILY)
def test_bfloat16_is_as_close_to_the_truth_as_transformers(
    case: str, level: CpuLevelName, case_folder: CaseFolder, case_engine: CaseEngine
) -> None:
    folder = case_folder(case)
    query, *items = draw(2, (80, *np.random.default_rng(3).integers(1, 50, 60).tolist()))
    truth = torch_scores(load_torch(folder, "float32"), query, items, LABELS, apply_softmax=True)
    theirs = torch_scores(load_torch(folder, "bfloat16"), query, items, LABELS, apply_softmax=True)
    ours = itemwise_scores(case_engine(case, "bfloat16", level), query, items, apply_softmax=True)
    our_errors, their_errors = np.abs(ours - truth), np.abs(theirs - truth)
    assert our_errors.max() <= MAX_ERROR_RATIO_BFLOAT16 * their_errors.max()
    rms = [np.sqrt(np.mean(errors**2)) for errors in (our_errors, their_errors)]
    assert rms[0] <= MAX_ERROR_RATIO_BFLOAT16 * rms[1]


@pytest.mark.parametrize("case", FAMILIES)
def test_items_one_position_off_are_seen(
    case: str, case_folder: CaseFolder, case_engine: CaseEngine
) -> None:
    folder = case_folder(case)
    query, *items = draw(4, (70, 1, 20, 40))
    model = load_torch(folder, "float32")
    scores = itemwise_scores(case_engine(case, "float32"), query, items)
    right = torch_label_logits(model, query, items, LABELS)
    shifted = torch_label_logits(model, query, items, LABELS, item_shift=1)
    assert error_in_spreads(scores, right) <= MAX_ERROR_FLOAT32
    assert error_in_spreads(scores, shifted) > 100 * MAX_ERROR_FLOAT32


def test_items_that_see_their_neighbours_are_seen(
    case_folder: CaseFolder, case_engine: CaseEngine
) -> None:
    folder = case_folder("qwen3")
    query, first, second = draw(5, (70, 20, 20))
    scores = itemwise_scores(case_engine("qwen3", "float32"), query, [first, second])
    model = load_torch(folder, "float32")
    leaky = torch_label_logits(model, query, [first, first + second], LABELS)
    assert error_in_spreads(scores, leaky) > 100 * MAX_ERROR_FLOAT32


@pytest.mark.parametrize("apply_softmax", [True, False])
def test_packed_torch_equals_one_forward_per_item(
    apply_softmax: bool, case_folder: CaseFolder
) -> None:
    model = load_torch(case_folder("qwen3"), "float32")
    query, *items = draw(6, (50, 1, 20, 0, 7, 33))
    packed = PackedTorch(model, query, chunk_size=3)
    truth = torch_scores(model, query, items, LABELS, apply_softmax=apply_softmax)
    for _ in range(2):
        found = packed.scores(items, LABELS, apply_softmax=apply_softmax)
        np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-6)
