"""Model folders: find them, check them, read their safetensors, write random ones.

Only safetensors is read, never pickle. Everything that headers can tell is checked before any
tensor is read, and every problem found is reported in one error. Tensors pass one at a time, so
that reading holds no second copy of a model.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # also teaches numpy the name bfloat16, which safetensors asks for
import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from itemwise.config import DEMO_MODEL
from itemwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from itemwise.models.config import ModelConfig
from itemwise.progress import ProgressFn, silent
from itemwise.types import WeightSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_BYTES = 2 * 1024**3

_READABLE_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_LISTED = 10
_READERS = 8  # tensors read at a time: bounds memory on machines with many cores
_DRAW_CHUNK = 1 << 20  # numbers drawn at a time; bounds the float32 copy of a random tensor


# Find


def locate(model: str) -> Path:
    """The folder of a model: `model` itself, or a download from the Hugging Face Hub.

    `itemwise/demo` is the folder of the demo model, which is part of the package.

    Raises:
        CheckpointError: `model` is neither a folder nor a Hub id, or the Hub does not give it.
    """
    if model == DEMO_MODEL:
        return Path(__file__).parents[1] / "demo_model"
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if model and path.exists():
        raise CheckpointError(f"`{model}` is a file, expected the model's folder: give its parent")
    if not _is_hub_id(model):
        raise CheckpointError(
            f"`{model}` does not exist, expected a model folder or a Hugging Face Hub id like "
            "Qwen/Qwen3-0.6B: check the path"
        )
    return _download(model)


def _is_hub_id(model: str) -> bool:
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    return bool(re.fullmatch(f"{part}(/{part})?", model)) and ".." not in model


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    start = f"`{model}` is not a local folder, and the Hugging Face Hub "
    try:
        # No pickle and no code is downloaded; subfolders hold other formats of the same weights.
        folder = snapshot_download(
            model,
            allow_patterns=["*.safetensors", "*.json", "*.jinja"],
            ignore_patterns=["*/*"],
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{start}gives it only to users who accepted its terms: accept them on "
            f"https://huggingface.co/{model}, then log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{start}has no such model: check the spelling, and log in with `hf auth login` "
            "where it is private"
        ) from error
    except Exception as error:  # whatever the network, the proxy or the disk came up with
        raise CheckpointError(
            f"{start}did not give it ({_brief(error)}): check the network, or download the model "
            "elsewhere and give its folder"
        ) from error
    return Path(folder)


def read_config(folder: Path) -> ModelConfig:
    """The model's shape, from the folder's `config.json`.

    Raises:
        CheckpointError: the file is missing or damaged.
        UnsupportedModelError: the model is not of a kind served.
    """
    raw = _read_json(folder / CONFIG_FILE)
    try:
        return ModelConfig.from_hf(raw)
    except UnsupportedModelError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{folder / CONFIG_FILE}` holds a value of a wrong kind ({_brief(error)}): "
            "restore the file that came with the model"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"`{path}` is missing: give the folder that holds it, or download the model again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read as JSON ({_brief(error)}): download it again"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"`{path}` holds a JSON {type(raw).__name__}, expected an object: download it again"
        )
    return raw


# Read


class _Tensor(NamedTuple):
    """What a file's header says about a tensor."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_weights(
    folder: Path,
    specs: Any,
    dtype: DTypeLike,
    put: Callable[[NDArray[Any], WeightSpec], Any],
    on_progress: ProgressFn = silent,
) -> Any:
    """The tensors that `specs` describes, each as `put` returns it, in a tree like `specs`.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.
        specs: dicts, lists and tuples with `WeightSpec` leaves.
        dtype: type that `put` receives; on disk, F32, F16 and BF16 are read.
        put: takes an array and what it is; called from several threads. The array is its own: it
            shares no memory with a file.
        on_progress: told after each tensor how many are done, and how many there are.

    Raises:
        CheckpointError: with all problems of all files, else of all tensors.
    """
    leaves = list(_leaves(specs))
    found = _read_headers(folder)
    _check_tensors(folder, leaves, found)

    def load(spec: WeightSpec) -> Any:
        return put(_read_tensor(found[spec.name], spec.name, np.dtype(dtype)), spec)

    loaded: list[Any] = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _READERS)) as pool:
        for one in pool.map(load, leaves):
            loaded.append(one)
            on_progress("weights", len(loaded), len(leaves))
    in_order = iter(loaded)
    return _map_leaves(lambda _: next(in_order), specs)


def _leaves(tree: Any) -> Iterator[WeightSpec]:
    if isinstance(tree, WeightSpec):
        yield tree
        return
    for child in tree.values() if isinstance(tree, Mapping) else tree:
        yield from _leaves(child)


def _map_leaves(function: Callable[[WeightSpec], Any], tree: Any) -> Any:
    if isinstance(tree, WeightSpec):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: _map_leaves(function, child) for key, child in tree.items()}
    children = [_map_leaves(function, child) for child in tree]
    return children if isinstance(tree, list) else tuple(children)


