"""Random checkpoints are written, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from itemwise.checkpoint import write as writer
from itemwise.checkpoint.headers import CONFIG_FILE, INDEX_FILE
from itemwise.checkpoint.read import read_config, read_weights
from itemwise.checkpoint.shapes import model_dict
from itemwise.checkpoint.write import write_random
from itemwise.errors import CheckpointError, ConfigError
from tests.checkpoint.tensors import BF16, FLAT, NAMES, SPECS, Array, failure, spec


def write(folder: Path, specs: Any = SPECS, seed: int = 1, **options: Any) -> dict[str, Array]:
    """Writes a checkpoint and returns all its tensors as another library reads them."""
    options = {"dtype": np.float32} | options
    write_random(folder, model_dict("tiny-qwen3"), specs, seed=seed, **options)
    loaded: dict[str, Array] = {}
    for path in folder.glob("*.safetensors"):
        loaded |= load_file(path)
    return loaded


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), np.dtype(np.float16), BF16])
@pytest.mark.parametrize("shards", [None, 1, 2, 5])
def test_write_random_can_be_read_back(tmp_path: Path, dtype: Any, shards: int | None) -> None:
    written = write(tmp_path, dtype=dtype, shards=shards)
    read = read_weights(tmp_path, FLAT, dtype, lambda array, _: array)
    for name, got in zip(NAMES, read, strict=True):
        assert written[name].dtype == dtype
        np.testing.assert_array_equal(got, written[name])
    assert read_config(tmp_path).dtype == dtype.name
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}  # which some versions of transformers demand


def test_write_random_depends_on_seed_and_name_alone(tmp_path: Path) -> None:
    first = write(tmp_path / "a")
    backwards = write(tmp_path / "b", {"all": FLAT[::-1]}, shards=3)
    for name, tensor in first.items():
        np.testing.assert_array_equal(tensor, backwards[name])
    other = write(tmp_path / "c", seed=2)
    assert not any(np.array_equal(tensor, other[name]) for name, tensor in first.items())
    assert not np.array_equal(first["layers.0.w"], first["layers.1.w"])


def test_write_random_rounds_the_same_numbers(tmp_path: Path) -> None:
    exact = write(tmp_path / "a")
    for name, tensor in write(tmp_path / "b", dtype=BF16).items():
        np.testing.assert_array_equal(tensor, exact[name].astype(BF16))


def test_write_random_draws_what_the_specs_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_DRAW_CHUNK", 3000)  # several chunks, the last one short
    specs = [
        spec("normal", 100, 100, scale=0.3),
        spec("gain", 10_000, init="gain", scale=1.5),
        spec("bias", 10_000, init="bias", scale=2.0),
    ]
    drawn = write(tmp_path, specs)
    for name, mean, deviation in [("normal", 0.0, 0.3), ("gain", 1.5, 0.15), ("bias", 0.0, 2.0)]:
        # Five standard errors of the mean and of the deviation of 10000 numbers.
        assert abs(drawn[name].mean() - mean) < 0.05 * deviation
        assert abs(drawn[name].std() / deviation - 1) < 0.036
        assert len(np.unique(drawn[name])) > 9900


def test_write_random_splits_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", 100)
    write(tmp_path)  # 128, 48, 48, 16 and 16 bytes
    weight_map = json.loads((tmp_path / INDEX_FILE).read_text())["weight_map"]
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert list(weight_map.items()) == list(
        zip(NAMES, [files[0], files[1], files[1], files[2], files[2]], strict=True)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*files, INDEX_FILE, CONFIG_FILE]
    )


def test_write_random_writes_equal_shards(tmp_path: Path) -> None:
    specs = [spec(f"w{i}", 16, 16) for i in range(8)]
    write(tmp_path, specs, shards=4)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["metadata"]["total_size"] == 8 * 16 * 16 * 4
    assert sorted(index["weight_map"].values()) == [
        f"model-0000{i}-of-00004.safetensors" for i in (1, 1, 2, 2, 3, 3, 4, 4)
    ]


def test_write_random_reports_progress(tmp_path: Path) -> None:
    events: list[tuple[str, int, int]] = []
    write(tmp_path, shards=2, on_progress=lambda *event: events.append(event))
    assert events == [("weights", done, 5) for done in range(1, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": np.int8}, "`dtype` is int8, expected bfloat16, float16 or float32"),
        ({"shards": 0}, "`shards` is 0, expected 1 to 5"),
        ({"shards": 6}, "`shards` is 6, expected 1 to 5"),
    ],
)
def test_write_random_refuses_bad_options(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_write_random_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=f"`{tmp_path}` is not empty, expected a new or"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_write_random_names_a_folder_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file/model` cannot be written"):
        write(tmp_path / "file" / "model")


@pytest.mark.parametrize("last", [1, 3, 5])
def test_write_random_leaves_no_whole_looking_folder_when_stopped(
    tmp_path: Path, last: int
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, shards=5, on_progress=stop)
    with pytest.raises(CheckpointError, match="config.json` is missing"):
        read_config(tmp_path)
    assert "has no weights" in failure(tmp_path)


def test_write_random_writes_the_config_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    write_json = writer._write_json

    def record(path: Path, content: Mapping[str, Any]) -> None:
        written.append((path.name, len(list(tmp_path.glob("*.safetensors")))))
        write_json(path, content)

    monkeypatch.setattr(writer, "_write_json", record)
    write(tmp_path, shards=2)
    assert written == [(INDEX_FILE, 2), (CONFIG_FILE, 2)]
