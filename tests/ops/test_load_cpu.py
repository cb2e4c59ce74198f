"""Which C++ kernels are loaded, and what is said where there are none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from itemwise.ops import load_cpu
from itemwise.ops.load_cpu import Kernels, load_kernels

COMPILER = shutil.which("c++") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
NAMES = "itemwise_attend", "itemwise_linear", "itemwise_panel", "itemwise_is_ready"


def load_anew() -> Kernels | None:
    """As `load_kernels` in a process that has not called it."""
    return load_kernels.__wrapped__("cpp-avx2")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the library is looked for; there is none yet."""
    path = tmp_path / "kernels.so"
    monkeypatch.setattr(load_cpu, "library_of", lambda _: path)
    return path


@pytest.fixture
def compile_to(library: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes a library whose functions all return a number; XLA does not hear of them."""
    monkeypatch.setattr("jax.ffi.register_ffi_target", lambda *_, **__: None)

    def make(number: int, *names: str) -> None:
        source = library.with_suffix(".cc")
        lines = [f'extern "C" int {name}() {{ return {number}; }}\n' for name in names]
        source.write_text("".join(lines))
        command = [COMPILER, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True)

    return make


@needs_compiler
def test_kernels_say_what_they_are(library: Path, compile_to: Callable[..., None]) -> None:
    compile_to(7, *NAMES)
    assert load_anew() == Kernels("cpp-avx2", library, "float32", 7)


def test_without_a_library_the_log_says_what_to_do(
    library: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_anew() is None
    (line,) = caplog.messages
    assert line == (
        "The C++ kernels for cpp-avx2 are not compiled; using XLA for attention and matmuls "
        "(slower). To compile them: python -m itemwise.ops.build_cpu"
    )


def test_what_is_no_library_is_not_used(library: Path, caplog: pytest.LogCaptureFixture) -> None:
    library.write_bytes(b"half a library")
    assert load_anew() is None
    assert "The C++ kernels for cpp-avx2 cannot be loaded; using XLA" in caplog.text
    assert str(library) in caplog.text


@needs_compiler
def test_a_library_without_the_kernels_is_not_used(
    compile_to: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    compile_to(7, *NAMES[1:])
    assert load_anew() is None
    assert "The C++ kernels for cpp-avx2 cannot be loaded; using XLA" in caplog.text
    assert NAMES[0] in caplog.text


@needs_compiler
def test_what_the_operating_system_refuses_is_told(
    compile_to: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    compile_to(0, *NAMES)
    assert load_anew() is None
    assert "The operating system refuses what cpp-avx2 needs" in caplog.text
