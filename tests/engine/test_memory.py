"""How much memory pages get, and when they take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from itemwise.checkpoint.shapes import model_dict
from itemwise.config import EngineConfig
from itemwise.engine import platform as platforms
from itemwise.engine.engine import Engine
from itemwise.engine.memory import GIB, PagePlan, own_bytes, plan_pages, release_zeros
from itemwise.engine.platform import PLATFORMS, Memory
from itemwise.errors import ConfigError
from itemwise.models.config import ModelConfig
from itemwise.types import DTypes

MODEL = ModelConfig.from_hf(model_dict("qwen3-0.6b"))
HALF = DTypes(np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.bfloat16))


def plan(memory: Memory, name: Literal["cpu", "gpu"] = "cpu", **settings: Any) -> PagePlan:
    config = EngineConfig(**settings)
    return plan_pages(config, MODEL, HALF, replace(PLATFORMS[name], level=None), memory)


def bytes_of(plan: PagePlan) -> int:
    return plan.num_pages * plan.page_bytes


@pytest.mark.parametrize("share", [0.3, 0.7, 0.9, 1.0])
def test_a_share_of_a_hosts_memory_stays_within_what_is_available(
    share: float, caplog: pytest.LogCaptureFixture
) -> None:
    alone = plan(Memory(64 * GIB, 63 * GIB), mem_fraction_static=share)
    fits = share < 0.95
    expected = 64 * GIB * share - alone.weight_bytes
    if fits:
        assert 0.99 * expected < bytes_of(alone) <= expected
    assert ("Pages for cached queries get" in caplog.text) is not fits
    caplog.clear()
    crowded = plan(Memory(64 * GIB, 6 * GIB), mem_fraction_static=share)
    room = 6 * GIB - own_bytes(6 * GIB) - crowded.weight_bytes
    assert 0.75 * room < bytes_of(crowded) <= room
    assert "Pages for cached queries get" in caplog.text


def test_a_cut_pool_keeps_its_size_while_little_changes() -> None:
    """Programs are made for a number of pages: another one would compile them again."""
    sizes = {
        plan(Memory(64 * GIB, 6 * GIB + more), mem_fraction_static=0.9).num_pages
        for more in range(0, GIB // 8, GIB // 64)
    }
    assert len(sizes) == 1


def test_a_pool_of_more_than_an_eighth_is_taken_as_it_is_used() -> None:
    memory = Memory(64 * GIB, 63 * GIB)
    assert plan(memory).taken_at_start
    assert plan(memory, kv_cache_bytes=8 * GIB).taken_at_start
    assert not plan(memory, kv_cache_bytes=9 * GIB).taken_at_start
    assert not plan(memory, mem_fraction_static=0.5).taken_at_start
    assert plan(memory, "gpu", mem_fraction_static=0.5).taken_at_start


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident")
def test_an_engine_takes_memory_for_a_large_pool_as_it_is_used(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "memory_limit_bytes", lambda: GIB)
    settings: dict[str, Any] = {"kv_cache_bytes": GIB // 2, "skip_self_check": True}
    make_engine(**settings)  # with what the first start takes
    before = resident_bytes()
    engine = make_engine(**settings)
    assert engine.info()["pages"]["bytes"] > 0.9 * GIB // 2
    assert resident_bytes() - before < GIB // 4
    engine.reset()
    assert resident_bytes() - before < GIB // 4


def test_an_accelerators_memory_is_its_own() -> None:
    found = plan(Memory(16 * GIB, 16 * GIB), "gpu", mem_fraction_static=1.0)
    assert bytes_of(found) > 0.99 * (16 * GIB - found.weight_bytes)


@pytest.mark.parametrize("settings", [{}, {"mem_fraction_static": 0.9}, {"kv_cache_bytes": GIB}])
def test_a_model_that_does_not_fit_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"needs 1\.\d+ GiB of memory.* but 1\.00 GiB are"):
        plan(Memory(64 * GIB, GIB), **settings)


def test_it_is_refused_before_weights_are_read(
    make_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "available_memory_bytes", lambda: GIB // 2)
    monkeypatch.setattr("itemwise.engine.start.load_weights", None)
    with pytest.raises(ConfigError, match="raise the limit of memory"):
        Engine(make_checkpoint("tiny-qwen3"), EngineConfig())


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux says what is resident")
@pytest.mark.skipif(jax.devices()[0].platform != "cpu", reason="about the host's memory")
def test_zeros_take_no_memory_until_they_are_written() -> None:
    before, size = resident_bytes(), 256 << 20
    array = jnp.zeros(size, jnp.uint8).block_until_ready()
    assert resident_bytes() - before > 0.8 * size
    release_zeros(array)
    assert resident_bytes() - before < 0.2 * size
    write = jax.jit(lambda x: x.at[size // 2].set(1), donate_argnums=0)
    written = write(array)
    assert np.asarray(written).sum() == 1
    assert resident_bytes() - before < 0.2 * size
