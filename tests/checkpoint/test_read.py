"""Checkpoints are checked and read; every fault is named in one error."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from itemwise.checkpoint.headers import (
    CONFIG_FILE,
    INDEX_FILE,
    WEIGHTS_FILE,
    Tensor,
    read_headers,
)
from itemwise.checkpoint.read import read_config, read_weights
from itemwise.checkpoint.shapes import model_dict
from itemwise.errors import CheckpointError, UnsupportedModelError
from itemwise.models.config import ModelConfig
from tests.checkpoint.tensors import BF16, FLAT, NAMES, SPECS, Array, failure, spec, whole


def save(folder: Path, tensors: Mapping[str, Array], name: str = WEIGHTS_FILE) -> Path:
    save_file(dict(tensors), folder / name)
    return folder


def save_sharded(folder: Path, tensors: Mapping[str, Array]) -> dict[str, str]:
    """Saves the first two tensors in `a.safetensors`, the others in `b.safetensors`."""
    names = list(tensors)
    weight_map = {
        name: "a.safetensors" if i < 2 else "b.safetensors" for i, name in enumerate(names)
    }
    for shard in ("a.safetensors", "b.safetensors"):
        save(folder, {n: tensors[n] for n in names if weight_map[n] == shard}, shard)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def save_raw(path: Path, dtypes: Mapping[str, tuple[str, list[int], int]]) -> None:
    """Writes zeros of any dtype, given as dtype, shape and bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, shape, size) in dtypes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


# read_config


def test_read_config_reads_the_shape(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(model_dict("tiny-qwen3")))
    assert read_config(tmp_path) == ModelConfig.from_hf(model_dict("tiny-qwen3"))


def test_read_config_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json` is missing"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "is a JSON list, expected an object"),
    ],
)
def test_read_config_names_a_damaged_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json` {message}"):
        read_config(tmp_path)


def test_read_config_names_the_file_with_a_value_of_a_wrong_kind(tmp_path: Path) -> None:
    raw = model_dict("tiny-qwen3") | {"rope_scaling": {"type": "default", "factor": "much"}}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="config.json` has a value of the wrong type.*much"):
        read_config(tmp_path)


def test_read_config_keeps_the_code_of_unsupported_models(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedModelError, match="`model_type` is 'gpt2'"):
        read_config(tmp_path)


# read_weights: what it reads


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [np.dtype(np.float32), BF16])
def test_read_weights_casts_each_dtype(tmp_path: Path, stored: Any, wanted: Any) -> None:
    tensors = whole(stored)
    read = read_weights(save(tmp_path, tensors), SPECS, wanted, lambda array, _: array)
    for got, name in [(read["embed"], "embed.weight"), (read["ends"][1], "bias")]:
        assert got.dtype == wanted
        np.testing.assert_array_equal(got, tensors[name].astype(wanted))


def test_read_weights_returns_a_tree_like_the_specs(tmp_path: Path) -> None:
    tensors = whole()
    read = read_weights(save(tmp_path, tensors), SPECS, np.float32, lambda array, _: array.tolist())
    assert read == {
        "embed": tensors["embed.weight"].tolist(),
        "layers": [{"w": tensors["layers.0.w"].tolist()}, {"w": tensors["layers.1.w"].tolist()}],
        "ends": (tensors["norm"].tolist(), tensors["bias"].tolist()),
    }


def test_read_weights_follows_an_index(tmp_path: Path) -> None:
    tensors = whole()
    save_sharded(tmp_path, tensors)
    read = read_weights(tmp_path, FLAT, np.float32, lambda array, _: array)
    for name, got in zip(NAMES, read, strict=True):
        np.testing.assert_array_equal(got, tensors[name])


