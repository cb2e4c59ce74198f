"""Odd files are refused in a short message, at once, and by what they are."""

from __future__ import annotations

import json
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from itemwise.checkpoint.headers import CONFIG_FILE, WEIGHTS_FILE
from itemwise.checkpoint.read import read_model, read_weights
from itemwise.checkpoint.shapes import model_dict
from itemwise.checkpoint.write import write_random
from itemwise.errors import CheckpointError
from itemwise.models.config import ModelConfig
from itemwise.models.decoder import describe_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    config = model_dict("tiny-qwen3", vocab_size=40)
    specs = describe_weights(ModelConfig.from_hf(config))
    write_random(tmp_path / "model", config, specs, seed=0, dtype=np.float32)
    return tmp_path / "model"


def refusal(folder: Path) -> str:
    """Why the folder cannot be read."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(folder, describe_weights(read_model(folder)), np.float32, lambda *_: None)
    return str(caught.value)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize(
    "put",
    [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)],
    ids=["pipe", "folder", "device"],
)
def test_what_is_no_regular_file_is_not_opened(
    name: str, put: Callable[[Path], Any], folder: Path
) -> None:
    (folder / name).unlink()
    put(folder / name)
    assert refusal(folder).startswith(f"`{folder / name}` is not a regular file: ")


def test_an_oversized_config_is_not_read(folder: Path) -> None:
    path = folder / CONFIG_FILE
    path.write_text(path.read_text() + " " * (1 << 25))
    assert "expected at most 33554432" in refusal(folder)


def test_an_oversized_header_is_not_read(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, padding = raw[8 : 8 + size], b" " * (1 << 25)
    path.write_bytes(struct.pack("<Q", size + len(padding)) + header + padding + raw[8 + size :])
    assert f"a header of {size + len(padding)} bytes, expected at most" in refusal(folder)


def test_odd_names_stay_in_one_short_line(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    odd = {"FORGED\n" * 100: np.zeros(1, np.float32), "x\u2028\x1b": np.zeros(1, np.float32)}
    save_file(tensors | odd, folder / WEIGHTS_FILE)
    said = refusal(folder)
    assert "2 tensors unexpected" in said
    assert "FORGED\\nFORGED" in said
    assert "x\\u2028\\x1b" in said
    assert not {"\u2028", "\x1b"} & set(said)
    assert len(said) < 700


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_called_an_adapter(with_config: bool, folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    if not with_config:
        (folder / CONFIG_FILE).unlink()
    assert "holds a LoRA adapter" in refusal(folder)
    assert "merge_and_unload" in refusal(folder)


def test_names_of_an_adapter_are_recognised(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    wrapped = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(wrapped, folder / WEIGHTS_FILE)
    assert "a LoRA adapter that was not merged" in refusal(folder)


def test_a_folder_of_gguf_files_is_recognised(folder: Path) -> None:
    (folder / CONFIG_FILE).unlink()
    (folder / "model-Q4_K_M.gguf").touch()
    assert f"give one of them, like `{folder}/model-Q4_K_M.gguf`" in refusal(folder)


def test_unknown_arithmetic_is_named_in_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = json.loads((folder / CONFIG_FILE).read_text()) | {"final_logit_softcap": 30.0}
    (folder / CONFIG_FILE).write_text(json.dumps(raw))
    with caplog.at_level(logging.WARNING, "itemwise"):
        read_model(folder)
    assert "may change scores: `final_logit_softcap`" in caplog.text
