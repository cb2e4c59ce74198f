"""Reads model folders: `config.json`, and weights from safetensors, never from pickle.

Headers are checked before any tensor is read, and one error reports every problem. Tensors are read
one at a time, so memory never holds a second copy of a model.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # also registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError, safe_open

from itemwise.errors import CheckpointError, UnsupportedModelError, brief
from itemwise.models.config import ModelConfig
from itemwise.progress import ProgressFn, silent
from itemwise.types import WeightSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
READABLE_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_LISTED = 10
_READERS = 8  # tensors read at a time: limits memory on machines with many cores


def read_config(folder: Path) -> ModelConfig:
    """The model's shape, from the folder's `config.json`.

    Raises:
        CheckpointError: the file is missing or damaged.
        UnsupportedModelError: the model is of an unsupported kind.
    """
    raw = _read_json(folder / CONFIG_FILE)
    try:
        return ModelConfig.from_hf(raw)
    except UnsupportedModelError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{folder / CONFIG_FILE}` has a value of the wrong type ({brief(error)}): restore "
            "the file that came with the model"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"`{path}` is missing: give the folder that contains it, or download the model again"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read as JSON ({brief(error)}): download it again"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"`{path}` is a JSON {type(raw).__name__}, expected an object: download it again"
        )
    return raw


class _Tensor(NamedTuple):
    """A tensor's entry in a file's header."""

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
    """A tree like `specs` with the tensors that it describes, each as `put` returns it.

    Args:
        folder: holds `model.safetensors`, or `model.safetensors.index.json` and its shards.
        specs: dicts, lists and (named) tuples with `WeightSpec` leaves, or None.
        dtype: type that `put` receives; on disk, F32, F16 and BF16 are read.
        put: takes an array and its spec; called from several threads. It owns the array, which
            shares no memory with a file.
        on_progress: called after each tensor with the number done and the total.

    Raises:
        CheckpointError: with all problems of the files or, if there are none, of the tensors.
    """
    leaves = list(spec_leaves(specs))
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


def spec_leaves(tree: Any) -> Iterator[WeightSpec]:
    """The leaves of a tree of dicts, lists and tuples, in order."""
    if isinstance(tree, WeightSpec):
        yield tree
        return
    if tree is None:
        return
    for child in tree.values() if isinstance(tree, Mapping) else tree:
        yield from spec_leaves(child)


def _map_leaves(function: Callable[[WeightSpec], Any], tree: Any) -> Any:
    if isinstance(tree, WeightSpec):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: _map_leaves(function, child) for key, child in tree.items()}
    if tree is None:
        return None
    children = [_map_leaves(function, child) for child in tree]
    if hasattr(tree, "_fields"):
        return type(tree)(*children)
    return children if isinstance(tree, list) else tuple(children)


def _read_tensor(tensor: _Tensor, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
    # The file is opened again for each tensor: an open map keeps everything it read in memory.
    try:
        with safe_open(tensor.file, framework="numpy") as file:
            return np.array(file.get_tensor(name), dtype=dtype, order="C", copy=True)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"`{tensor.file}` changed while it was read: try again") from error


def _read_headers(folder: Path) -> dict[str, _Tensor]:
    """Every tensor of the folder's files, by name. An index, if there is one, chooses the file."""
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
            f"`{folder / INDEX_FILE}` lists tensors that are missing in their shards: "
            f"{_listed(strays)}; download the index and the shards again"
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
            advice = "it is a Git LFS pointer, get the file itself with `git lfs pull`"
        raise CheckpointError(
            f"`{path}` is damaged or truncated ({brief(error)}): {advice}"
        ) from error


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(30).startswith(b"version https://git-lfs")
    except OSError:
        return False


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"`{folder}` is not a folder: give the folder that contains the model"
    names = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if names:
        return (
            f"`{folder}` has weights in pickle files only ({_listed([f'`{n}`' for n in names])}), "
            f"which can run code and are never read: convert them to `{WEIGHTS_FILE}`"
        )
    return (
        f"`{folder}` has no weights, expected `{WEIGHTS_FILE}` or `{INDEX_FILE}`: give the "
        "folder that contains them"
    )


def _check_tensors(folder: Path, leaves: list[WeightSpec], found: dict[str, _Tensor]) -> None:
    wanted = {spec.name: spec for spec in leaves}
    present = {name: tensor for name, tensor in found.items() if name in wanted}
    kinds = {
        "missing": [f"`{name}`" for name in wanted if name not in found],
        "unexpected": [
            f"`{name}`" for name in found if name not in wanted and not _is_harmless(name)
        ],
        "of the wrong shape": [
            f"`{name}` is {list(tensor.shape)}, expected {list(wanted[name].shape)}"
            for name, tensor in present.items()
            if tensor.shape != wanted[name].shape
        ],
        "of an unsupported dtype": [
            f"`{name}` is {tensor.dtype}, expected {', '.join(READABLE_DTYPES)}"
            for name, tensor in present.items()
            if tensor.dtype not in READABLE_DTYPES
        ],
    }
    problems = [
        f"{len(names)} tensor{'s'[: len(names) > 1]} {kind}: {_listed(names)}"
        for kind, names in kinds.items()
        if names
    ]
    if problems:
        raise CheckpointError(
            f"`{folder}` has weights that do not match its `{CONFIG_FILE}`:\n  "
            + "\n  ".join(problems)
            + "\nCheck that both belong to the same unquantised model, or download "
            f"`{folder.name}` again."
        )


def _is_harmless(name: str) -> bool:
    """Whether a tensor is not needed: computed here anyway, or a second copy of tied embeddings."""
    return name.endswith(".rotary_emb.inv_freq") or name == "lm_head.weight"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")
