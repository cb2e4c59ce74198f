from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from itemwise import native
from itemwise.native import Kernels, build, load_kernels

COMPILER = shutil.which("c++") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


def load_anew() -> Kernels | None:
    """As `load_kernels` in a process that has not called it."""
    return load_kernels.__wrapped__()


@needs_compiler
def test_library_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "empty.cc"
    source.write_text("int main() { return 0; }")
    monkeypatch.setattr(native, "SOURCES", (source,))
    folder = tmp_path / "kernels"
    library = build(COMPILER, folder)
    made = library.stat().st_mtime_ns
    assert build(COMPILER, folder) == library
    assert library.stat().st_mtime_ns == made
    assert list(folder.iterdir()) == [library]
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-DOTHER"))
    assert build(COMPILER, folder) != library


@pytest.mark.parametrize("compiler", ["/bin/false", "/nonexistent/c++"])
def test_without_a_working_compiler_xla_serves(
    compiler: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with caplog.at_level(logging.INFO, "itemwise.engine"):
        assert load_anew() is None
    assert "in XLA" in caplog.text


@needs_compiler
def test_what_the_compiler_says_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.cc"
    broken.write_text("int main() { return nothing; }")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "SOURCES", (broken,))
    assert load_anew() is None
    assert "nothing" in caplog.text
    assert not list((tmp_path / "itemwise" / "kernels").iterdir())
