"""Compiles the C++ kernels into shared libraries, when the package is built or in a source tree.

    python -m itemwise.ops.build_cpu    # those that this machine can run, beside the sources

`setup.py` calls it, so it imports neither JAX nor what needs it. A level's library has a name that
stands for its sources and flags: what was compiled of others is never loaded.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from itemwise.config import chosen_compiler
from itemwise.machine import instructions
from itemwise.types import CppLevel

OPS = Path(__file__).parent
COMPILED = "compiled"  # the folder of libraries, beside the sources
SOURCES = {
    "float32": (OPS / "step/cpu.cc", OPS / "linear/cpu.cc"),
    "bfloat16": (OPS / "step/cpu_bfloat16.cc", OPS / "linear/cpu_bfloat16.cc"),
}
HEADERS = OPS / "cpu.h", OPS / "bfloat16.h", OPS / "xla.h", OPS / "step/step.h"
COMPILERS = ("c++", "g++", "clang++")
# Products are fused with sums where the source says so, and nowhere else.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC")
LINK_FLAGS = ("-shared", "-s")
TIMEOUT_S = 900  # Zig compiles its C++ library first
MAX_REASON = 2000  # characters of a compiler's message that are logged
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}  # other names of the same
# What a wheel built without a system's compiler is compiled with, and the C library it needs:
# that of jaxlib. Without a target Zig would use all instructions of the machine it runs on.
ZIG, ZIG_MACHINES = "ziglang==0.17.1", ("x86_64", "aarch64")
ZIG_TARGET = "{machine}-linux-gnu.2.27"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What a level's kernels are compiled for.

    Attributes:
        activations: their type.
        instructions: that a processor needs, as /proc/cpuinfo names them.
        flags: by which the compiler uses them.
        machine: the architecture; None for all.
    """

    activations: Literal["bfloat16", "float32"]
    instructions: frozenset[str]
    flags: tuple[str, ...]
    machine: str | None = "x86_64"


AVX2 = frozenset({"avx2", "fma"}), ("-mavx2", "-mfma")
AVX512 = (
    frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
)
AMX = (
    frozenset({"amx_bf16", "amx_tile", "avx512_bf16", "avx512bw", "avx512dq", "avx512vl"}),
    (*AVX512[1], "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-DITEMWISE_AMX"),
)
TARGETS: dict[CppLevel, Target] = {
    "cpp-amx": Target("bfloat16", *AMX),
    "cpp-avx512": Target("float32", *AVX512),
    "cpp-avx2": Target("float32", *AVX2),
    "cpp-neon": Target("float32", frozenset({"asimd"}), (), "aarch64"),
    "cpp-avx512-bfloat16": Target("bfloat16", *AVX512),
    "cpp-avx2-bfloat16": Target("bfloat16", *AVX2),
    "cpp-plain-bfloat16": Target("bfloat16", frozenset(), ("-DITEMWISE_PLAIN",), None),
}


def levels_of(machine: str, found: frozenset[str] | None = None) -> list[CppLevel]:
    """The levels of an architecture; with `found`, of a processor that has these instructions."""
    machine = MACHINES.get(machine, machine)
    return [
        level
        for level, target in TARGETS.items()
        if target.machine in (machine, None) and (found is None or target.instructions <= found)
    ]


def levels_here() -> list[CppLevel]:
    """The levels that this processor can run."""
    return levels_of(platform.machine(), instructions())


