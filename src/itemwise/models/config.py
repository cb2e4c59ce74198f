"""What a decoder is: its shape, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from itemwise.errors import UnsupportedModelError

Family = Literal["qwen3", "qwen2", "llama"]
FAMILIES: tuple[Family, ...] = get_args(Family)


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Source: `rope_type` in Hugging Face configs; `llama3` as in Llama 3.1's release.
    """

    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """A decoder's shape. The families differ in three fields: norms on q and k, and biases.

    Attributes:
        family: `model_type` of the checkpoint.
        num_layers: L.
        hidden_size: D.
        mlp_size: F.
        num_heads: N, query heads.
        num_kv_heads: K, key/value heads; divides N.
        head_dim: H; need not be D / N.
        vocab_size: V.
        max_position_embeddings: longest sequence the model was made for, in tokens.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how they are stretched.
        norm_eps: added to the mean square in RMS norms.
        tied: the output matrix is the embedding matrix.
        qk_norm: q and k heads are RMS-normalised before rope (Qwen3).
        qkv_bias: q, k and v projections have biases.
        out_bias: the attention output projection has a bias.
        mlp_bias: the MLP projections have biases.
        dtype: type of the weights on disk as the config states it.
    """

    family: Family
    num_layers: int
    hidden_size: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    norm_eps: float = 1e-6
    tied: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "bfloat16"

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads a Hugging Face `config.json`, in the form of transformers 4 or 5.

        Raises:
            UnsupportedModelError: the architecture or a feature in use is not served; all such
                fields are named in one message.
        """
        problems = _unsupported(raw)
        if problems:
            raise UnsupportedModelError("model is not supported: " + "; ".join(problems))
        family: Family = raw["model_type"]
        num_heads = int(raw["num_attention_heads"])
        attention_bias = bool(raw.get("attention_bias", False))
        rope = _rope_fields(raw)
        return cls(
            family=family,
            num_layers=int(raw["num_hidden_layers"]),
            hidden_size=int(raw["hidden_size"]),
            mlp_size=int(raw["intermediate_size"]),
            num_heads=num_heads,
            num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
            head_dim=int(raw.get("head_dim") or int(raw["hidden_size"]) // num_heads),
            vocab_size=int(raw["vocab_size"]),
            max_position_embeddings=int(raw.get("max_position_embeddings", 4096)),
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            rope_scaling=_rope_scaling(rope, raw),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2" or attention_bias,
            out_bias=family != "qwen2" and attention_bias,
            mlp_bias=bool(raw.get("mlp_bias", False)),
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"),
        )


def _rope_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings in one place: transformers 5 nests them, transformers 4 spreads them."""
    fields: dict[str, Any] = {"rope_theta": raw["rope_theta"]} if "rope_theta" in raw else {}
    fields.update(raw.get("rope_scaling") or {})
    fields.update(raw.get("rope_parameters") or {})
    fields["rope_type"] = fields.get("rope_type") or fields.get("type") or "default"
    return fields


def _rope_scaling(rope: Mapping[str, Any], raw: Mapping[str, Any]) -> RopeScaling:
    original = rope.get("original_max_position_embeddings") or raw.get("max_position_embeddings")
    return RopeScaling(
        kind=rope["rope_type"],
        factor=float(rope.get("factor", 1.0)),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=int(original or 8192),
    )


_REQUIRED = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)


def _unsupported(raw: Mapping[str, Any]) -> list[str]:
    """Every field of a `config.json` that rules the model out, with what was expected."""
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        return [f"`model_type` is {kind!r}, expected one of {', '.join(FAMILIES)}"]
    found = [f"`{name}` is missing" for name in _REQUIRED if not isinstance(raw.get(name), int)]
    layer_types = raw.get("layer_types") or []
    odd_layers = sorted({t for t in layer_types if t != "full_attention"})
    if odd_layers:
        found.append(f"`layer_types` has {', '.join(odd_layers)}, expected full_attention alone")
    if raw.get("use_sliding_window"):
        found.append("`use_sliding_window` is true, sliding windows are not supported")
    if raw.get("quantization_config"):
        found.append("`quantization_config` is set, quantised weights are not supported")
    if raw.get("num_experts") or raw.get("num_local_experts"):
        found.append("`num_experts` is set, mixture-of-experts models are not supported")
    if raw.get("hidden_act", "silu") != "silu":
        found.append(f"`hidden_act` is {raw['hidden_act']!r}, expected 'silu'")
    rope = _rope_fields(raw)
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        found.append(f"`rope_type` is {rope['rope_type']!r}, expected default, linear or llama3")
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if float(partial) != 1.0:
        found.append(f"`partial_rotary_factor` is {partial}, expected 1.0")
    heads, kv_heads = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(kv_heads, int) and heads % max(kv_heads, 1):
        found.append(f"`num_key_value_heads` is {kv_heads}, expected a divisor of {heads}")
    return found
