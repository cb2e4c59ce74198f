"""Compiled programs on disk: whose folder keeps them, and what a killed process leaves there."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from itemwise.compile_cache import with_whole_cache
from itemwise.engine import Engine
from itemwise.types import ScoreRequest

REQUEST = ScoreRequest(query=(1, 2, 3), items=((4,), (5, 6)), labels=((7, 8),) * 2)
SETTINGS = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_raise_persistent_cache_errors",
)


def settings() -> dict[str, Any]:
    return {name: getattr(jax.config, name) for name in SETTINGS}


def configure(**changes: Any) -> None:
    """Sets up JAX's cache, as a host program may."""
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def jax_cache() -> Iterator[Callable[..., None]]:
    """Sets up JAX's cache, until the test ends."""
    before = settings()
    yield configure
    configure(**before)


def compile_for_host(name: str) -> None:
    def program(x: jax.Array) -> jax.Array:
        return x + 1

    program.__name__ = name
    jax.jit(program)(1.0)


def programs(folder: Path) -> set[str]:
    """Names of the programs that a folder keeps, without their keys."""
    return {path.name.split("-")[0] for path in folder.glob("*-cache")}


@pytest.mark.parametrize("own_folder", [True, False])
@pytest.mark.parametrize("algorithm", ["prefill_extend", "packed"])
def test_cache_of_the_host_program_stays_its_own(
    algorithm: str,
    own_folder: bool,
    make_engine: Callable[..., Engine],
    jax_cache: Callable[..., None],
    tmp_path: Path,
) -> None:
    host, ours = tmp_path / "host", tmp_path / "ours"
    jax_cache(
        jax_compilation_cache_dir=str(host),
        jax_persistent_cache_min_compile_time_secs=0.0,
        jax_persistent_cache_min_entry_size_bytes=1,
    )
    compile_for_host("first")
    before = settings()
    folder = str(ours) if own_folder else ""
    engine = make_engine(
        compilation_cache_dir=folder, multi_item_algorithm=algorithm, skip_self_check=True
    )
    engine.score([REQUEST])
    assert settings() == before
    compile_for_host("second")
    assert programs(host) == {"jit_first", "jit_second"}
    assert ("jit_step" in programs(ours)) is own_folder
    assert ("jit_packed" in programs(ours)) is (own_folder and algorithm == "packed")
    assert programs(ours).isdisjoint(programs(host))


def test_without_a_cache_the_host_program_stays_without(
    make_engine: Callable[..., Engine], jax_cache: Callable[..., None], tmp_path: Path
) -> None:
    jax_cache(jax_compilation_cache_dir=None)
    before = settings()
    make_engine(compilation_cache_dir=str(tmp_path), skip_self_check=True)
    assert settings() == before
    kept = programs(tmp_path)
    compile_for_host("third")
    assert "jit_step" in kept
    assert programs(tmp_path) == kept


def test_half_written_cache_entries_are_made_anew(
    make_engine: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start() -> dict[str, int]:
        jax.clear_caches()
        make_engine(compilation_cache_dir=str(tmp_path), skip_self_check=True)
        return {path.name: path.stat().st_size for path in tmp_path.glob("*-cache")}

    whole = start()
    step = next(name for name in whole if name.startswith("jit_step"))
    path = tmp_path / step
    path.write_bytes(path.read_bytes()[: whole[step] // 2])
    mended = start()
    assert "jit_step" in caplog.text
    assert mended.keys() == whole.keys()
    assert mended[step] > whole[step] * 0.9
    caplog.clear()
    assert start() == mended
    assert "damaged" not in caplog.text


def test_other_warnings_are_passed_on() -> None:
    with pytest.warns(UserWarning, match="something else"):
        with_whole_cache(lambda: warnings.warn("something else", stacklevel=1))
