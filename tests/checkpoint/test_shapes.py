"""Known shapes: of the size of the real models, and loadable by transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from itemwise.checkpoint.read import read_weights, spec_leaves
from itemwise.checkpoint.shapes import NAMED_SHAPES, model_dict
from itemwise.checkpoint.write import write_random
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights

TINY = sorted(name for name in NAMED_SHAPES if name.startswith("tiny-"))


def test_model_dict_lists_the_names_it_knows() -> None:
    with pytest.raises(ConfigError, match="`gpt-5` is not a known shape.*qwen3-0.6b.*tiny-llama"):
        model_dict("gpt-5")
    with pytest.raises(ConfigError, match="`vocab_size` is 0, expected 1 or more"):
        model_dict("tiny-qwen3", vocab_size=0)


def test_model_dict_returns_a_copy() -> None:
    model_dict("tiny-llama", vocab_size=7, dtype="float32")["rope_scaling"]["factor"] = 99.0
    assert NAMED_SHAPES["tiny-llama"]["rope_scaling"]["factor"] == 4.0
    assert NAMED_SHAPES["tiny-llama"]["vocab_size"] == 151936
    changed = ModelConfig.from_hf(model_dict("tiny-llama", vocab_size=7, dtype="float32"))
    assert (changed.vocab_size, changed.dtype) == (7, "float32")


# Parameters as model cards give them, in billions, the tied output matrix counted once.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3-0.6b", 0.596),
        ("qwen3-1.7b", 1.721),
        ("qwen3-4b", 4.022),
        ("qwen3-8b", 8.191),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.544),
        ("qwen2.5-3b", 3.086),
        ("llama-3.2-1b", 1.236),
    ],
)
def test_named_shapes_have_the_size_of_the_real_model(name: str, billions: float) -> None:
    specs = describe_weights(ModelConfig.from_hf(model_dict(name)))
    count = sum(int(np.prod(leaf.shape)) for leaf in spec_leaves(specs))
    assert round(count / 1e9, 3) == billions


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_small_and_fit_real_token_ids(name: str) -> None:
    config = ModelConfig.from_hf(model_dict(name))
    count = sum(int(np.prod(leaf.shape)) for leaf in spec_leaves(describe_weights(config)))
    assert count * 2 < 40e6
    assert config.vocab_size == 151936
    assert config.num_heads > config.num_kv_heads > 1
    assert config.num_heads * config.head_dim > config.hidden_size


@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_a_random_checkpoint(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    raw = model_dict(name, vocab_size=64)
    config = ModelConfig.from_hf(raw)
    write_random(tmp_path, raw, describe_weights(config), seed=3, shards=2)
    transformers.utils.logging.disable_progress_bar()
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert type(model).__name__ == raw["architectures"][0]
    assert model.dtype == torch.bfloat16
    theirs = model.model.layers[0].self_attn.q_proj.weight.float().detach().numpy()
    ours = read_weights(tmp_path, describe_weights(config), np.float32, lambda array, _: array)
    np.testing.assert_array_equal(ours["layers"][0]["q"].matrix, theirs)
    assert model.config.rope_parameters["rope_type"] == config.rope_scaling.kind
    assert model.config.rope_parameters["rope_theta"] == config.rope_theta
