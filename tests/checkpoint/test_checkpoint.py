"""Checkpoints: found, checked, read and written; every fault is named in one error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from itemwise.checkpoint import read as checkpoint
from itemwise.checkpoint.read import (
    CONFIG_FILE,
    INDEX_FILE,
    NAMED_SHAPES,
    WEIGHTS_FILE,
    locate,
    model_dict,
    read_config,
    read_weights,
    write_random,
)
from itemwise.errors import CheckpointError, ConfigError, UnsupportedModelError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights
from itemwise.types import WeightSpec

Array = NDArray[Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
TINY = sorted(name for name in NAMED_SHAPES if name.startswith("tiny-"))


def spec(name: str, *shape: int, init: Any = "normal", scale: float = 0.5) -> WeightSpec:
    return WeightSpec(name, shape, ("any",) * len(shape), init, scale)


FLAT = [
    spec("embed.weight", 8, 4),
    spec("layers.0.w", 4, 3),
    spec("layers.1.w", 4, 3),
    spec("norm", 4, init="gain", scale=1.5),
    spec("bias", 4, init="bias"),
]
NAMES = [leaf.name for leaf in FLAT]
# The same in a tree with every kind of node that `read_weights` takes.
SPECS = {"embed": FLAT[0], "layers": [{"w": FLAT[1]}, {"w": FLAT[2]}], "ends": (FLAT[3], FLAT[4])}


def whole(dtype: Any = np.float32) -> dict[str, Array]:
    """Tensors that fit `SPECS`, all values apart from each other."""
    random = np.random.default_rng(0)
    return {leaf.name: random.normal(size=leaf.shape).astype(dtype) for leaf in FLAT}


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


def refuse_put(_: Array, __: WeightSpec) -> Array:
    raise AssertionError("a tensor was read although headers tell that the checkpoint is bad")


def failure(folder: Path, specs: Any = SPECS) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_weights(folder, specs, np.float32, refuse_put)
    assert caught.value.code == "invalid_checkpoint"
    return str(caught.value)


# locate


def test_locate_takes_a_local_folder(tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == tmp_path


def test_locate_expands_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert locate("~/model") == tmp_path / "model"


@pytest.mark.parametrize(
    "model", ["/no/such/folder", "./missing", "../missing", "~/missing", "a/b/c", "a b", "", "a/.."]
)
def test_locate_refuses_what_is_no_path_and_no_hub_id(model: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist, expected a model folder or a") as e:
        locate(model)
    assert f"`{model}`" in str(e.value)


def test_locate_refuses_a_file(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_FILE
    path.touch()
    with pytest.raises(CheckpointError, match="is a file, expected the model's folder"):
        locate(str(path))


def test_locate_downloads_neither_pickle_nor_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(repo_id: str, **options: Any) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("Qwen/Qwen3-0.6B") == tmp_path
    assert asked["repo_id"] == "Qwen/Qwen3-0.6B"
    files = ["model.safetensors", "tokenizer.json", CONFIG_FILE, INDEX_FILE, "chat_template.jinja"]
    others = ["pytorch_model.bin", "modeling.py", "model.gguf", "onnx/config.json", "x.pt"]
    kept = [
        name
        for name in files + others
        if any(fnmatch(name, pattern) for pattern in asked["allow_patterns"])
        and not any(fnmatch(name, pattern) for pattern in asked["ignore_patterns"])
    ]
    assert kept == files


def hub_error(kind: str) -> Exception:
    from huggingface_hub import errors

    # `__new__` alone: these two want the response of an HTTP library that differs by version.
    return {
        "gated": errors.GatedRepoError.__new__(errors.GatedRepoError),
        "absent": errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError),
        "offline": errors.LocalEntryNotFoundError("offline mode is on"),
        "network": OSError("cable cut"),
    }[kind]


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("gated", "accept them on https://huggingface.co/org/model"),
        ("absent", "check the spelling"),
        ("offline", r"\(offline mode is on\): check the network"),
        ("network", r"\(cable cut\): check the network"),
    ],
)
def test_locate_says_what_to_do_when_the_hub_fails(
    kind: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise hub_error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match=f"`org/model` is not a local folder.*{advice}"):
        locate("org/model")


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
        (b"[]", "holds a JSON list, expected an object"),
    ],
)
def test_read_config_names_a_damaged_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"config.json` {message}"):
        read_config(tmp_path)


def test_read_config_names_the_file_with_a_value_of_a_wrong_kind(tmp_path: Path) -> None:
    raw = model_dict("tiny-qwen3") | {"rope_theta": "much"}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="config.json` holds a value of a wrong kind.*much"):
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
    assert read["embed"].flags.owndata
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
    told = [event for event in events if event != "put"]
    assert told == [("weights", done, 5) for done in range(1, 6)]
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
        "2 tensors of a wrong shape: `embed.weight` is [4, 8], expected [8, 4], "
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
    assert f"`{tmp_path / WEIGHTS_FILE}` is damaged or cut short" in message
    assert "download it again" in message


def test_read_weights_tells_a_git_lfs_pointer(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:")
    assert "`git lfs pull`" in failure(tmp_path)


def test_read_weights_names_every_bad_shard(tmp_path: Path) -> None:
    save_sharded(tmp_path, whole())
    (tmp_path / "a.safetensors").unlink()
    _damage(tmp_path / "b.safetensors", lambda content: content[:-1])
    message = failure(tmp_path)
    assert f"`{tmp_path / 'a.safetensors'}` is missing" in message
    assert f"`{tmp_path / 'b.safetensors'}` is damaged or cut short" in message


def test_read_weights_names_tensors_that_a_shard_lacks(tmp_path: Path) -> None:
    weight_map = save_sharded(tmp_path, whole())
    weight_map["norm"] = "a.safetensors"
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    message = failure(tmp_path)
    assert f"`{tmp_path / INDEX_FILE}` names tensors that their shards lack" in message
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
        ("[]", "holds a JSON list"),
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


# write_random


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
    monkeypatch.setattr(checkpoint, "_DRAW_CHUNK", 3000)  # several chunks, the last one short
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
    monkeypatch.setattr(checkpoint, "MAX_SHARD_BYTES", 100)
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
    write_json = checkpoint._write_json

    def record(path: Path, content: Mapping[str, Any]) -> None:
        written.append((path.name, len(list(tmp_path.glob("*.safetensors")))))
        write_json(path, content)

    monkeypatch.setattr(checkpoint, "_write_json", record)
    write(tmp_path, shards=2)
    assert written == [(INDEX_FILE, 2), (CONFIG_FILE, 2)]


# Known shapes


def test_model_dict_lists_the_names_it_knows() -> None:
    with pytest.raises(ConfigError, match="`gpt-5` is no known shape.*qwen3-0.6b.*tiny-llama"):
        model_dict("gpt-5")
    with pytest.raises(ConfigError, match="`vocab_size` is 0, expected 1 or more"):
        model_dict("tiny-qwen3", vocab_size=0)


def test_model_dict_returns_a_copy() -> None:
    model_dict("tiny-llama", vocab_size=7, dtype="float32")["rope_scaling"]["factor"] = 99.0
    assert NAMED_SHAPES["tiny-llama"]["rope_scaling"]["factor"] == 4.0
    assert NAMED_SHAPES["tiny-llama"]["vocab_size"] == 151936
    changed = ModelConfig.from_hf(model_dict("tiny-llama", vocab_size=7, dtype="float32"))
    assert (changed.vocab_size, changed.dtype) == (7, "float32")


# Parameters as model cards give them, in billions, the tied output matrix counted once.
@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen3-0.6b", 0.596),
        ("qwen3-1.7b", 1.721),
        ("qwen3-4b", 4.022),
        ("qwen3-8b", 8.191),
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.544),
        ("qwen2.5-3b", 3.086),
        ("llama-3.2-1b", 1.236),
    ],
)
def test_named_shapes_have_the_size_of_the_real_model(name: str, billions: float) -> None:
    specs = describe_weights(ModelConfig.from_hf(model_dict(name)))
    count = sum(int(np.prod(leaf.shape)) for leaf in checkpoint._leaves(specs))
    assert round(count / 1e9, 3) == billions


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_are_small_and_fit_real_token_ids(name: str) -> None:
    config = ModelConfig.from_hf(model_dict(name))
    count = sum(int(np.prod(leaf.shape)) for leaf in checkpoint._leaves(describe_weights(config)))
    assert count * 2 < 40e6
    assert config.vocab_size == 151936
    assert config.num_heads > config.num_kv_heads > 1
    assert config.num_heads * config.head_dim > config.hidden_size


@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_a_random_checkpoint(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    raw = model_dict(name, vocab_size=64)
    config = ModelConfig.from_hf(raw)
    write_random(tmp_path, raw, describe_weights(config), seed=3, shards=2)
    transformers.utils.logging.disable_progress_bar()
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert type(model).__name__ == raw["architectures"][0]
    assert model.dtype == torch.bfloat16
    theirs = model.model.layers[0].self_attn.q_proj.weight.float().detach().numpy()
    ours = read_weights(tmp_path, describe_weights(config), np.float32, lambda array, _: array)
    np.testing.assert_array_equal(ours["layers"][0]["q"], theirs)
    assert model.config.rope_parameters["rope_type"] == config.rope_scaling.kind
    assert model.config.rope_parameters["rope_theta"] == config.rope_theta
