"""What a decoder is: its shape, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from itemwise.errors import UnsupportedModelError
from itemwise.models.config_fields import (
    Family,
    num_labels,
    refusals,
    rope_fields,
    sizes,
    window_tokens,
)


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
        window_tokens: sliding window of some layers, in tokens; None where no layer has one. Up to
            that length such a model is like any other; see `max_seq_len`.
        rope_theta: base of the rotary frequencies.
        rope_scaling: how they are stretched.
        norm_eps: added to the mean square in RMS norms.
        tied: the output matrix is the embedding matrix.
        qk_norm: q and k heads are RMS-normalised before rope (Qwen3).
        qkv_bias: q, k and v projections have biases.
        out_bias: the attention output projection has a bias.
        mlp_bias: the MLP projections have biases.
        dtype: type of the weights on disk as the config states it.
        num_labels: labels of the classification head, which takes the place of the output matrix;
            None for a language model.
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
    window_tokens: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = RopeScaling()
    norm_eps: float = 1e-6
    tied: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    dtype: str = "bfloat16"
    num_labels: int | None = None

    @property
    def num_outputs(self) -> int:
        """Rows of the output matrix, which label ids count: the vocabulary's, or the head's."""
        return self.num_labels or self.vocab_size

    @property
    def max_seq_len(self) -> int:
        """Longest sequence that is computed as the model was made for, in tokens."""
        return min(self.max_position_embeddings, self.window_tokens or self.max_position_embeddings)

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads a Hugging Face `config.json`, in the form of transformers 4 or 5.

        Raises:
            UnsupportedModelError: the architecture or a feature in use is not served; all such
                fields are named in one message.
        """
        problems = refusals(raw)
        if problems:
            raise UnsupportedModelError("model is not supported: " + "; ".join(problems))
        family: Family = raw["model_type"]
        found = sizes(raw)
        attention_bias = bool(raw.get("attention_bias")) and family in ("qwen3", "llama")
        rope = rope_fields(raw)
        return cls(
            family=family,
            num_layers=found["num_hidden_layers"],
            hidden_size=found["hidden_size"],
            mlp_size=found["intermediate_size"],
            num_heads=found["num_attention_heads"],
            num_kv_heads=found["num_key_value_heads"],
            head_dim=found["head_dim"],
            vocab_size=found["vocab_size"],
            max_position_embeddings=found["max_position_embeddings"],
            window_tokens=window_tokens(raw),
            rope_theta=float(rope.get("rope_theta", 10000.0)),
            rope_scaling=_rope_scaling(rope, found),
            norm_eps=float(found.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings")),
            qk_norm=family == "qwen3",
            qkv_bias=family == "qwen2" or attention_bias,
            out_bias=attention_bias,
            mlp_bias=bool(raw.get("mlp_bias")) and family == "llama",
            dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"),
            num_labels=num_labels(raw),
        )


def _rope_scaling(rope: Mapping[str, Any], found: Mapping[str, Any]) -> RopeScaling:
    original = rope.get("original_max_position_embeddings") or found["max_position_embeddings"]
    return RopeScaling(
        kind=rope["rope_type"],
        factor=float(rope.get("factor", 1.0)),
        low_freq_factor=float(rope.get("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.get("high_freq_factor", 4.0)),
        original_max_position_embeddings=int(original),
    )