@functools.cache
def library_of(level: CppLevel, ops: Path = OPS) -> Path:
    """Where the library of a level is, if it was compiled; `ops` is this folder of a package."""
    target = TARGETS[level]
    sources = [*SOURCES[target.activations], *HEADERS]
    made_of = FLAGS, target.flags, [path.read_text(encoding="utf-8") for path in sources]
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    return ops / COMPILED / f"{level}-{digest}.so"


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: what the environment names, the system's, or Zig.

    The environment may name one that does not exist, such as `none`: then there is none.
    """
    chosen = chosen_compiler()
    if chosen:
        try:
            command = shlex.split(chosen)
        except ValueError:  # a quote without its other
            command = []
        if command and shutil.which(command[0]):
            return command
        logger.warning("The C++ compiler `%s` ($CXX) does not exist.", chosen)
        return None
    found = _system_compiler()
    if found:
        return [found]
    has_zig = importlib.util.find_spec("ziglang") is not None
    return [sys.executable, "-m", "ziglang", "c++"] if has_zig else None


def _system_compiler() -> str | None:
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def build_requirements() -> list[str]:
    """What the build needs beside what it always needs: a compiler, where the system has none."""
    chosen = chosen_compiler()
    has_zig = sys.platform == "linux" and _machine() in ZIG_MACHINES
    wants_zig = "ziglang" in chosen if chosen else has_zig and _system_compiler() is None
    return [ZIG] if wants_zig else []


def build(levels: Iterable[CppLevel], ops: Path = OPS) -> list[CppLevel]:
    """Compiles the libraries of levels that are not there yet, and removes those of other sources.

    A level that the compiler fails at is left out, and XLA computes in its place; the log says so.

    Returns:
        the levels whose libraries are there.
    """
    wanted = list(levels)
    missing = [level for level in wanted if not library_of(level, ops).exists()]
    command = find_compiler() if missing else None
    if missing and command is None:
        logger.warning("No C++ compiler; without C++ kernels XLA computes everything (slower).")
    if missing and command is not None:
        (ops / COMPILED).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_cores()) as pool:
            for _ in pool.map(lambda level: _build_level(command, level, ops), missing):
                pass
    return [level for level in wanted if library_of(level, ops).exists()]


def _build_level(command: Sequence[str], level: CppLevel, ops: Path) -> None:
    target, library = TARGETS[level], library_of(level, ops)
    try:
        compile_library(command, target.flags, SOURCES[target.activations], library)
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()[:MAX_REASON]
        logger.warning("The C++ kernels for %s cannot be compiled: %s", level, reason)
        return
    for other in library.parent.glob(f"{level}-{'?' * 16}.so"):
        if other != library:
            other.unlink()
    logger.info("Compiled %s", library)


def compile_library(
    compiler: Sequence[str], flags: Sequence[str], sources: Sequence[Path], library: Path
) -> None:
    """Compiles sources into a library. Nobody finds a part of it.

    Raises:
        OSError, subprocess.SubprocessError: the compiler cannot be run, or failed.
    """
    with tempfile.TemporaryDirectory(dir=library.parent) as draft:
        made = Path(draft) / library.name
        objects = [str(made.with_suffix(f".{number}.o")) for number, _ in enumerate(sources)]
        for source, to in zip(sources, objects, strict=True):
            _run([*compile_command(compiler, flags), "-c", str(source), "-o", to])
        _run([*compiler, *_target_flags(compiler), *LINK_FLAGS, *objects, "-o", str(made)])
        made.replace(library)


def compile_command(compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The compiler with all flags; warnings are those of our sources, not of XLA's header."""
    own = _target_flags(compiler)
    return [*compiler, *own, *FLAGS, *flags, "-isystem", str(header_folder())]


def header_folder() -> Path:
    """The folder with XLA's headers, found without an import of jaxlib."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("jaxlib, whose header the C++ kernels need, is not installed")
    return Path(spec.origin).parent / "include"


def _target_flags(compiler: Sequence[str]) -> list[str]:
    is_zig = "ziglang" in compiler or Path(compiler[0]).name == "zig"
    return ["-target", ZIG_TARGET.format(machine=_machine())] if is_zig else []


def _machine() -> str:
    return MACHINES.get(platform.machine(), platform.machine())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _run(command: Sequence[str]) -> None:
    subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=TIMEOUT_S
    )


def main() -> int:
    """Compiles the kernels of this machine, or of the levels that are named."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = [level for level in get_args(CppLevel) if level in sys.argv[1:]] or levels_here()
    return 0 if build(wanted) == wanted else 1


if __name__ == "__main__":
    raise SystemExit(main())
