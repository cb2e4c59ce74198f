"""Checkpoints of well-known shapes: for demos, benchmarks and tests without a download."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from itemwise.checkpoint.write import write_random
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.progress import ProgressFn, silent


def _shape(
    family: str, layers: int, sizes: tuple[int, int], heads: tuple[int, int, int], **more: Any
) -> dict[str, Any]:
    """A `config.json`; `sizes` are D and F, `heads` are N, K and H."""
    names = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
    return {
        "architectures": [names[family]],
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": sizes[0],
        "intermediate_size": sizes[1],
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "hidden_act": "silu",
        "vocab_size": 151936,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "max_position_embeddings": 40960 if family == "qwen3" else 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **more,
    }


def _llama(
    layers: int,
    sizes: tuple[int, int],
    heads: tuple[int, int, int],
    rope_factor: float,
    original_tokens: int,
    **more: Any,
) -> dict[str, Any]:
    """A `config.json` of Llama 3, whose rope was trained for `original_tokens` and then scaled."""
    rope_scaling = {
        "rope_type": "llama3",
        "factor": rope_factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": original_tokens,
    }
    fixed = {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": rope_scaling}
    return _shape("llama", layers, sizes, heads, **fixed, **more)


_UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
_SHORT: dict[str, Any] = {"max_position_embeddings": 4096}

# Contents of `config.json` by name. The tiny ones have real vocabularies, so that the token ids of
# real requests fit, and heads wider than D / N, which real models have too.
NAMED_SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _shape("qwen3", 28, (1024, 3072), (16, 8, 128)),
    "qwen3-1.7b": _shape("qwen3", 28, (2048, 6144), (16, 8, 128)),
    "qwen3-4b": _shape("qwen3", 36, (2560, 9728), (32, 8, 128)),
    "qwen3-8b": _shape("qwen3", 36, (4096, 12288), (32, 8, 128), **_UNTIED),
    "qwen2.5-0.5b": _shape("qwen2", 24, (896, 4864), (14, 2, 64)),
    "qwen2.5-1.5b": _shape("qwen2", 28, (1536, 8960), (12, 2, 128)),
    "qwen2.5-3b": _shape("qwen2", 36, (2048, 11008), (16, 2, 128)),
    "llama-3.2-1b": _llama(
        16, (2048, 8192), (32, 8, 64), 32.0, 8192, vocab_size=128256, max_position_embeddings=131072
    ),
    "tiny-qwen3": _shape("qwen3", 3, (48, 128), (4, 2, 32), **_SHORT),
    "tiny-qwen2": _shape("qwen2", 2, (48, 160), (6, 2, 16), **_SHORT),
    "tiny-llama": _llama(2, (48, 96), (8, 4, 16), 4.0, 1024, **_SHORT, **_UNTIED),
}


def model_dict(
    name: str, *, vocab_size: int | None = None, dtype: str = "bfloat16"
) -> dict[str, Any]:
    """The contents of `config.json` for a name of `NAMED_SHAPES`.

    Raises:
        ConfigError: there is no such name, or `vocab_size` is below 1.
    """
    if name not in NAMED_SHAPES:
        raise ConfigError(
            f"`{name}` is not a known shape, expected one of {', '.join(NAMED_SHAPES)}"
        )
    if vocab_size is not None and vocab_size < 1:
        raise ConfigError(f"`vocab_size` is {vocab_size}, expected 1 or more")
    config = {**deepcopy(NAMED_SHAPES[name]), "torch_dtype": dtype}
    return config if vocab_size is None else {**config, "vocab_size": vocab_size}


def write_named(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    dtype: str = "bfloat16",
    vocab_size: int | None = None,
    shards: int | None = None,
    on_progress: ProgressFn = silent,
) -> None:
    """Writes a checkpoint of the shape `name` (see `NAMED_SHAPES`) into a new folder.

    Args:
        name: such as `qwen3-0.6b`.
        folder: new or empty.
        seed: of the random weights.
        dtype: bfloat16, float16 or float32.
        vocab_size: replaces the shape's own.
        shards: number of weight files; None for files of at most 2 GiB.
        on_progress: called after each tensor with the number drawn and the total.

    Raises:
        ConfigError: `name`, `dtype` or `shards` is not possible.
        CheckpointError: the folder is not empty, or cannot be written.
    """
    config = model_dict(name, vocab_size=vocab_size, dtype=dtype)
    specs = describe_weights(ModelConfig.from_hf(config))
    write_random(
        folder, config, specs, seed=seed, dtype=dtype, shards=shards, on_progress=on_progress
    )
