"""Which fields of a Hugging Face `config.json` mean what, and which rule a model out.

A config says more than a decoder's shape. A field that changes the arithmetic in a way that is not
implemented must not be passed over, or scores would be wrong without a word.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

Family = Literal["qwen3", "qwen2", "llama", "mistral"]
FAMILIES: tuple[Family, ...] = get_args(Family)

# What transformers takes where a config leaves a field out and the families differ.
DEFAULTS: dict[Family, dict[str, int]] = {
    "qwen3": {"max_position_embeddings": 32768, "head_dim": 128, "num_key_value_heads": 32},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32},
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
}
WINDOW, FIRST_WINDOW_LAYER = 4096, 28  # Qwen's, where a config has windows but not their size

# Largest values that are believed: far above any real model's, low enough to be harmless.
_REQUIRED = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_attention_heads": 1 << 16,
    "vocab_size": 1 << 24,
}
_COUNTS = {
    **_REQUIRED,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 12,
    "max_position_embeddings": (1 << 31) - 1,  # positions are int32
    "sliding_window": (1 << 31) - 1,
    "num_labels": 1 << 16,
}
_CLASSIFIER = "ForSequenceClassification"
_ARCHITECTURES = ("ForCausalLM", "Model", _CLASSIFIER)  # how their names end
_ACTIVATIONS = ("silu", "swish")  # two names of one function
_ROPE_TYPES = ("default", "linear", "llama3")

# Read here or in `ModelConfig.from_hf`.
_READ = frozenset(
    {
        *_COUNTS,
        "architectures",
        "attention_bias",
        "dtype",
        "hidden_act",
        "id2label",
        "is_causal",
        "layer_types",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "num_experts",
        "num_local_experts",
        "partial_rotary_factor",
        "quantization_config",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "torch_dtype",
        "use_sliding_window",
    }
)
# Their names look like arithmetic, yet they change no score of these families.
_HARMLESS = frozenset(
    {
        "attention_dropout",  # of training
        "attn_implementation",
        "embd_pdrop",
        "hidden_dropout",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",  # cuts a product into parts that are added
        "resid_pdrop",
        "rope_interleaved",
        "use_flash_attn",
    }
)
_LOOKS_ARITHMETIC = re.compile(
    "act|alibi|atten|attn|bias|causal|clip|direction|embed|expert|heads|layer|logit|mask|mlp|"
    "moe|multipl|norm|position|residual|rope|rotary|scal|sink|soft|temper|window"
)


def refusals(raw: Mapping[str, Any]) -> list[str]:
    """Every field of a `config.json` that rules the model out, with what was expected."""
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        more = " (mixture-of-experts models are not supported)" if "moe" in str(kind) else ""
        return [f"`model_type` is {_shown(kind)}, expected one of {', '.join(FAMILIES)}{more}"]
    return [*_odd_counts(raw), *_odd_numbers(raw), *_odd_features(raw), *_odd_rope(raw)]


def unknown_arithmetic(raw: Mapping[str, Any]) -> list[str]:
    """Fields that are in use and look as if they changed scores, but are not known."""
    return sorted(
        name
        for name, value in raw.items()
        if name not in _READ | _HARMLESS
        and _LOOKS_ARITHMETIC.search(name.lower())
        and value not in (None, False, [], {}, "")
    )


def sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are set, with what transformers takes for sizes that are not."""
    given = {name: value for name, value in raw.items() if value is not None}
    found: dict[str, Any] = {**DEFAULTS[raw["model_type"]], **given}
    heads = found["num_attention_heads"]
    if raw.get("num_key_value_heads", 0) is None:
        found["num_key_value_heads"] = heads
    return {"num_key_value_heads": heads, "head_dim": found["hidden_size"] // heads, **found}


def num_labels(raw: Mapping[str, Any]) -> int | None:
    """Labels of the classification head; None for a language model."""
    if not any(name.endswith(_CLASSIFIER) for name in raw.get("architectures") or ()):
        return None
    return len(raw.get("id2label") or ()) or raw.get("num_labels") or 2  # transformers' default


def rope_fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings in one place: transformers 5 nests them, transformers 4 spreads them."""
    fields: dict[str, Any] = {"rope_theta": raw["rope_theta"]} if "rope_theta" in raw else {}
    fields.update(raw.get("rope_scaling") or {})
    fields.update(raw.get("rope_parameters") or {})
    fields["rope_type"] = fields.get("rope_type") or fields.get("type") or "default"
    return fields


def window_tokens(raw: Mapping[str, Any]) -> int | None:
    """The sliding window of those layers that have one, in tokens; None where none has.

    Up to that length all layers see everything, with or without a window.
    """
    family: Family = raw["model_type"]
    if family == "llama":
        return None
    if family == "mistral":
        window = raw.get("sliding_window", DEFAULTS[family]["sliding_window"])
        return None if window is None else int(window)
    if not raw.get("use_sliding_window"):
        return None
    window = raw.get("sliding_window", WINDOW)
    types = raw.get("layer_types")
    if types is None:
        first = raw.get("max_window_layers", FIRST_WINDOW_LAYER)
        sliding = first < raw["num_hidden_layers"]
    else:
        sliding = "sliding_attention" in types
    return int(window) if sliding and window is not None else None


def _odd_counts(raw: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, most in _COUNTS.items():
        value = raw.get(name)
        if value is None:
            if name in _REQUIRED:
                problems.append(f"`{name}` is missing")
        elif not _is_int(value) or not 1 <= value <= most:
            problems.append(f"`{name}` is {_shown(value)}, expected an integer from 1 to {most}")
    if problems:
        return problems
    found = sizes(raw)
    heads, kv_heads, head_dim = (
        found[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    if heads % kv_heads:
        problems.append(f"`num_key_value_heads` is {kv_heads}, expected a divisor of {heads}")
    if head_dim < 2 or head_dim % 2:
        problems.append(f"`head_dim` is {head_dim}, expected an even number, 2 or more")
    return problems


def _odd_numbers(raw: Mapping[str, Any]) -> list[str]:
    problems = []
    eps = raw.get("rms_norm_eps", 0.0)
    if not _is_number(eps) or not 0 <= eps < 1:
        problems.append(f"`rms_norm_eps` is {_shown(eps)}, expected a number from 0 to below 1")
    switches = ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_sliding_window")
    for name in switches:
        if raw.get(name) not in (None, True, False):
            problems.append(f"`{name}` is {_shown(raw[name])}, expected true or false")
    return problems


def _odd_features(raw: Mapping[str, Any]) -> list[str]:
    found = []
    if raw.get("is_causal") not in (None, True):
        found.append(
            f"`is_causal` is {_shown(raw['is_causal'])}, expected true: the model sees later "
            "tokens, which scoring does not"
        )
    architectures = raw.get("architectures") or []
    if not _are_texts(architectures):
        found.append(f"`architectures` is {_shown(architectures)}, expected a list of texts")
    elif odd := [name for name in architectures if not name.endswith(_ARCHITECTURES)]:
        found.append(
            f"`architectures` is {_shown(odd[0])}, expected a language model (...ForCausalLM) or a "
            f"classifier of sequences (...{_CLASSIFIER})"
        )
    labels = raw.get("id2label")
    if labels is not None and not isinstance(labels, dict):
        found.append(f"`id2label` is {_shown(labels)}, expected an object")
    types = raw.get("layer_types")
    if types is not None and not _are_texts(types):
        found.append(f"`layer_types` is {_shown(types)}, expected a list of texts")
    elif odd := sorted(set(types or ()) - {"full_attention", "sliding_attention"}):
        found.append(f"`layer_types` has {', '.join(odd)}, expected full_attention alone")
    elif "sliding_attention" in (types or ()) and not _window_has_size(raw):
        found.append("`layer_types` has sliding_attention without a `sliding_window` in use")
    first = raw.get("max_window_layers")
    if first is not None and not _is_int(first):
        found.append(f"`max_window_layers` is {_shown(first)}, expected an integer")
    if raw.get("quantization_config"):
        found.append("`quantization_config` is set, quantised weights are not supported")
    if raw.get("num_experts") or raw.get("num_local_experts"):
        found.append("`num_experts` is set, mixture-of-experts models are not supported")
    act = raw.get("hidden_act", "silu")
    if not isinstance(act, str) or act not in _ACTIVATIONS:
        found.append(f"`hidden_act` is {_shown(act)}, expected 'silu'")
    return found


def _window_has_size(raw: Mapping[str, Any]) -> bool:
    """Whether layers that are said to slide can do so; only Qwen's families have such layers."""
    in_use = raw.get("use_sliding_window") and raw["model_type"] in ("qwen2", "qwen3")
    return bool(in_use) and raw.get("sliding_window", WINDOW) is not None


def _odd_rope(raw: Mapping[str, Any]) -> list[str]:
    for name in ("rope_scaling", "rope_parameters"):
        value = raw.get(name)
        if value is not None and not isinstance(value, dict):
            return [f"`{name}` is {_shown(value)}, expected an object"]
        if any(isinstance(inner, dict) for inner in (value or {}).values()):
            return [f"`{name}` differs between layers, which is not supported"]
    rope, found = rope_fields(raw), []
    kind = rope["rope_type"]
    if not isinstance(kind, str) or kind not in _ROPE_TYPES:
        return [f"`rope_type` is {_shown(kind)}, expected default, linear or llama3"]
    positive = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor")}[kind]
    for name in ("rope_theta", *positive):
        value = rope.get(name, 1.0)
        if not _is_number(value) or value <= 0:
            found.append(f"`{name}` is {_shown(value)}, expected a number above 0")
    if kind == "llama3":
        low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
        if not _is_number(high) or (_is_number(low) and high <= low):
            found.append(f"`high_freq_factor` is {_shown(high)}, expected more than {_shown(low)}")
        original = rope.get("original_max_position_embeddings")
        if original is not None and (not _is_int(original) or original < 1):
            name = "original_max_position_embeddings"
            found.append(f"`{name}` is {_shown(original)}, expected an integer, 1 or more")
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial != 1.0:
        found.append(f"`partial_rotary_factor` is {_shown(partial)}, expected 1.0")
    return found


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and abs(value) < 1e30 and math.isfinite(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _shown(value: Any) -> str:
    """The value in a few characters of one line."""
    if _is_int(value) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
