"""How the C++ kernels are compiled: what of, by whom, and what becomes of failures."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import pytest

from itemwise.ops import build_cpu
from itemwise.ops.build_cpu import (
    SOURCES,
    TARGETS,
    ZIG,
    build,
    build_requirements,
    compile_command,
    find_compiler,
    levels_of,
    library_of,
)
from itemwise.types import CppLevel

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor's levels")
X86 = levels_of("x86_64")


def test_sources_are_in_the_package() -> None:
    """An installed package has them only where the list of its data names them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = tomllib.loads(text)["tool"]["setuptools"]["package-data"]["itemwise"]
    root = build_cpu.OPS.parent
    for path in (*build_cpu.HEADERS, *(path for paths in SOURCES.values() for path in paths)):
        assert any(path.relative_to(root).match(pattern) for pattern in patterns)


def test_names_stand_for_all_that_is_compiled() -> None:
    """What a source includes is a header that is named, or of the system or XLA."""
    named = {path.name for path in build_cpu.HEADERS}
    for path in (*build_cpu.HEADERS, *(path for paths in SOURCES.values() for path in paths)):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith('#include "') and "xla/ffi" not in line:
                assert Path(line.split('"')[1]).name in named


def test_levels_go_by_architecture_and_instructions() -> None:
    neon: list[CppLevel] = ["cpp-neon", "cpp-plain-bfloat16"]
    assert {*X86, "cpp-neon"} == set(get_args(CppLevel))
    assert levels_of("AMD64") == X86
    assert levels_of("aarch64") == levels_of("arm64") == neon
    assert levels_of("x86_64", frozenset({"sse2"})) == ["cpp-plain-bfloat16"]
    assert levels_of("x86_64", frozenset({"sse2", "avx2", "fma"})) == [
        *("cpp-avx2", "cpp-avx2-bfloat16", "cpp-plain-bfloat16")
    ]


def warnings_of(flags: Sequence[str], *sources: Path) -> str:
    """What a strict compiler says against the sources."""
    strict = [*compile_command([COMPILER], flags), "-shared", "-Wall", "-Wextra", "-Werror"]
    command = [*strict, *map(str, sources), "-o", os.devnull]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.slow
@needs_compiler
@on_x86
@pytest.mark.parametrize("level", X86)
def test_sources_compile_without_a_warning(level: CppLevel, tmp_path: Path) -> None:
    """Also for instructions that this processor lacks."""
    target = TARGETS[level]
    assert warnings_of(target.flags, *SOURCES[target.activations]) == ""
    doubtful = tmp_path / "doubtful.cc"
    doubtful.write_text('#include "xla/ffi/api/c_api.h"\nvoid f() { int unused; }\n')
    assert "unused" in warnings_of(target.flags, doubtful)


@pytest.mark.slow
@needs_compiler
@on_x86
def test_kernels_are_compiled_for_their_instructions(tmp_path: Path) -> None:
    """Also for those that this processor lacks: here they only say how wide their vectors are."""
    assert build(X86, tmp_path) == X86
    widths = {
        level: ctypes.CDLL(str(library_of(level, tmp_path))).itemwise_panel() for level in X86
    }
    assert widths == {
        "cpp-avx512": 32,
        "cpp-avx2": 16,
        **{level: 32 for level in X86 if TARGETS[level].activations == "bfloat16"},
    }