def test_read_weights_takes_the_tensor_from_the_shard_that_the_index_names(tmp_path: Path) -> None:
    save(tmp_path, {"x": np.zeros(2, np.float32)}, "a.safetensors")
    save(tmp_path, {"x": np.ones(2, np.float32), "y": np.ones(2, np.float32)}, "b.safetensors")
    save(tmp_path, {"y": np.zeros(2, np.float32)}, "c.safetensors")
    weight_map = {"x": "a.safetensors", "y": "b.safetensors"}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    read = read_weights(
        tmp_path, [spec("x", 2), spec("y", 2)], np.float32, lambda array, _: array.tolist()
    )
    assert read == [[0.0, 0.0], [1.0, 1.0]]


def test_read_weights_hands_out_arrays_that_outlive_the_file(tmp_path: Path) -> None:
    tensors = whole()
    save(tmp_path, tensors)
    read = read_weights(tmp_path, SPECS, np.float32, lambda array, _: array)
    assert read["embed"].flags.writeable
    with (tmp_path / WEIGHTS_FILE).open("r+b") as file:  # in place: a map would see it
        file.write(bytes((tmp_path / WEIGHTS_FILE).stat().st_size))
    np.testing.assert_array_equal(read["embed"], tensors["embed.weight"])


def test_read_weights_reports_progress_after_each_tensor(tmp_path: Path) -> None:
    events: list[Any] = []
    read_weights(
        save(tmp_path, whole()),
        SPECS,
        np.float32,
        lambda array, _: events.append("put"),
        lambda *event: events.append(event),
    )
    reported = [event for event in events if event != "put"]
    assert reported == [("weights", done, 5) for done in range(1, 6)]
    assert events.count("put") == 5


@pytest.mark.parametrize("name", ["layers.0.rotary_emb.inv_freq", "lm_head.weight"])
def test_read_weights_skips_harmless_extras(tmp_path: Path, name: str) -> None:
    save(tmp_path, whole() | {name: np.zeros(3, np.float64)})
    assert read_weights(tmp_path, SPECS, np.float32, lambda array, _: array.shape)["embed"] == (
        8,
        4,
    )


def test_read_weights_reads_lm_head_where_it_is_asked_for(tmp_path: Path) -> None:
    save(tmp_path, {"lm_head.weight": np.ones((2, 2), np.float32)})
    read = read_weights(
        tmp_path, {"head": spec("lm_head.weight", 2, 2)}, BF16, lambda array, _: np.sum(array)
    )
    assert read["head"] == 4


# read_weights: what it refuses


def test_read_weights_reports_all_problems_at_once(tmp_path: Path) -> None:
    save_raw(
        tmp_path / WEIGHTS_FILE,
        {
            "embed.weight": ("F32", [4, 8], 128),
            "layers.0.w": ("I8", [4, 3], 12),
            "layers.1.w": ("F8_E4M3", [3, 4], 12),
            "norm": ("F32", [4], 16),
            "extra": ("F32", [1], 4),
        },
    )
    message = failure(tmp_path)
    assert f"`{tmp_path}`" in message
    assert "1 tensor missing: `bias`\n" in message
    assert "1 tensor unexpected: `extra`\n" in message
    assert (
        "2 tensors of the wrong shape: `embed.weight` is [4, 8], expected [8, 4], "
        "`layers.1.w` is [3, 4], expected [4, 3]\n"
    ) in message
    assert (
        "2 tensors of an unsupported dtype: `layers.0.w` is I8, expected F32, F16, BF16, "
        "`layers.1.w` is F8_E4M3, expected F32, F16, BF16\n"
    ) in message


def test_read_weights_caps_long_lists(tmp_path: Path) -> None:
    save(tmp_path, {f"extra{i:02}": np.zeros(1, np.float32) for i in range(25)})
    message = failure(tmp_path, [spec(f"gone{i:02}", 1) for i in range(12)])
    assert "12 tensors missing: `gone00`" in message
    assert "`gone09` and 2 more" in message
    assert "25 tensors unexpected: `extra00`" in message
    assert "`extra09` and 15 more" in message


