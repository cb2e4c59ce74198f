"""Turns GGUF files into model folders: `config.json`, safetensors, `tokenizer.json`.

Names and the order of rows are facts of llama.cpp's converter (`convert_hf_to_gguf.py`); the
package `gguf` reads files and takes numbers out of their blocks.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from itemwise.checkpoint import gguf_tokenizer
from itemwise.checkpoint.gguf_tokenizer import build_tokenizer, tokenizer_config
from itemwise.checkpoint.headers import CONFIG_FILE, INDEX_FILE
from itemwise.config import cache_dir
from itemwise.errors import CheckpointError, ConfigError, UnsupportedModelError, brief
from itemwise.models.config import ModelConfig
from itemwise.models.layers import rope_frequencies
from itemwise.progress import ProgressFn, silent
from itemwise.request.tokenizer import TOKENIZER_FILE

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

SUFFIX = ".gguf"
StoredDType = Literal["float32", "bfloat16"]
logger = logging.getLogger("itemwise.checkpoint")

_ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
_CLASSIFIER = "cls.output.weight"  # rows of a reranker's labels
_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "cls.output": "score",
}
_OF_LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FREQS = "rope_freqs.weight"  # by what each rotary frequency is divided
_LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.2
_SHARD_BYTES = 2 * 1024**3


def convert_once(path: Path, on_progress: ProgressFn = silent) -> Path:
    """The folder that a GGUF file was converted into, in the user's cache; made at the first call.

    Raises:
        CheckpointError: the file cannot be read or the folder cannot be written.
        ConfigError: the package `gguf` is not installed.
        UnsupportedModelError: the model is of an unsupported kind.
    """
    digest = _digest(path)
    folder = cache_dir() / SUFFIX[1:] / f"{path.stem}-{digest[:16]}"
    if (folder / CONFIG_FILE).is_file():
        return folder
    logger.info("Converting %s, once; the result is kept in %s", path.name, folder)
    convert(path, folder, on_progress=on_progress)
    return folder


def convert(
    path: Path,
    folder: Path,
    *,
    dtype: StoredDType = "float32",
    on_progress: ProgressFn = silent,
) -> None:
    """Writes the model of a GGUF file into a new folder, whole or not at all.

    Tensors of float32, float16 and bfloat16 keep their type. Quantised ones become numbers of type
    `dtype`; float32 holds their values as they are.

    Args:
        path: the file.
        folder: new or empty.
        dtype: type of tensors that are quantised in the file.
        on_progress: called after each tensor with the number done and the total.

    Raises:
        CheckpointError: the file cannot be read or the folder cannot be written.
        ConfigError: the package `gguf` is not installed.
        UnsupportedModelError: the model is of an unsupported kind.
    """
    if not path.is_file():
        raise CheckpointError(f"`{path}` is not a file, expected a GGUF file: check the path")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"`{folder}` is not empty, expected a new or empty folder")
    reader = _open(path)
    try:
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = _config(fields, {tensor.name: tensor for tensor in reader.tensors})
        model = ModelConfig.from_hf(config)
        tensors = [(_name(tensor.name, model.family), tensor) for tensor in _stored(reader)]
    except (UnsupportedModelError, CheckpointError) as error:
        raise type(error)(f"`{path}`: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"`{path}` is damaged ({brief(error)}): get it again") from error
    with _whole_or_nothing(folder) as draft:
        _write_tokenizer(fields, draft)
        arrays = ((name, _values(tensor, dtype)) for name, tensor in tensors)
        if model.family == "llama":
            arrays = ((name, _in_halves(array, name, model)) for name, array in arrays)
        total = len(tensors)
        for number in _write_tensors(draft, arrays):
            on_progress("weights", number, total)
        _write_json(draft / CONFIG_FILE, config)


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """A new folder to write to, which gets the name of `folder` at the end."""
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        yield draft
        draft.chmod(0o755)
        try:
            draft.replace(folder)
        except OSError:
            if not (folder / CONFIG_FILE).is_file():  # else another process was faster
                raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"`{folder}` cannot be written ({brief(error)}): check free space and permissions"
        ) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _open(path: Path) -> GGUFReader:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"`{path}` is a GGUF file, which needs the package gguf: install itemwise[gguf]"
        ) from error

    class Bounded(gguf.GGUFReader):
        """A reader that ends with the file, whatever lengths the file claims."""

        def _get(self, offset: int, *args: Any, **kwargs: Any) -> Any:
            if offset >= len(self.data):
                raise ValueError("it ends too early")
            return super()._get(offset, *args, **kwargs)

    try:
        return Bounded(path)
    except Exception as error:  # whatever a damaged file makes of the reader
        raise CheckpointError(
            f"`{path}` cannot be read as GGUF ({brief(error)}): get the file again"
        ) from error


def _digest(path: Path) -> str:
    """Of the file, and of how it is converted."""
    digest = hashlib.sha256()
    for part in (Path(__file__), Path(gguf_tokenizer.__file__), path):
        with part.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _stored(reader: GGUFReader) -> list[ReaderTensor]:
    return [tensor for tensor in reader.tensors if tensor.name != _ROPE_FREQS]


def _name(name: str, family: str) -> str:
    """The name of a tensor in a model folder."""
    found = re.fullmatch(r"(?:blk\.(\d+)\.)?([\w.]+)\.(weight|bias)", name)
    layer, stem, kind = found.groups() if found else (None, name, "")
    table = _WHOLE if layer is None else _OF_LAYERS
    if stem not in table:
        raise UnsupportedModelError(f"it has a tensor `{name}`, which no {family} model has")
    return f"{'' if layer is None else f'model.layers.{layer}.'}{table[stem]}.{kind}"


def _config(fields: dict[str, Any], tensors: dict[str, ReaderTensor]) -> dict[str, Any]:
    """Contents of `config.json`."""
    family = fields.get("general.architecture")
    if family not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UnsupportedModelError(f"its architecture is {family!r}, expected one of {known}")
    if fields.get("split.count", 1) > 1:
        raise UnsupportedModelError("it is one of several parts: merge them with `gguf-split`")

    def field(name: str, default: Any = None) -> Any:
        found = fields.get(f"{family}.{name}", default)
        if found is None:
            raise CheckpointError(f"it has no `{family}.{name}`")
        return found

    heads, width = field("attention.head_count"), field("embedding_length")
    head_dim = field("attention.key_length", width // heads)
    config = {
        "architectures": [f"{_ARCHITECTURES[family]}ForCausalLM"],
        "model_type": family,
        "num_hidden_layers": field("block_count"),
        "hidden_size": width,
        "intermediate_size": field("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "rms_norm_eps": _shortest(field("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(field("rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "max_position_embeddings": field("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": family == "llama" and "blk.0.attn_q.bias" in tensors,
        "mlp_bias": family == "llama" and "blk.0.ffn_up.bias" in tensors,
    }
    if _CLASSIFIER in tensors:
        names = field("classifier.output_labels", [])
        count = int(tensors[_CLASSIFIER].shape[1])
        names = names if len(names) == count else [f"LABEL_{n}" for n in range(count)]
        config["architectures"] = [f"{_ARCHITECTURES[family]}ForSequenceClassification"]
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
    if field("rope.dimension_count", head_dim) != head_dim:
        raise UnsupportedModelError(f"`{family}.rope.dimension_count` is not the heads' size")
    if field("expert_count", 0):
        raise UnsupportedModelError("mixture-of-experts models are not supported")
    window = field("attention.sliding_window", 0)
    if window and window < config["max_position_embeddings"]:
        config["max_position_embeddings"] = window  # up to there it makes no difference
    return config | {"rope_scaling": _rope_scaling(config, fields, tensors.get(_ROPE_FREQS))}


def _shortest(number: float) -> float:
    """The number that was meant by its nearest float32."""
    return float(str(np.float32(number)))


def _rope_scaling(
    config: dict[str, Any], fields: dict[str, Any], divisors: ReaderTensor | None
) -> dict[str, Any] | None:
    """How rotary frequencies are stretched: by a factor, or each by its own as in Llama 3."""
    family = config["model_type"]
    kind = fields.get(f"{family}.rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": fields[f"{family}.rope.scaling.factor"]}
    if kind != "none":
        raise UnsupportedModelError(f"`{family}.rope.scaling.type` is {kind!r}, expected linear")
    if divisors is None:
        return None
    plain = rope_frequencies(ModelConfig.from_hf(config))
    for factor in _LLAMA3_FACTORS:
        scaling = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        stretched = rope_frequencies(ModelConfig.from_hf(config | {"rope_scaling": scaling}))
        if np.allclose(plain / stretched, divisors.data, rtol=1e-3):
            return scaling
    raise UnsupportedModelError(f"`{_ROPE_FREQS}` is none of Llama 3's: use the original model")


def _write_tensors(folder: Path, tensors: Iterable[tuple[str, NDArray[Any]]]) -> Iterator[int]:
    """Writes safetensors, a file's worth in memory at a time; yields the number of tensors."""
    place: dict[str, str] = {}
    group: dict[str, NDArray[Any]] = {}

    def write() -> None:
        shard = f"model-{len(set(place.values())) + 1:05d}.safetensors"
        save_file(group, folder / shard, metadata={"format": "pt"})
        (folder / shard).chmod(0o644)
        place.update(dict.fromkeys(group, shard))
        group.clear()

    for number, (name, array) in enumerate(tensors, 1):
        if group and sum(one.nbytes for one in group.values()) + array.nbytes > _SHARD_BYTES:
            write()
        group[name] = array
        yield number
    write()
    _write_json(folder / INDEX_FILE, {"metadata": {}, "weight_map": place})


