"""Settings of engine and server: defaults, and refusals that name their fields."""

from __future__ import annotations

import os
import tempfile
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from itemwise.config import EngineConfig, ServerConfig, cache_dir
from itemwise.errors import ConfigError

# EngineConfig


def test_engine_defaults_are_the_fast_exact_path() -> None:
    config = EngineConfig()
    assert config.multi_item_algorithm == "prefill_extend"
    assert not config.disable_radix_cache
    assert not config.skip_self_check


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "int8"}, "`dtype` is 'int8', expected one of auto, bfloat16, float32"),
        ({"multi_item_algorithm": "pack"}, "`multi_item_algorithm` is 'pack', expected one of"),
        ({"multi_item_mask_impl": "banded"}, "`multi_item_mask_impl` is 'banded', expected one of"),
        ({"tp_size": 0}, "`tp_size` is 0, expected 1 or more"),
        ({"multi_item_algorithm": "magic"}, "`multi_item_algorithm` is 'magic', expected one of"),
        (
            {"multi_item_scoring_chunk_size": -1},
            "`multi_item_scoring_chunk_size` is -1, expected 0 or",
        ),
        ({"max_multi_item_seq_len": 0}, "`max_multi_item_seq_len` is 0, expected 1 or more"),
        ({"max_multi_item_count": 0}, "`max_multi_item_count` is 0, expected 1 or more"),
        ({"step_lanes": 0}, "`step_lanes` is 0, expected 1 or more"),
        ({"mem_fraction_static": 0.0}, "`mem_fraction_static` is 0.0, expected above 0, at most 1"),
        ({"mem_fraction_static": 1.01}, "`mem_fraction_static` is 1.01"),
        ({"mem_fraction_static": float("nan")}, "`mem_fraction_static` is nan"),
        ({"kv_cache_bytes": 0}, "`kv_cache_bytes` is 0, expected 1 or more"),
        ({"page_tokens": 16}, "`page_tokens` is 16, expected a multiple of 32"),
        ({"page_tokens": 100}, "`page_tokens` is 100, expected a multiple of 32"),
        ({"page_tokens": 0}, "`page_tokens` is 0, expected a multiple of 32"),
    ],
)
def test_engine_config_names_the_field_it_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**fields)
    assert message in str(caught.value)
    assert caught.value.code == "invalid_config"


def test_engine_config_reports_all_refusals_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(step_lanes=0, page_tokens=5, kv_cache_bytes=-1)
    assert all(f"`{n}`" in str(caught.value) for n in ("step_lanes", "page_tokens"))
    assert "`kv_cache_bytes`" in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float32", "multi_item_algorithm": "serial"},
        {"mem_fraction_static": 1.0, "kv_cache_bytes": 1, "step_lanes": 1, "page_tokens": 32},
        {"max_multi_item_seq_len": 1, "max_multi_item_count": 1},
        {"multi_item_scoring_chunk_size": 0, "multi_item_scoring_delimiter": 0},
    ],
)
def test_engine_config_takes_its_limits(fields: dict[str, Any]) -> None:
    config = EngineConfig(**fields)
    assert all(getattr(config, name) == value for name, value in fields.items())


def test_configs_are_frozen() -> None:
    for config in (EngineConfig(), ServerConfig("m")):
        with pytest.raises(FrozenInstanceError):
            config.dtype = "float32"  # type: ignore[misc, union-attr]


# ServerConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": -1}, "`port` is -1, expected 0 to 65535"),
        ({"port": 65536}, "`port` is 65536, expected 0 to 65535"),
        ({"max_queued_requests": 0}, "`max_queued_requests` is 0, expected 1 or more"),
        ({"max_body_bytes": 0}, "`max_body_bytes` is 0, expected 1 or more"),
        ({"max_timeout_s": 0.0}, "`max_timeout_s` is 0.0, expected above 0"),
        ({"max_timeout_s": float("nan")}, "`max_timeout_s` is nan, expected above 0"),
        ({"drain_timeout_s": -1.0}, "`drain_timeout_s` is -1.0, expected 0 or more"),
        ({"log_format": "xml"}, "`log_format` is 'xml', expected one of text, json"),
        ({"api_key": ""}, "`api_key` is '', expected a key that is not empty"),
    ],
)
def test_server_config_names_the_field_it_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServerConfig("model", **fields)


def test_server_config_reports_all_refusals_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig(port=-1, max_body_bytes=0, log_format="xml")  # type: ignore[arg-type]
    assert all(f"`{n}` is" in str(caught.value) for n in ("port", "max_body_bytes", "log_format"))


def test_server_config_takes_its_limits() -> None:
    for port in (0, 65535):
        assert ServerConfig("m", port=port, api_key="k", max_queued_requests=1).port == port
    assert ServerConfig(drain_timeout_s=0.0).drain_timeout_s == 0


@pytest.mark.parametrize(
    ("model_path", "shown"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("gpt2", "gpt2"),
        ("itemwise/demo", "itemwise/demo"),
        ("/data/org/net", "net"),
        ("/data/org/net/", "net"),
        ("./net", "net"),
        ("../org/net", "net"),
        ("~/net", "net"),
        ("models/org/net", "net"),
        ("/data/org/../net", "net"),
        (".", Path.cwd().name),
        ("/", "default"),
    ],
)
def test_model_name_is_the_served_name_the_hub_id_or_the_folder(
    model_path: str, shown: str
) -> None:
    assert ServerConfig(model_path).model_name == shown
    served = ServerConfig(model_path, served_model_name="/ranker")
    assert (served.model_name, served.shown_model_path) == ("/ranker", shown)


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_dir() == Path("/cache/itemwise")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/itemwise")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path("/home/someone/.cache/itemwise")


@pytest.mark.parametrize("home", ["", "relative"])
def test_cache_dir_is_never_below_the_working_directory(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    assert cache_dir().is_absolute()
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert cache_dir() == Path(tempfile.gettempdir()) / f"itemwise-{os.getuid()}"
