"""Hugging Face configs of both forms are read, and every refusal names its field."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from itemwise.errors import UnsupportedModelError
from itemwise.models.config import ModelConfig, RopeScaling
from itemwise.models.config_fields import FAMILIES, unknown_arithmetic

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
    assert (config.max_position_embeddings, config.norm_eps) == (2048, 1e-6)
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "field",
    [
        "head_dim",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "hidden_act",
        "rope_parameters",
        "tie_word_embeddings",
        "sliding_window",
    ],
)
def test_from_hf_fills_in_what_transformers_fills_in(family: str, field: str) -> None:
    transformers = pytest.importorskip("transformers")
    raw = hf(family, num_attention_heads=32, tie_word_embeddings=True, head_dim=16)
    raw |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "sliding_window": 9}
    raw.pop(field, None)
    theirs = transformers.AutoConfig.for_model(**raw)
    ours = ModelConfig.from_hf(raw)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // 32
    window = theirs.sliding_window if family == "mistral" else None
    assert (ours.head_dim, ours.window_tokens) == (head_dim, window)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.tied == theirs.tie_word_embeddings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "gpt2"},
            "`model_type` is 'gpt2', expected one of qwen3, qwen2, llama, mistral",
        ),
        ({"model_type": "qwen3_moe"}, "mixture-of-experts models are not supported"),
        ({"model_type": ["qwen3"]}, "`model_type` is ['qwen3'], expected"),
        ({"is_causal": False}, "`is_causal` is False, expected true"),
        ({"is_causal": 0}, "`is_causal` is 0, expected true"),
        ({"architectures": ["Qwen3ForTokenClassification"]}, "is 'Qwen3ForTokenClassification'"),
        ({"architectures": "Qwen3ForCausalLM"}, "`architectures` is 'Qwen3ForCausalLM', expected"),
        ({"layer_types": "full_attention"}, "`layer_types` is 'full_attention', expected a list"),
        ({"layer_types": [{}]}, "`layer_types` is [{}], expected a list"),
        ({"hidden_act": None}, "`hidden_act` is None, expected 'silu'"),
        ({"rope_scaling": "linear"}, "`rope_scaling` is 'linear', expected an object"),
        ({"rope_parameters": {"full_attention": {}}}, "`rope_parameters` differs between layers"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "`factor` is 0, expected a num"),
        (
            {"rope_scaling": LLAMA3_ROPE | {"high_freq_factor": 1.0}},
            "`high_freq_factor` is 1.0, expected more than 1.0",
        ),
        ({"rope_theta": float("nan")}, "`rope_theta` is nan, expected a number above 0"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` is nan, expected a number from 0"),
        ({"rms_norm_eps": -1e-6}, "`rms_norm_eps` is -1e-06, expected"),
        ({"rms_norm_eps": "1e-6"}, "`rms_norm_eps` is '1e-6', expected"),
        ({"tie_word_embeddings": "no"}, "`tie_word_embeddings` is 'no', expected true or false"),
        ({"head_dim": 33}, "`head_dim` is 33, expected an even number"),
        ({"head_dim": 0}, "`head_dim` is 0, expected an integer from 1 to"),
        ({"num_hidden_layers": 10**9}, "is 1000000000, expected an integer from 1 to 1024"),
        ({"num_hidden_layers": True}, "`num_hidden_layers` is True, expected an integer"),
        ({"num_hidden_layers": 3.0}, "`num_hidden_layers` is 3.0, expected an integer"),
        ({"vocab_size": 10**99}, "`vocab_size` is an integer of 329 bits, expected"),
        ({"num_key_value_heads": 0}, "`num_key_value_heads` is 0, expected an integer from 1"),
        ({"max_position_embeddings": -5}, "`max_position_embeddings` is -5, expected"),
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
            {"layer_types": ["full_attention", "chunked_attention"]},
            "`layer_types` has chunked_attention, expected full_attention alone",
        ),
        (
            {"layer_types": ["sliding_attention"], "use_sliding_window": False},
            "`layer_types` has sliding_attention without a `sliding_window` in use",
        ),
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
        ModelConfig.from_hf(hf(hidden_act="gelu", is_causal=False, vocab_size=None))
    assert all(f"`{n}`" in str(caught.value) for n in ("hidden_act", "is_causal"))
    assert "`vocab_size` is missing" in str(caught.value)


@pytest.mark.parametrize(
    ("family", "fields", "window", "longest"),
    [
        ("mistral", {}, 4096, 4096),  # transformers' default
        ("mistral", {"sliding_window": None}, None, 4096),
        ("mistral", {"sliding_window": 100}, 100, 100),
        ("mistral", {"sliding_window": 10000}, 10000, 4096),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 2}, 4096, 4096),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 3}, None, 4096),
        ("qwen2", {"use_sliding_window": True}, None, 4096),  # from layer 28 on
        ("qwen3", {"sliding_window": 100, "max_window_layers": 0}, None, 4096),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 100,
                "max_window_layers": 3,
                "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            },
            100,
            100,
        ),
        ("llama", {"sliding_window": 100, "use_sliding_window": True}, None, 4096),
    ],
)
def test_from_hf_reads_windows(
    family: str, fields: dict[str, Any], window: int | None, longest: int
) -> None:
    config = ModelConfig.from_hf(hf(family, **fields))
    assert (config.window_tokens, config.max_seq_len) == (window, longest)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"architectures": ["Qwen3ForCausalLM"]}, None),
        ({"architectures": ["Qwen3Model"]}, None),
        ({"architectures": None, "num_labels": 3}, None),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, 2),  # transformers' default
        ({"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1}, 1),
        ({"architectures": ["Qwen3ForSequenceClassification"], "id2label": {"0": "a"}}, 1),
    ],
)
def test_from_hf_counts_the_labels_of_a_head(fields: dict[str, Any], expected: int | None) -> None:
    config = ModelConfig.from_hf(hf(**fields))
    assert (config.num_labels, config.num_outputs) == (expected, expected or 1000)


def test_unknown_fields_that_look_arithmetic_are_named() -> None:
    raw = hf(logit_softcap=30.0, embedding_multiplier=2.0, attn_scale=None, use_bidirection=False)
    raw |= {"favourite_colour": "red", "pretraining_tp": 2, "attention_dropout": 0.1}
    assert unknown_arithmetic(raw) == ["embedding_multiplier", "logit_softcap"]


def test_no_field_of_real_configs_is_unknown() -> None:
    transformers = pytest.importorskip("transformers")
    for family in FAMILIES:
        raw = transformers.AutoConfig.for_model(family).to_dict()
        assert unknown_arithmetic(raw) == []


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
