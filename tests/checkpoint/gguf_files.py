"""GGUF files as llama.cpp's converter writes them, of tiny models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "score": "cls.output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Where the blocks of llama.cpp's K types have their float16 scales (ggml-common.h).
SCALES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def alternate(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q and k as llama files have them: each head's two halves take turns."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write(
    path: Path,
    model: Any,
    kind: str = "F32",
    fields: dict[str, Any] | None = None,
    tensors: dict[str, NDArray[Any]] | None = None,
) -> None:
    """Writes a model; its matrices are of a type of GGUF, its vectors float32.

    Args:
        path: of the file.
        model: of transformers, in float32.
        kind: type of the matrices.
        fields: more of the file's fields, of a type each: text, bool, int, float or lists of them.
        tensors: more tensors, float32.
    """
    import gguf

    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, value in (fields or {}).items():
        _add(writer, name, value)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = weight.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        if arch == "llama" and name.split(".")[-2] in heads:
            array = alternate(array, heads[name.split(".")[-2]])
        _add_tensor(writer, _short(name), array, kind if array.ndim == 2 else "F32")
    for name, array in (tensors or {}).items():
        _add_tensor(writer, name, array, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _short(name: str) -> str:
    stem, end = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{end}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{end}"


def random_blocks(shape: tuple[int, ...], kind: str) -> NDArray[np.uint8]:
    """Blocks of a K type, which the package gguf reads but does not write: any bits are numbers.

    Only the float16 scales of a block, of which `SCALES` has the places, are no random bits.
    """
    import gguf

    size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // size, num_bytes), np.uint8)
    scale = np.array([2e-4], np.float16).view(np.uint8)
    for place in SCALES[kind]:
        blocks[..., place : place + 2] = scale
    return blocks.reshape(*shape[:-1], -1)


def _add_tensor(writer: Any, name: str, array: NDArray[Any], kind: str) -> None:
    import gguf

    if kind in SCALES:
        quantised = random_blocks(array.shape, kind)
    else:
        quantised = gguf.quantize(array, gguf.GGMLQuantizationType[kind])
    raw = None if kind in ("F32", "F16") else gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, np.ascontiguousarray(quantised), raw_dtype=raw)


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def tokenizer_fields(tokenizer: Any, kind: str, **more: Any) -> dict[str, Any]:
    """The fields of a byte-level tokenizer of the library tokenizers."""
    import json

    raw = json.loads(tokenizer.to_str())
    size = tokenizer.get_vocab_size()
    special = {token["id"]: token["special"] for token in raw["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind,
        "tokenizer.ggml.tokens": [tokenizer.id_to_token(i) for i in range(size)],
        "tokenizer.ggml.token_type": [
            1 if i not in special else 3 if special[i] else 4 for i in range(size)
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in raw["model"]["merges"]],
        **{f"tokenizer.ggml.{name}": value for name, value in more.items()},
    }