def _read_tensor(tensor: _Tensor, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    # The file is opened anew for each tensor: an open map keeps all that was read of it in memory.
    try:
        with safe_open(tensor.file, framework="numpy") as file:
            return np.array(file.get_tensor(name), dtype=dtype, order="C", copy=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"`{tensor.file}` changed while it was read: try again") from error


def _read_headers(folder: Path) -> dict[str, _Tensor]:
    """Every tensor of the folder's files, by name. An index, where there is one, picks the file."""
    if (folder / WEIGHTS_FILE).exists():
        return _read_header(folder / WEIGHTS_FILE)
    if not (folder / INDEX_FILE).exists():
        raise CheckpointError(_no_weights(folder))
    index = _read_index(folder / INDEX_FILE)
    shards: dict[str, dict[str, _Tensor]] = {}
    problems = []
    for shard in sorted(set(index.values())):
        try:
            shards[shard] = _read_header(folder / shard)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError("\n".join(problems))
    strays = [
        f"`{name}` in `{shard}`" for name, shard in index.items() if name not in shards[shard]
    ]
    if strays:
        raise CheckpointError(
            f"`{folder / INDEX_FILE}` names tensors that their shards lack: {_listed(strays)}; "
            "download index and shards again"
        )
    found = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    return found | {name: shards[shard][name] for name, shard in index.items()}


def _read_index(path: Path) -> dict[str, str]:
    """The index's `weight_map`: file name by tensor name."""
    weight_map = _read_json(path).get("weight_map")
    if not (isinstance(weight_map, dict) and weight_map):
        raise CheckpointError(
            f"`{path}` has no `weight_map`, expected file names by tensor name: download it again"
        )
    odd = [
        f"{shard!r}"
        for shard in weight_map.values()
        if not (isinstance(shard, str) and re.fullmatch(r"[^/\\]+\.safetensors", shard))
    ]
    if odd:
        raise CheckpointError(
            f"`{path}` names {_listed(odd)}, expected safetensors files in its own folder: "
            "download it again"
        )
    return weight_map


def _read_header(path: Path) -> dict[str, _Tensor]:
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                name: _Tensor(path, str(tensor.get_dtype()), tuple(tensor.get_shape()))
                for name, tensor in slices.items()
            }
    except FileNotFoundError as error:
        raise CheckpointError(f"`{path}` is missing: download it again") from error
    except (OSError, SafetensorError) as error:
        advice = "download it again"
        if _is_lfs_pointer(path):
            advice = "it is a Git LFS pointer, fetch the file itself with `git lfs pull`"
        raise CheckpointError(
            f"`{path}` is damaged or cut short ({_brief(error)}): {advice}"
        ) from error


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(30).startswith(b"version https://git-lfs")
    except OSError:
        return False


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"`{folder}` is not a folder: give the folder that holds the model"
    names = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if names:
        return (
            f"`{folder}` has weights in pickle files only ({_listed([f'`{n}`' for n in names])}), "
            f"which can run code and are never read: convert them to `{WEIGHTS_FILE}`"
        )
    return (
        f"`{folder}` has no weights, expected `{WEIGHTS_FILE}` or `{INDEX_FILE}`: "
        "give the folder that holds them"
    )


