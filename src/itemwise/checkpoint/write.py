"""Writes random checkpoints, which transformers can load too."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from itemwise.checkpoint.headers import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE
from itemwise.checkpoint.read import READABLE_DTYPES, spec_leaves
from itemwise.errors import CheckpointError, ConfigError, brief
from itemwise.progress import ProgressFn, silent
from itemwise.types import WeightSpec

MAX_SHARD_BYTES = 2 * 1024**3
_DRAW_CHUNK = 1 << 20  # numbers drawn at a time; limits the float32 copy of a random tensor


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

    A tensor depends only on `seed` and its own name. `config.json`, with `dtype`, is written last,
    so `read_config` refuses the folder of an interrupted run.

    Args:
        folder: new or empty.
        config_json: contents of `config.json`, as from `model_dict`.
        specs: dicts, lists and tuples with `WeightSpec` leaves.
        seed: of the random weights.
        dtype: type of the weights, one of bfloat16, float16, float32.
        shards: number of files; None for files of at most 2 GiB, if tensors allow. Memory holds one
            file's tensors at a time.
        on_progress: called after each tensor with the number drawn and the total.

    Raises:
        CheckpointError: the folder is not empty, or cannot be written.
        ConfigError: `dtype` or `shards` is not possible.
    """
    leaves = list({spec.name: spec for spec in spec_leaves(specs)}.values())
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
            f"`{folder}` cannot be written ({brief(error)}): check free space and permissions, "
            "delete the folder, and try again"
        ) from error


def _check_writable(num_tensors: int, dtype: np.dtype[Any], shards: int | None) -> None:
    problems = []
    if dtype.type not in READABLE_DTYPES.values():
        problems.append(f"`dtype` is {dtype}, expected bfloat16, float16 or float32")
    if shards is not None and not 1 <= shards <= num_tensors:
        problems.append(f"`shards` is {shards}, expected 1 to {num_tensors}, the number of tensors")
    if problems:
        raise ConfigError("; ".join(problems))


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise CheckpointError(
            f"`{folder}` is not empty, expected a new or empty folder: delete its contents or "
            "choose another"
        )


def _group(leaves: list[WeightSpec], itemsize: int, shards: int | None) -> list[list[WeightSpec]]:
    """Tensors by file, in order: `shards` groups of nearly equal bytes, or as many as needed."""
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
    """Writes the whole file or nothing."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
