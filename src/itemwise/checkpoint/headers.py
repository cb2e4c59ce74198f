"""Reads what model folders say of themselves: JSON files, and the headers of safetensors files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from itemwise.errors import CheckpointError, brief

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WITHOUT_PREFIX = (HEAD,)  # tensors beside the decoder

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_ADAPTER_FILE = "adapter_config.json"
_MAX_LISTED, _MAX_NAME = 10, 160
_MAX_JSON_BYTES = _MAX_HEADER_BYTES = 1 << 25  # 100 bytes a tensor are usual


def check_regular(path: Path) -> None:
    """Returns if there is nothing of that name, or a file: opening a pipe or a device may hang.

    Raises:
        CheckpointError: it is a folder, a pipe, a device or the like.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"`{path}` is not a regular file: put the file itself in its place")


def _no_json(path: Path) -> str:
    """Why a JSON file that every model has is missing."""
    folder = path.parent
    if (folder / _ADAPTER_FILE).is_file():
        return (
            f"`{folder}` holds a LoRA adapter ({_ADAPTER_FILE}), not a whole model: merge it into "
            "its base model, by `merge_and_unload` of peft, and give the merged folder"
        )
    if names := sorted(p.name for p in folder.glob("*.gguf")):
        return f"`{folder}` holds GGUF files: give one of them, like `{folder / names[0]}`"
    return f"`{path}` is missing: give the folder that contains it, or download the model again"


class Tensor(NamedTuple):
    """A tensor's entry in a file's header; `offset` is where its first byte is in the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, damaged or holds something else.
    """
    check_regular(path)
    if path.exists() and path.stat().st_size > _MAX_JSON_BYTES:
        raise CheckpointError(
            f"`{path}` has {path.stat().st_size} bytes, expected at most {_MAX_JSON_BYTES}: "
            "download it again"
        )
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(_no_json(path)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read as JSON ({brief(error)}): download it again"
        ) from error
    if not isinstance(raw, dict):
        raise CheckpointError(
            f"`{path}` is a JSON {type(raw).__name__}, expected an object: download it again"
        )
    return raw


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder's files, by the name that the whole model gives it.

    An index, if there is one, chooses the file. Weights that were saved from the bare decoder have
    names without `model.`.
    """
    found = _read_all_headers(folder)
    if EMBEDDING in found or EMBEDDING.removeprefix("model.") not in found:
        return found
    return {
        name if name in WITHOUT_PREFIX else f"model.{name}": tensor
        for name, tensor in found.items()
    }


def _read_all_headers(folder: Path) -> dict[str, Tensor]:
    if (folder / WEIGHTS_FILE).exists():
        return _read_header(folder / WEIGHTS_FILE)
    if not (folder / INDEX_FILE).exists():
        raise CheckpointError(_no_weights(folder))
    index = _read_index(folder / INDEX_FILE)
    shards: dict[str, dict[str, Tensor]] = {}
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
            f"{listed(strays)}; download the index and the shards again"
        )
    found = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    return found | {name: shards[shard][name] for name, shard in index.items()}


def _read_index(path: Path) -> dict[str, str]:
    """The index's `weight_map`: file name by tensor name."""
    weight_map = read_json(path).get("weight_map")
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
            f"`{path}` names {listed(odd)}, expected safetensors files in its own folder: "
            "download it again"
        )
    return weight_map


def _read_header(path: Path) -> dict[str, Tensor]:
    try:
        check_regular(path)
        size = _header_size(path)
        with safe_open(path, framework="numpy"):  # checks the header, and the file's size by it
            entries = _read_entries(path, size)
        return {
            name: Tensor(
                path, name, one["dtype"], tuple(one["shape"]), 8 + size + one["data_offsets"][0]
            )
            for name, one in entries.items()
        }
    except FileNotFoundError as error:
        raise CheckpointError(f"`{path}` is missing: download it again") from error
    except (OSError, SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        advice = "download it again"
        if _is_lfs_pointer(path):
            advice = "it is a Git LFS pointer, get the file itself with `git lfs pull`"
        raise CheckpointError(
            f"`{path}` is damaged or truncated ({brief(error)}): {advice}"
        ) from error


def _read_entries(path: Path, size: int) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(8)
        entries: dict[str, Any] = json.loads(file.read(size))
    entries.pop("__metadata__", None)
    return entries


def _header_size(path: Path) -> int:
    """Bytes of the header; one that no model has is refused before a library reads it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if _MAX_HEADER_BYTES < size <= path.stat().st_size:
        raise CheckpointError(
            f"`{path}` has a header of {size} bytes, expected at most {_MAX_HEADER_BYTES}: "
            "download it again"
        )
    return size


def _is_lfs_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(30).startswith(b"version https://git-lfs")
    except OSError:
        return False


def _no_weights(folder: Path) -> str:
    if not folder.is_dir():
        return f"`{folder}` is not a folder: give the folder that contains the model"
    if (folder / _ADAPTER_FILE).is_file():
        return _no_json(folder / CONFIG_FILE)
    names = sorted(f"`{p.name}`" for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if names:
        return (
            f"`{folder}` has weights in pickle files only ({listed(names)}), "
            f"which can run code and are never read: convert them to `{WEIGHTS_FILE}`"
        )
    return (
        f"`{folder}` has no weights, expected `{WEIGHTS_FILE}` or `{INDEX_FILE}`: give the "
        "folder that contains them"
    )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are; each in one short line."""
    names = [_in_one_line(name) for name in names]
    more = len(names) - _MAX_LISTED
    return ", ".join(names[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _in_one_line(name: str) -> str:
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in name[:_MAX_NAME])
    return shown if len(name) <= _MAX_NAME else f"{shown}..."
