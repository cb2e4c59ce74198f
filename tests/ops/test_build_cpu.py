from __future__ import annotations

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from itemwise.engine.cpu_level import LEVELS, CpuLevel
from itemwise.machine_code import private_folder
from itemwise.ops import build_cpu as native
from itemwise.ops.build_cpu import Kernels, build, compile_command, find_compiler, load_kernels

COMPILER = shutil.which("c++") or ""
SOURCES = [path for paths in native.SOURCES.values() for path in paths]
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")


def load_anew() -> Kernels | None:
    """As `load_kernels` in a process that has not called it."""
    return load_kernels.__wrapped__("cpp-avx2", (), "float32")


def test_sources_are_in_the_package() -> None:
    """An installed package has them only where the list of its data names them."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    patterns = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["itemwise"]
    root = Path(native.__file__).parents[1]
    for path in (*SOURCES, *native.HEADERS):
        assert any(path.relative_to(root).match(pattern) for pattern in patterns)


def warnings_of(flags: Sequence[str], *sources: Path) -> str:
    """What a strict compiler says against the sources."""
    strict = [*compile_command([COMPILER], flags), "-Wall", "-Wextra", "-Werror"]
    command = [*strict, *map(str, sources), "-o", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the levels of this processor alone")
@pytest.mark.parametrize(
    "level", [level for level in LEVELS if level.compiler_flags is not None], ids=attrgetter("name")
)
def test_sources_compile_without_a_warning(level: CpuLevel, tmp_path: Path) -> None:
    """Also for instructions that this processor lacks."""
    if level.name == "cpp-neon":
        pytest.skip("another processor's")
    flags = level.compiler_flags or ()
    assert warnings_of(flags, *native.SOURCES[level.activations]) == ""
    doubtful = tmp_path / "doubtful.cc"
    doubtful.write_text('#include "xla/ffi/api/ffi.h"\nvoid f() { int unused; }\n')
    assert "unused" in warnings_of(flags, doubtful)


@needs_compiler
def test_library_is_built_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "empty.cc"
    source.write_text("int main() { return 0; }")
    (folder := tmp_path / "kernels").mkdir()
    library = build([COMPILER], (), folder, [source])
    made = library.stat().st_mtime_ns
    assert build([COMPILER], (), folder, [source]) == library
    assert library.stat().st_mtime_ns == made
    assert sorted(path.name for path in folder.iterdir()) == [
        library.name,
        f"{library.name}.sha256",
    ]
    assert build([COMPILER], ("-DOTHER",), folder, [source]) != library


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("/bin/false", "kernels for cpp-avx2 cannot be compiled; using XLA"),
        ("/nonexistent/c++", "compiler `/nonexistent/c++` ($CXX) does not exist; using XLA"),
        ("'", "compiler `'` ($CXX) does not exist; using XLA"),
        ("/tmp", "compiler `/tmp` ($CXX) does not exist; using XLA"),
        ("", "No C++ compiler found; using XLA"),
    ],
)
def test_without_a_working_compiler_there_are_no_kernels(
    compiler: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("PATH", "")
    with caplog.at_level(logging.INFO, "itemwise.engine"):
        assert load_anew() is None
    assert message in caplog.text


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small library in the folder of kernels, as an earlier start left it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f"{COMPILER} -DSOMETHING")
    source = tmp_path / "kernels.cc"
    names = "itemwise_attend", "itemwise_linear", "itemwise_panel", "itemwise_is_ready"
    source.write_text("".join(f'extern "C" int {name}() {{ return 7; }}\n' for name in names))
    monkeypatch.setattr(native, "SOURCES", {"float32": (source,)})
    monkeypatch.setattr("jax.ffi.register_ffi_target", lambda *_, **__: None)
    folder = private_folder(tmp_path / "itemwise" / "kernels")
    return build(find_compiler() or [], (), folder, [source])


def damages(whole: bytes) -> dict[str, bytes]:
    half = len(whole) // 2
    flipped = bytearray(whole)
    flipped[half] ^= 1
    return {
        "empty": b"",
        "cut": whole[:half],
        "half of it zeros": whole[:half] + bytes(len(whole) - half),
        "a bit flipped": bytes(flipped),
        "longer": whole + b"\0",
    }


@needs_compiler
@pytest.mark.parametrize("kind", list(damages(b"ab")))
def test_a_damaged_library_is_built_anew(
    kind: str, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is loaded: a library with a flipped bit may load, and crash or compute wrongly."""
    whole, loaded = cached.read_bytes(), list[bytes]()
    cached.write_bytes(damages(whole)[kind])
    load = ctypes.cdll.LoadLibrary

    def noted(path: str) -> Any:
        loaded.append(Path(path).read_bytes())
        return load(path)

    monkeypatch.setattr(ctypes.cdll, "LoadLibrary", noted)
    assert load_anew() == Kernels("cpp-avx2", cached, "float32", 7)
    assert loaded == [whole] == [cached.read_bytes()]


@needs_compiler
def test_a_library_in_a_folder_of_others_is_not_loaded(
    cached: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(folder: Path) -> Path:
        raise PermissionError(f"{folder} belongs to another user")

    monkeypatch.setattr(native, "private_folder", refuse)
    found = load_anew()
    assert found is not None
    assert found.library != cached
    assert not found.library.exists()
    assert "kernels are not kept (slower start)" in caplog.text
    assert "belongs to another user" in caplog.text


@needs_compiler
def test_what_a_killed_compiler_left_is_cleared(cached: Path) -> None:
    old, new = (cached.with_name(f"{native.DRAFT}{name}") for name in ("old", "new"))
    for draft in (old, new):
        draft.mkdir()
        (draft / "half.so").write_bytes(b"half")
    os.utime(old, (0, 0))
    cached.unlink()
    build(find_compiler() or [], (), cached.parent, native.SOURCES["float32"])
    assert not old.exists()
    assert new.exists(), "another process may be at it"


@needs_compiler
def test_what_the_compiler_says_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.cc"
    broken.write_text("int main() { return nothing; }")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(COMPILER))
    monkeypatch.setattr(native, "SOURCES", {"float32": (broken,)})
    assert load_anew() is None
    assert "nothing" in caplog.text
    assert not list((tmp_path / "itemwise" / "kernels").iterdir())


@needs_compiler
def test_what_the_operating_system_refuses_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    source = tmp_path / "kernels.cc"
    names = "itemwise_attend", "itemwise_linear", "itemwise_panel", "itemwise_is_ready"
    source.write_text("".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in names))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", COMPILER)
    monkeypatch.setattr(native, "SOURCES", {"float32": (source,)})
    assert load_anew() is None
    assert "The operating system refuses what cpp-avx2 needs" in caplog.text
