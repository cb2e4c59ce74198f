"""Which C++ kernels are loaded, and what is said where there are none."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from itemwise.ops import load_cpu
from itemwise.ops.build_cpu import OPS, TARGETS, compile_library
from itemwise.ops.load_cpu import Kernels, load_kernels
from itemwise.types import CppLevel
from tests.conftest import CPP_LEVELS

COMPILER = shutil.which("c++") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
NAMES = "itemwise_attend", "itemwise_linear", "itemwise_panel"


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
    """Makes a library whose functions return 7, and what it lacks; XLA does not hear of them."""
    monkeypatch.setattr("jax.ffi.register_ffi_target", lambda *_, **__: None)

    def make(*names: str, lack: str = "nullptr") -> None:
        source = library.with_suffix(".cc")
        lines = [f'extern "C" int {name}() {{ return 7; }}\n' for name in names]
        lines.append(f'extern "C" const char* itemwise_lack() {{ return {lack}; }}\n')
        source.write_text("".join(lines))
        command = [COMPILER, "-shared", "-fPIC", str(source), "-o", str(library)]
        subprocess.run(command, check=True)

    return make


@needs_compiler
def test_kernels_say_what_they_are(library: Path, compile_to: Callable[..., None]) -> None:
    compile_to(*NAMES)
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
    compile_to(*NAMES[1:])
    assert load_anew() is None
    assert "The C++ kernels for cpp-avx2 cannot be loaded; using XLA" in caplog.text
    assert NAMES[0] in caplog.text


@needs_compiler
def test_what_kernels_lack_is_told(
    compile_to: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    compile_to(*NAMES, lack='"no tiles"')
    assert load_anew() is None
    assert caplog.messages == [
        "The C++ kernels for cpp-avx2 do not work here; using XLA for attention and matmuls "
        "(slower): no tiles"
    ]


BEGIN = "add ? load(sums + i * stride + v * WIDTH) : Floats{}"
FAULTS = {
    "even and odd inputs apart": ("+ (first[i][v] + odd[i][v])", "+ first[i][v] + odd[i][v]"),
    "the same for few rows": ("+ (even[i][v] + odd[i][v])", "+ even[i][v] + odd[i][v]"),
    "tiny numbers are kept": ("Flush flush_{true}", "Flush flush_{false}"),
    "sums begin with what lies there": (BEGIN, "load(sums + i * stride + v * WIDTH)"),
    "sums begin anew in a stretch": (BEGIN, "Floats{}"),
    "tiny before it is rounded": (
        "if (!(std::fabs(sum) <= SMALLEST)",
        "if (!(std::fabs(sum) < SMALLEST)",
    ),
}


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif("cpp-avx2-bfloat16" not in CPP_LEVELS, reason="no AVX2")
@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_products_with_other_bits_are_not_used(
    fault: str | None,
    library: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    level: CppLevel = "cpp-avx2-bfloat16"
    monkeypatch.setattr("jax.ffi.register_ffi_target", lambda *_, **__: None)
    shutil.copytree(OPS, library.parent / "ops", ignore=shutil.ignore_patterns("compiled"))
    linear = library.parent / "ops/linear/cpu_bfloat16.cc"
    if fault is not None:
        header = library.parent / "ops/bfloat16.h"
        right, wrong = FAULTS[fault]
        text = header.read_text()
        assert right in text
        header.write_text(text.replace(right, wrong))
    attend = library.with_suffix(".cc")
    attend.write_text('extern "C" int itemwise_attend() { return 0; }')
    compile_library([COMPILER], TARGETS[level].flags, [linear, attend], library)
    loaded = load_kernels.__wrapped__(level)
    if fault is None:
        assert loaded is not None
        return
    assert loaded is None
    assert "its products have other bits than they should" in caplog.text
