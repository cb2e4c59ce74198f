"""Compiles the C++ kernels on the machine that runs them, and makes them known to XLA.

The library lies in the cache folder, under a name that stands for the source, the compiler and the
processor. Code for one set of instructions makes one library; a process may load several.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jaxlib.version

from itemwise.config import cache_dir, chosen_compiler
from itemwise.machine import processor
from itemwise.ops.linear import cpu as cpu_linear
from itemwise.ops.step import cpu as cpu_step
from itemwise.types import CppLevel

SOURCES = tuple(Path(str(kernel.__file__)).with_suffix(".cc") for kernel in (cpu_step, cpu_linear))
HEADER = Path(__file__).with_name("cpu.h")
COMPILERS = ("c++", "g++", "clang++")
# Products are fused with sums where the source says so, and nowhere else.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC")
TIMEOUT_S = 120
MAX_REASON = 2000  # characters of a compiler's message that are logged
logger = logging.getLogger("itemwise.engine")


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Attributes:
        level: what they are compiled for; part of the names that XLA knows them by.
        library: the file.
        panel_width: outputs that lie side by side in a panel of weights, see `to_panels`.
    """

    level: CppLevel
    library: Path
    panel_width: int


@functools.cache
def load_kernels(level: CppLevel, flags: tuple[str, ...]) -> Kernels | None:
    """Compiles the kernels, if that was not done before, and makes them known to XLA.

    Args:
        level: what XLA shall know them by.
        flags: of the compiler, beside `FLAGS`: the instructions to use.

    Returns:
        the kernels; None where there is no C++ compiler, or where it failed, which is logged.
    """
    command = find_compiler()
    if command is None:
        return None
    try:
        path = build(command, flags, cache_dir() / "kernels")
        try:
            library = ctypes.cdll.LoadLibrary(str(path))
        except OSError:  # damaged
            path.unlink()
            library = ctypes.cdll.LoadLibrary(str(build(command, flags, path.parent)))
        symbols = [library[kernel.SYMBOL] for kernel in (cpu_step, cpu_linear)]
        kernels = Kernels(level, path, library.itemwise_panel())
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()[:MAX_REASON]
        logger.warning(
            "The C++ kernels for %s cannot be compiled; using XLA for attention and matmuls "
            "(slower): %s",
            level,
            reason,
        )
        return None
    for kernel, symbol in zip((cpu_step, cpu_linear), symbols, strict=True):
        target = kernel.target(level)
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform="cpu")
    return kernels


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: the one that the environment names, or one that is there."""
    chosen = shlex.split(chosen_compiler() or "")
    if chosen:
        if shutil.which(chosen[0]):
            return chosen
        logger.warning(
            "The C++ compiler `%s` ($CXX) does not exist; using XLA for attention and matmuls "
            "(slower).",
            chosen[0],
        )
        return None
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        logger.info("No C++ compiler found; using XLA for attention and matmuls (slower).")
    return [found] if found else None


def build(compiler: Sequence[str], flags: tuple[str, ...], folder: Path) -> Path:
    """The library compiled with `FLAGS` and `flags`, in the folder; made there if need be.

    Raises:
        OSError, subprocess.SubprocessError: the compiler cannot be run, or failed.
    """
    texts = [path.read_text(encoding="utf-8") for path in (*SOURCES, HEADER)]
    version = _run([*compiler, "--version"])
    made_of = texts, list(compiler), version, FLAGS, flags, processor(), jaxlib.version.__version__
    library = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.so"
    if library.exists():
        return library
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        made = Path(draft) / library.name
        _run([*compile_command(compiler, flags), *map(str, SOURCES), "-o", str(made)])
        made.replace(library)
    return library


def compile_command(compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The compiler with all flags; warnings are those of our sources, not of XLA's header."""
    return [*compiler, *FLAGS, *flags, "-isystem", jax.ffi.include_dir()]


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=TIMEOUT_S
    )
    return done.stdout