def _damage(path: Path, damage: Callable[[bytes], bytes]) -> None:
    path.write_bytes(damage(path.read_bytes()))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:4],
        lambda content: content[:40],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: b"\xff" * len(content),
        lambda content: content[:8] + b"?" + content[9:],
        lambda content: content.replace(b'"F32"', b'"F99"', 1),
        lambda content: b"<html>404</html>" * 20,
    ],
)
def test_read_weights_names_a_damaged_file(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    save(tmp_path, whole())
    _damage(tmp_path / WEIGHTS_FILE, damage)
    message = failure(tmp_path)
    assert f"`{tmp_path / WEIGHTS_FILE}` is damaged or truncated" in message
    assert "download it again" in message


def test_a_file_that_is_cut_while_it_is_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the end of the process, which is how a read of a memory map would end."""
    save(tmp_path, whole())

    def then_cut(folder: Path) -> dict[str, Tensor]:
        found = read_headers(folder)
        os.truncate(folder / WEIGHTS_FILE, 400)
        return found

    monkeypatch.setattr("itemwise.checkpoint.read.read_headers", then_cut)
    assert "changed while it was read" in failure(tmp_path)


def test_read_weights_tells_a_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:")
    assert "`git lfs pull`" in failure(tmp_path)


def test_read_weights_names_every_bad_shard(tmp_path: Path) -> None:
    save_sharded(tmp_path, whole())
    (tmp_path / "a.safetensors").unlink()
    _damage(tmp_path / "b.safetensors", lambda content: content[:-1])
    message = failure(tmp_path)
    assert f"`{tmp_path / 'a.safetensors'}` is missing" in message
    assert f"`{tmp_path / 'b.safetensors'}` is damaged or truncated" in message


def test_read_weights_names_tensors_that_a_shard_lacks(tmp_path: Path) -> None:
    weight_map = save_sharded(tmp_path, whole())
    weight_map["norm"] = "a.safetensors"
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    message = failure(tmp_path)
    assert f"`{tmp_path / INDEX_FILE}` lists tensors that are missing in their shards" in message
    assert "`norm` in `a.safetensors`" in message


def test_read_weights_counts_tensors_that_the_index_forgets(tmp_path: Path) -> None:
    weight_map = save_sharded(tmp_path, whole() | {"zebra": np.zeros(1, np.float32)})
    del weight_map["zebra"]
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert "1 tensor unexpected: `zebra`" in failure(tmp_path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "is a JSON list"),
        ("{}", "has no `weight_map`"),
        ('{"weight_map": []}', "has no `weight_map`"),
        ('{"weight_map": {}}', "has no `weight_map`"),
        ('{"weight_map": {"norm": 3}}', "names 3, expected safetensors files in its own folder"),
        ('{"weight_map": {"norm": "../a.safetensors"}}', "names '../a.safetensors', expected"),
        ('{"weight_map": {"norm": "/a.safetensors"}}', "names '/a.safetensors', expected"),
        ('{"weight_map": {"norm": ""}}', "names '', expected"),
        ('{"weight_map": {"norm": ".."}}', "names '..', expected"),
        ('{"weight_map": {"norm": "model.bin"}}', "names 'model.bin', expected"),
    ],
)
def test_read_weights_names_a_bad_index(tmp_path: Path, index: str, message: str) -> None:
    save_sharded(tmp_path, whole())
    (tmp_path / INDEX_FILE).write_text(index)
    assert f"`{tmp_path / INDEX_FILE}` {message}" in failure(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_read_weights_refuses_pickle(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    message = failure(tmp_path)
    assert f"`{tmp_path}` has weights in pickle files only (`{name}`)" in message
    assert f"convert them to `{WEIGHTS_FILE}`" in message


def test_read_weights_names_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / CONFIG_FILE).write_text("{}")
    assert f"`{tmp_path}` has no weights, expected `{WEIGHTS_FILE}`" in failure(tmp_path)
    assert f"`{tmp_path / 'gone'}` is not a folder" in failure(tmp_path / "gone")