def _check_tensors(folder: Path, leaves: list[WeightSpec], found: dict[str, _Tensor]) -> None:
    wanted = {spec.name: spec for spec in leaves}
    present = {name: tensor for name, tensor in found.items() if name in wanted}
    kinds = {
        "missing": [f"`{name}`" for name in wanted if name not in found],
        "unexpected": [
            f"`{name}`" for name in found if name not in wanted and not _is_harmless(name)
        ],
        "of a wrong shape": [
            f"`{name}` is {list(tensor.shape)}, expected {list(wanted[name].shape)}"
            for name, tensor in present.items()
            if tensor.shape != wanted[name].shape
        ],
        "of an unsupported dtype": [
            f"`{name}` is {tensor.dtype}, expected {', '.join(_READABLE_DTYPES)}"
            for name, tensor in present.items()
            if tensor.dtype not in _READABLE_DTYPES
        ],
    }
    problems = [
        f"{len(names)} tensor{'s'[: len(names) > 1]} {kind}: {_listed(names)}"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise CheckpointError(
            f"`{folder}` holds weights that do not fit its `{CONFIG_FILE}`:\n  "
            + "\n  ".join(problems)
            + f"\nCheck that both are of one model, unquantised, or download `{folder.name}` again."
        )


def _is_harmless(name: str) -> bool:
    """Left over in some checkpoints: computed anyway, or a second copy of tied embeddings."""
    return name.endswith(".rotary_emb.inv_freq") or name == "lm_head.weight"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _brief(error: Exception) -> str:
    """The first line of an error's text, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# Write


def write_random(
    folder: Path,
    config_json: Mapping[str, Any],
    specs: Any,
    *,
    seed: int,
    dtype: DTypeLike = ml_dtypes.bfloat16,
    shards: int | None = None,
    on_progress: ProgressFn = silent,
) -> None:
    """Writes a checkpoint with random weights, which transformers can load too.

    A tensor depends on `seed` and its own name alone. `config.json` is written last, stating
    `dtype`, so a folder that an interrupted run left behind is refused by `read_config`.

    Args:
        folder: new or empty.
        config_json: contents of `config.json`, as from `model_dict`.
        specs: dicts, lists and tuples with `WeightSpec` leaves.
        seed: picks the weights.
        dtype: type of the weights, one of bfloat16, float16, float32.
        shards: number of files; None for as many as keep each under 2 GiB, where tensors allow.
            Memory holds one file's tensors at a time.
        on_progress: told after each tensor how many are drawn, and how many there are.

    Raises:
        CheckpointError: the folder is not empty, or cannot be written.
        ConfigError: `dtype` or `shards` cannot be had.
    """
    leaves = list({spec.name: spec for spec in _leaves(specs)}.values())
    dtype = np.dtype(dtype)
    _check_writable(len(leaves), dtype, shards)
    groups = _group(leaves, dtype.itemsize, shards)
    try:
        _make_empty(folder)
        _write_shards(folder, groups, seed, dtype, on_progress)
        config = {**config_json, "torch_dtype": dtype.name}
        config.pop("dtype", None)
        _write_json(folder / CONFIG_FILE, config)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"`{folder}` cannot be written ({_brief(error)}): free space or permissions, delete "
            "the folder, and try again"
        ) from error


def _check_writable(num_tensors: int, dtype: np.dtype[Any], shards: int | None) -> None:
    problems = []
    if dtype.type not in _READABLE_DTYPES.values():
        problems.append(f"`dtype` is {dtype}, expected bfloat16, float16 or float32")
    if shards is not None and not 1 <= shards <= num_tensors:
        problems.append(f"`shards` is {shards}, expected 1 to {num_tensors}, the tensors there are")
    if problems:
        raise ConfigError("; ".join(problems))


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise CheckpointError(
            f"`{folder}` is not empty, expected a new or empty folder: delete its contents or "
            "give another"
        )


def _group(leaves: list[WeightSpec], itemsize: int, shards: int | None) -> list[list[WeightSpec]]:
    """Tensors by file, in order: `shards` groups of near equal bytes, or as many as need be."""
    groups: list[list[WeightSpec]] = [[]]
    total = sum(_num_bytes(spec, itemsize) for spec in leaves)
    used = filled = 0
    for i, spec in enumerate(leaves):
        size = _num_bytes(spec, itemsize)
        if shards is None:
            full = used + size > MAX_SHARD_BYTES
        else:
            to_come = shards - len(groups)
            full = to_come > 0 and (
                filled >= total * len(groups) / shards or len(leaves) - i <= to_come
            )
        if full and groups[-1]:
            groups.append([])
            used = 0
        groups[-1].append(spec)
        used += size
        filled += size
    return groups


def _num_bytes(spec: WeightSpec, itemsize: int) -> int:
    return int(np.prod(spec.shape, dtype=np.int64)) * itemsize


def _write_shards(
    folder: Path,
    groups: list[list[WeightSpec]],
    seed: int,
    dtype: np.dtype[Any],
    on_progress: ProgressFn,
) -> None:
    total = sum(len(group) for group in groups)
    weight_map: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, group in enumerate(groups, 1):
            name = WEIGHTS_FILE
            if len(groups) > 1:
                name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            tensors = {}
            drawn = pool.map(lambda spec: _draw(spec, seed, dtype), group)
            for spec, tensor in zip(group, drawn, strict=True):
                tensors[spec.name] = tensor
                weight_map[spec.name] = name
                on_progress("weights", len(weight_map), total)
            save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(groups) > 1:
        size = sum(_num_bytes(spec, dtype.itemsize) for group in groups for spec in group)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(folder / INDEX_FILE, index)


def _draw(spec: WeightSpec, seed: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """A random tensor, drawn chunk by chunk from a stream of its own."""
    digest = hashlib.sha256(f"{seed}:{spec.name}".encode()).digest()
    random = np.random.Generator(np.random.SFC64(int.from_bytes(digest[:16], "little")))
    tensor = np.empty(spec.shape, dtype)
    flat = tensor.reshape(-1)
    buffer = np.empty(min(flat.size, _DRAW_CHUNK), np.float32)
    for start in range(0, flat.size, _DRAW_CHUNK):
        chunk = buffer[: flat.size - start]
        random.standard_normal(out=chunk, dtype=np.float32)
        if spec.init == "gain":
            chunk *= np.float32(0.1)
            chunk += np.float32(1.0)
        chunk *= np.float32(spec.scale)
        flat[start : start + chunk.size] = chunk
    return tensor


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a whole file or none."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


# Known shapes


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
    """A `config.json` of Llama 3, whose rope was made for `original_tokens` and then stretched."""
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
        raise ConfigError(f"`{name}` is no known shape, expected one of {', '.join(NAMED_SHAPES)}")
    if vocab_size is not None and vocab_size < 1:
        raise ConfigError(f"`vocab_size` is {vocab_size}, expected 1 or more")
    config = {**deepcopy(NAMED_SHAPES[name]), "torch_dtype": dtype}
    return config if vocab_size is None else {**config, "vocab_size": vocab_size}
