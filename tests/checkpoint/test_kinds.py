"""Checkpoints of all kinds score as transformers scores them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.by_transformers import QUERY, build, edit_config, error, load, start

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]
MAX_ERROR = 1e-4  # of a log-probability in float32


@pytest.mark.parametrize("same", [False, True], ids=["differs", "same"])
def test_a_head_beside_tied_embeddings_is_used_where_it_differs(
    same: bool, tmp_path: Path, cache_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    build("qwen3").save_pretrained(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    path = tmp_path / "model.safetensors"
    if same:
        weights = load_file(path)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, path, metadata={"format": "pt"})
    with caplog.at_level(logging.WARNING, "itemwise"):
        engine = start(tmp_path, cache_folder)
    assert error(engine, load(tmp_path)) < MAX_ERROR
    assert engine.model_config.tied == same
    assert ("`lm_head.weight` differs from the embedding" in caplog.text) != same


def test_a_head_whose_last_row_differs_is_seen(tmp_path: Path, cache_folder: str) -> None:
    from safetensors.torch import load_file, save_file

    build("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    head = weights["model.embed_tokens.weight"].clone()
    head[-1] += 1
    save_file(weights | {"lm_head.weight": head}, path, metadata={"format": "pt"})
    assert error(start(tmp_path, cache_folder), load(tmp_path)) < MAX_ERROR


def test_names_without_model_in_front_are_read(tmp_path: Path, cache_folder: str) -> None:
    model = build("qwen3", tie_word_embeddings=True)
    model.model.save_pretrained(tmp_path)  # the decoder alone
    assert error(start(tmp_path, cache_folder), model) < MAX_ERROR


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_float16_weights_keep_their_values(
    family: str, tmp_path: Path, cache_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    build(family).half().save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "itemwise"):
        engine = start(tmp_path, cache_folder)
    assert error(engine, load(tmp_path)) < MAX_ERROR
    assert "Weights are float16 on disk and float32 in memory" in caplog.text
    assert "Rounding" not in caplog.text


def test_what_is_rounded_is_told(
    tmp_path: Path, cache_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    build("qwen3").half().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "itemwise"):
        engine = start(tmp_path, cache_folder, dtype="bfloat16")
    assert engine.dtypes.weights.name == "bfloat16"
    assert "Rounding 25 of 25 tensors from float16 to bfloat16" in caplog.text


@pytest.mark.parametrize("stated", ["bfloat16", ...], ids=["misstated", "unstated"])
def test_float32_weights_count_whatever_the_config_states(
    stated: object, tmp_path: Path, cache_folder: str
) -> None:
    build("qwen2").save_pretrained(tmp_path)
    edit_config(tmp_path, dtype=stated)
    engine = start(tmp_path, cache_folder)
    assert error(engine, load(tmp_path)) < MAX_ERROR
    assert engine.dtypes.weights.name == "float32"


def test_bfloat16_weights_stay_bfloat16(
    tmp_path: Path, cache_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    build("qwen2").bfloat16().save_pretrained(tmp_path)
    edit_config(tmp_path, dtype=...)
    with caplog.at_level(logging.WARNING, "itemwise"):
        assert start(tmp_path, cache_folder).dtypes.weights.name == "bfloat16"
    assert not caplog.text


@pytest.mark.parametrize("window", [None, 512, 4096])
def test_mistral_without_a_window_in_reach(
    window: int | None, tmp_path: Path, cache_folder: str
) -> None:
    build("mistral", sliding_window=window).save_pretrained(tmp_path)
    engine = start(tmp_path, cache_folder)
    assert error(engine, load(tmp_path)) < MAX_ERROR
    assert engine.max_seq_len == 512


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_a_window_limits_the_length_of_sequences(
    family: str, tmp_path: Path, cache_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    window: dict[str, Any] = {
        "sliding_window": len(QUERY) + 40
    }  # the longest sequence of the test just fits
    if family == "qwen2":
        window |= {"use_sliding_window": True, "max_window_layers": 1}
    build(family, **window).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "itemwise"):
        engine = start(tmp_path, cache_folder)
    assert error(engine, load(tmp_path)) < MAX_ERROR
    assert engine.max_seq_len == len(QUERY) + 40
    assert "`sliding_window`" in caplog.text


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("types", [["full_attention"] * 2, None])
def test_windows_of_no_layer_are_accepted(
    family: str, types: list[str] | None, tmp_path: Path, cache_folder: str
) -> None:
    build(family).save_pretrained(tmp_path)
    edit_config(
        tmp_path,
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=2,
        layer_types=types,
    )
    assert error(start(tmp_path, cache_folder), load(tmp_path)) < MAX_ERROR


def test_the_models_own_limit_holds(
    tmp_path: Path, cache_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    build("qwen3").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "itemwise"):
        engine = start(tmp_path, cache_folder, max_multi_item_seq_len=32768)
    assert engine.max_seq_len == 512
    assert "`max_position_embeddings`" in caplog.text


def test_a_limit_beyond_all_pages_starts(tmp_path: Path, cache_folder: str) -> None:
    build("qwen2").save_pretrained(tmp_path)
    edit_config(tmp_path, max_position_embeddings=2**31 - 1)
    assert error(start(tmp_path, cache_folder), load(tmp_path)) < MAX_ERROR
