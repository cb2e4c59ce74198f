"""The compilation cache on disk, and what a killed process leaves of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from itemwise.engine import Engine
from itemwise.programs import use_compilation_cache, with_whole_cache


def test_half_written_cache_entries_are_made_anew(
    make_engine: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start() -> dict[str, int]:
        jax.clear_caches()
        make_engine(compilation_cache_dir=str(tmp_path), skip_self_check=True)
        return {path.name: path.stat().st_size for path in tmp_path.glob("*-cache")}

    try:
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
    finally:
        use_compilation_cache(None)


def test_other_warnings_are_passed_on() -> None:
    with pytest.warns(UserWarning, match="something else"):
        with_whole_cache(lambda: warnings.warn("something else", stacklevel=1))
