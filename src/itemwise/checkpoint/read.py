"""Reads model folders: `config.json`, and weights from safetensors, never from pickle.

Headers are checked before any tensor is read, and one error reports every problem. Tensors are read
one at a time, so memory never holds a second copy of a model.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes  # also registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from numpy.typing import DTypeLike, NDArray

from itemwise.checkpoint.headers import (
    CONFIG_FILE,
    EMBEDDING,
    HEAD,
    Tensor,
    listed,
    read_headers,
    read_json,
)
from itemwise.errors import CheckpointError, UnsupportedModelError, brief
from itemwise.models.config import ModelConfig
from itemwise.models.config_fields import unknown_arithmetic
from itemwise.progress import ProgressFn, silent
from itemwise.types import WeightSpec

READABLE_DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

_COMPARED_ROWS = 4096  # of two matrices at a time: limits memory
_READERS = 8  # tensors read at a time: limits memory on machines with many cores
logger = logging.getLogger("itemwise.checkpoint")


def read_config(folder: Path) -> ModelConfig:
    """The model's shape, from the folder's `config.json`.

    Raises:
        CheckpointError: the file is missing or damaged.
        UnsupportedModelError: the model is of an unsupported kind.
    """
    return _parse(folder, read_json(folder / CONFIG_FILE))


def _parse(folder: Path, raw: Mapping[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.from_hf(raw)
    except UnsupportedModelError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{folder / CONFIG_FILE}` has a value of the wrong type ({brief(error)}): restore "
            "the file that came with the model"
        ) from error


def read_model(folder: Path) -> ModelConfig:
    """The model as its `config.json` states it and as its tensors correct it.

    An output matrix that differs from the embedding is used, even if the config says that the two
    are one, as transformers does. `dtype` is the widest type of the matrices.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedModelError: the model is of an unsupported kind.
    """
    raw = read_json(folder / CONFIG_FILE)
    model = _parse(folder, raw)
    found = read_headers(folder)
    if model.tied and _has_own_head(found):
        logger.warning(
            "`%s` says `tie_word_embeddings`, but `%s` differs from the embedding; using it.",
            CONFIG_FILE,
            HEAD,
        )
        model = replace(model, tied=False)
    odd = unknown_arithmetic(raw)
    if odd:
        logger.warning(
            "`%s` has fields that are not known and may change scores: %s. Compare some scores "
            "with another implementation.",
            CONFIG_FILE,
            listed([f"`{name}`" for name in odd]),
        )
    return replace(model, dtype=_widest_dtype(found) or model.dtype)


def _widest_dtype(found: Mapping[str, Tensor]) -> str | None:
    """The type that holds the values of every matrix; None if none is readable."""
    kinds = {tensor.dtype for tensor in found.values() if len(tensor.shape) == 2}
    if "F32" in kinds or {"F16", "BF16"} <= kinds:
        return "float32"
    if "F16" in kinds:
        return "float16"
    return "bfloat16" if "BF16" in kinds else None


def _has_own_head(found: Mapping[str, Tensor]) -> bool:
    """Whether there is an output matrix with other values than the embedding."""
    if HEAD not in found or EMBEDDING not in found:
        return False
    head, embedding = found[HEAD], found[EMBEDDING]
    if head.shape != embedding.shape or len(head.shape) != 2:
        return True
    if head.dtype not in READABLE_DTYPES or embedding.dtype not in READABLE_DTYPES:
        return True
    for start in range(0, head.shape[0], _COMPARED_ROWS):
        end = min(start + _COMPARED_ROWS, head.shape[0])
        if not np.array_equal(_read_rows(head, start, end), _read_rows(embedding, start, end)):
            return True
    return False


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
    found = read_headers(folder)
    _check_tensors(folder, leaves, found)
    _note_rounding([found[spec.name] for spec in leaves], np.dtype(dtype))

    def load(spec: WeightSpec) -> Any:
        return put(_read_tensor(found[spec.name], np.dtype(dtype)), spec)

    loaded: list[Any] = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _READERS)) as pool:
        for one in pool.map(load, leaves):
            loaded.append(one)
            on_progress("weights", len(loaded), len(leaves))
    in_order = iter(loaded)
    return _map_leaves(lambda _: next(in_order), specs)


def _note_rounding(tensors: Sequence[Tensor], dtype: np.dtype[Any]) -> None:
    """Says so if values lose precision on their way to memory."""
    kinds = sorted({tensor.dtype for tensor in tensors} - {"BF16"})
    if dtype != ml_dtypes.bfloat16 or not kinds:
        return
    names = " and ".join(np.dtype(READABLE_DTYPES[kind]).name for kind in kinds)
    logger.warning(
        "Rounding %d of %d tensors from %s to bfloat16. `--dtype float32` keeps their values, in "
        "twice the memory.",
        sum(tensor.dtype in kinds for tensor in tensors),
        len(tensors),
        names,
    )


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


def _read_tensor(tensor: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    return _read_rows(tensor, 0, tensor.shape[0]).astype(dtype, copy=False)


def _read_rows(tensor: Tensor, start: int, end: int) -> NDArray[Any]:
    """Some rows of a tensor, in its own type.

    Not by a memory map, which would keep in memory what was read, and whose reader the kernel ends
    if another process cuts the file.
    """
    dtype = np.dtype(READABLE_DTYPES[tensor.dtype])
    row = math.prod(tensor.shape[1:]) * dtype.itemsize
    size = (end - start) * row
    try:
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset + start * row)
            content = np.fromfile(file, np.uint8, size)
    except OSError as error:
        raise CheckpointError(f"`{tensor.file}` cannot be read ({brief(error)})") from error
    if len(content) != size:
        raise CheckpointError(f"`{tensor.file}` changed while it was read: try again")
    rows: NDArray[Any] = content.view(dtype).reshape(end - start, *tensor.shape[1:])
    return rows


def _check_tensors(folder: Path, leaves: list[WeightSpec], found: dict[str, Tensor]) -> None:
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
        f"{len(names)} tensor{'s'[: len(names) > 1]} {kind}: {listed(names)}"
        for kind, names in kinds.items()
        if names
    ]
    if any(name.startswith("base_model.") for name in found):
        problems.append(
            "names begin with `base_model.`, as in a LoRA adapter that was not merged: save the "
            "model after `merge_and_unload` of peft"
        )
    if problems:
        raise CheckpointError(
            f"`{folder}` has weights that do not match its `{CONFIG_FILE}`:\n  "
            + "\n  ".join(problems)
            + "\nCheck that both belong to the same unquantised model, or download "
            f"`{folder.name}` again."
        )


def _is_harmless(name: str) -> bool:
    """Whether a tensor is not needed: computed here anyway, or a second copy of tied embeddings."""
    return name.endswith(".rotary_emb.inv_freq") or name == HEAD