@pytest.fixture
def write_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Writes what stands in for the sources of all kernels."""
    source = tmp_path / "kernels.cc"
    monkeypatch.setattr(build_cpu, "SOURCES", dict.fromkeys(SOURCES, (source,)))
    monkeypatch.setattr(build_cpu, "library_of", library_of.__wrapped__)
    monkeypatch.delenv("CXX", raising=False)

    def write(text: str) -> None:
        source.write_text(text)

    return write


PLAIN: CppLevel = "cpp-plain-bfloat16"
Write = Callable[[str], None]


@needs_compiler
def test_library_is_built_once_for_its_sources(write_source: Write, tmp_path: Path) -> None:
    others = tmp_path / "compiled" / f"cpp-plain-{'0' * 16}.so"
    write_source('extern "C" int one() { return 1; }')
    assert build([PLAIN], tmp_path) == [PLAIN]
    others.write_bytes(b"another level's")
    library = build_cpu.library_of(PLAIN, tmp_path)
    made = library.stat().st_mtime_ns
    assert build([PLAIN], tmp_path) == [PLAIN]
    assert library.stat().st_mtime_ns == made
    write_source('extern "C" int one() { return 2; }')
    assert not build_cpu.library_of(PLAIN, tmp_path).exists()
    assert build([PLAIN], tmp_path) == [PLAIN]
    changed = build_cpu.library_of(PLAIN, tmp_path)
    assert sorted(others.parent.iterdir()) == sorted([changed, others])
    assert ctypes.CDLL(str(changed)).one() == 2


def test_another_header_or_flag_is_another_library(
    write_source: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write_source("")
    header = tmp_path / "kernels.h"
    header.touch()
    monkeypatch.setattr(build_cpu, "HEADERS", (header,))
    names = [build_cpu.library_of(PLAIN)]
    header.write_text("// changed")
    names.append(build_cpu.library_of(PLAIN))
    monkeypatch.setattr(build_cpu, "FLAGS", (*build_cpu.FLAGS, "-DMORE"))
    names.append(build_cpu.library_of(PLAIN))
    monkeypatch.setitem(TARGETS, PLAIN, dataclasses.replace(TARGETS[PLAIN], flags=("-DLESS",)))
    names.append(build_cpu.library_of(PLAIN))
    assert len(set(names)) == 4


@needs_compiler
def test_a_level_that_cannot_be_compiled_is_left_out(
    write_source: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_source("#ifdef ITEMWISE_PLAIN\n#error broken\n#endif\n")
    other: CppLevel = "cpp-avx2" if platform.machine() == "x86_64" else "cpp-neon"
    assert build([other, PLAIN], tmp_path) == [other]
    assert f"kernels for {PLAIN} cannot be compiled" in caplog.text
    assert "broken" in caplog.text
    assert list((tmp_path / "compiled").iterdir()) == [build_cpu.library_of(other, tmp_path)]


@pytest.mark.parametrize("chosen", ["/nonexistent/c++", "none", "'", "/tmp"])
def test_a_compiler_that_does_not_exist_is_told(
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", chosen)
    assert build(X86, tmp_path) == []
    assert f"The C++ compiler `{chosen}` ($CXX) does not exist" in caplog.text
    assert "without C++ kernels XLA computes everything (slower)" in caplog.text
    assert build_requirements() == []


@pytest.mark.parametrize(
    ("machine", "system", "wanted"),
    [
        ("x86_64", "linux", [ZIG]),
        ("aarch64", "linux", [ZIG]),
        ("riscv64", "linux", []),
        ("arm64", "darwin", []),
    ],
)
def test_a_compiler_is_asked_for_where_there_is_none(
    machine: str, system: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_requirements() == wanted
    assert find_compiler() is None
    package = tmp_path / "ziglang"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_compiler() == [sys.executable, "-m", "ziglang", "c++"]
    compiler = tmp_path / "g++"
    compiler.touch(mode=0o700)
    assert find_compiler() == [str(compiler)], "the system's first: Zig needs a minute more"
    assert build_requirements() == []
    monkeypatch.setenv("CXX", "g++ -m64")
    assert find_compiler() == ["g++", "-m64"]
    monkeypatch.setenv("CXX", "python -m ziglang c++")
    assert build_requirements() == [ZIG], "for a wheel that older systems can run"


def test_zig_compiles_for_older_systems_and_no_more_than_the_level_says() -> None:
    command = compile_command(["python", "-m", "ziglang", "c++"], ("-mavx2",))
    place = command.index("-target")
    assert command[place + 1].endswith("-linux-gnu.2.27")
    assert "-target" not in compile_command(["g++"], ())


FAKE_COMPILER = """
import sys
from pathlib import Path

Path(sys.argv[sys.argv.index("-o") + 1]).write_text("compiled")
"""


def wheel_of(folder: Path, compiler: str) -> tuple[str, set[str]]:
    """The name of a wheel that is built with a compiler, and the libraries in it."""
    source = folder / "source"
    shutil.copytree(
        ROOT / "src", source / "src", ignore=shutil.ignore_patterns("compiled", "*egg*")
    )
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = ["pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["-w", str(folder), "."]
    subprocess.run(
        [sys.executable, "-m", *command],
        cwd=source,
        env={**os.environ, "CXX": compiler, "PIP_NO_CACHE_DIR": "1"},
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return wheel.name, {name for name in file.namelist() if name.endswith(".so")}


@pytest.mark.slow
def test_wheel_has_the_kernels_of_all_processors_of_its_platform(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler.py"
    compiler.write_text(FAKE_COMPILER)
    name, libraries = wheel_of(tmp_path, f"{sys.executable} {compiler}")
    assert name.startswith("itemwise-")
    assert "-py3-none-" in name
    assert not name.endswith("-any.whl")
    package = build_cpu.OPS.parents[1]
    levels = levels_of(platform.machine())
    assert libraries == {str(library_of(level).relative_to(package)) for level in levels}


@pytest.mark.slow
def test_wheel_without_a_compiler_has_no_kernels(tmp_path: Path) -> None:
    assert wheel_of(tmp_path, "none")[1] == set()