def _values(tensor: ReaderTensor, dtype: StoredDType) -> NDArray[Any]:
    """A tensor's numbers, [out, in]; quantised ones in `dtype`, others in their own type."""
    from gguf import GGMLQuantizationType, dequantize

    kind, shape = tensor.tensor_type, tuple(int(n) for n in reversed(tensor.shape))
    plain: dict[Any, Any] = {
        GGMLQuantizationType.F32: np.float32,
        GGMLQuantizationType.F16: np.float16,
        GGMLQuantizationType.BF16: ml_dtypes.bfloat16,
    }
    if kind in plain:
        stored: NDArray[Any] = np.ascontiguousarray(tensor.data).view(plain[kind])
        return stored.reshape(shape)
    try:
        numbers = dequantize(tensor.data, kind).reshape(shape)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"`{tensor.name}` is of type {kind.name}, which the package gguf cannot read: get the "
            "model in another type, like Q8_0 or Q4_K_M"
        ) from error
    return numbers.astype(np.float32 if dtype == "float32" else ml_dtypes.bfloat16, copy=False)


def _in_halves(array: NDArray[Any], name: str, model: ModelConfig) -> NDArray[Any]:
    """Rows of q and k in the order of Hugging Face models, whose rope turns halves.

    In a llama file a head's rows alternate between the two halves.
    """
    heads = {"q_proj": model.num_heads, "k_proj": model.num_kv_heads}.get(name.split(".")[-2], 0)
    if not heads:
        return array
    pairs = array.reshape(heads, model.head_dim // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)


def _write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    if fields.get("tokenizer.ggml.model") in (None, "none"):
        return
    try:
        build_tokenizer(fields).save(str(folder / TOKENIZER_FILE))
    except CheckpointError as error:
        logger.warning(
            "The file's tokenizer is left out, so the model takes token ids alone: %s. Put the "
            "original model's %s into the folder.",
            error,
            TOKENIZER_FILE,
        )
    _write_json(folder / "tokenizer_config.json", tokenizer_config(fields))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
