"""Hugging Face configs of both forms are read, and every refusal names its field."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from itemwise.errors import UnsupportedModelError
from itemwise.models.config import ModelConfig, RopeScaling

SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def hf(family: str = "qwen3", **fields: Any) -> dict[str, Any]:
    return {**SIZES, "model_type": family, **fields}


def test_from_hf_reads_every_size() -> None:
    raw = hf(head_dim=32, tie_word_embeddings=True, dtype="float32", rope_theta=5e5)
    raw["rope_scaling"] = LLAMA3_ROPE
    assert ModelConfig.from_hf(raw) == ModelConfig(
        family="qwen3",
        num_layers=3,
        hidden_size=64,
        mlp_size=160,
        num_heads=8,
        num_kv_heads=2,
        head_dim=32,
        vocab_size=1000,
        max_position_embeddings=4096,
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
        norm_eps=1e-5,
        tied=True,
        qk_norm=True,
        dtype="float32",
    )


def test_from_hf_fills_in_what_older_configs_leave_out() -> None:
    raw = hf("llama")
    for name in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act"):
        del raw[name]
    config = ModelConfig.from_hf(raw)
    assert (config.num_kv_heads, config.head_dim) == (8, 8)
    assert (config.max_position_embeddings, config.norm_eps) == (4096, 1e-6)
    assert (config.tied, config.dtype, config.rope_theta) == (False, "bfloat16", 10000.0)


@pytest.mark.parametrize("absent", [{}, {"head_dim": None}])
def test_from_hf_derives_head_dim_where_it_is_absent(absent: dict[str, Any]) -> None:
    assert ModelConfig.from_hf(hf("qwen2", **absent)).head_dim == 8


# Which of qk_norm, qkv_bias, out_bias and mlp_bias each family has.
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (hf("qwen3"), (True, False, False, False)),
        (hf("qwen3", attention_bias=True), (True, True, True, False)),
        (hf("qwen2"), (False, True, False, False)),
        (hf("qwen2", attention_bias=True), (False, True, False, False)),
        (hf("llama"), (False, False, False, False)),
        (hf("llama", attention_bias=True), (False, True, True, False)),
        (hf("llama", mlp_bias=True), (False, False, False, True)),
    ],
)
def test_from_hf_tells_the_families_apart(
    raw: dict[str, Any], expected: tuple[bool, bool, bool, bool]
) -> None:
    config = ModelConfig.from_hf(raw)
    assert (config.qk_norm, config.qkv_bias, config.out_bias, config.mlp_bias) == expected


# The same rope as transformers 4 and transformers 5 write it.
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize(
    ("four", "five"),
    [
        (
            {"rope_theta": 1e6, "rope_scaling": None},
            {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": LLAMA3_ROPE},
            {"rope_parameters": {"rope_theta": 5e5, **LLAMA3_ROPE}},
        ),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}},
        ),
    ],
    ids=["default", "llama3", "linear"],
)
def test_from_hf_reads_rope_of_both_forms(
    family: str, four: dict[str, Any], five: dict[str, Any]
) -> None:
    config = ModelConfig.from_hf(hf(family, **four))
    assert config == ModelConfig.from_hf(hf(family, **five))
    rope = five["rope_parameters"]
    assert config.rope_theta == rope["rope_theta"]
    assert config.rope_scaling.kind == rope["rope_type"]
    assert config.rope_scaling.factor == rope.get("factor", 1.0)


def test_from_hf_reads_every_field_of_llama3_rope() -> None:
    rope = LLAMA3_ROPE | {"low_freq_factor": 2.0, "high_freq_factor": 5.0}
    assert ModelConfig.from_hf(hf("llama", rope_scaling=rope)).rope_scaling == RopeScaling(
        kind="llama3",
        factor=32.0,
        low_freq_factor=2.0,
        high_freq_factor=5.0,
        original_max_position_embeddings=8192,
    )


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_from_hf_reads_dtype_of_both_forms(key: str) -> None:
    assert ModelConfig.from_hf(hf(**{key: "float32"})).dtype == "float32"


def test_from_hf_agrees_with_what_transformers_writes() -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaConfig(
        **{k: v for k, v in SIZES.items() if k != "model_type"},
        rope_parameters={"rope_theta": 5e5, **LLAMA3_ROPE},
        head_dim=16,
        tie_word_embeddings=True,
    )
    raw = hf("llama", rope_theta=5e5, rope_scaling=LLAMA3_ROPE, head_dim=16)
    assert ModelConfig.from_hf(theirs.to_dict()) == ModelConfig.from_hf(
        raw | {"tie_word_embeddings": True}
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt2"}, "`model_type` is 'gpt2', expected one of qwen3, qwen2, llama"),
        ({"model_type": None}, "`model_type` is None"),
        *[
            ({name: None}, f"`{name}` is missing")
            for name in (
                "num_hidden_layers",
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "vocab_size",
            )
        ],
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "`layer_types` has sliding_attention, expected full_attention alone",
        ),
        ({"use_sliding_window": True}, "`use_sliding_window` is true"),
        ({"quantization_config": {"quant_method": "awq"}}, "`quantization_config` is set"),
        ({"num_experts": 8}, "`num_experts` is set"),
        ({"num_local_experts": 8}, "`num_experts` is set"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu', expected 'silu'"),
        ({"rope_scaling": {"type": "yarn"}}, "`rope_type` is 'yarn', expected default, linear or"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "`rope_type` is 'longrope'"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5, expected 1.0"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
            "`partial_rotary_factor` is 0.25",
        ),
        ({"num_key_value_heads": 3}, "`num_key_value_heads` is 3, expected a divisor of 8"),
    ],
)
def test_from_hf_names_the_field_it_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        ModelConfig.from_hf(hf() | fields)
    assert message in str(caught.value)
    assert caught.value.code == "unsupported_model"


def test_from_hf_reports_all_refusals_at_once() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        ModelConfig.from_hf(hf(hidden_act="gelu", use_sliding_window=True, vocab_size=None))
    assert all(f"`{n}`" in str(caught.value) for n in ("hidden_act", "use_sliding_window"))
    assert "`vocab_size` is missing" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_types": ["full_attention"] * 3},
        {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 28},
        {"quantization_config": None, "num_experts": None},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}},
    ],
)
def test_from_hf_takes_fields_that_switch_nothing_on(fields: dict[str, Any]) -> None:
    assert ModelConfig.from_hf(hf() | fields) == ModelConfig.from_hf(hf())


def test_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ModelConfig.from_hf(hf()).dtype = "float32"  # type: ignore[misc]
