"""Compiles the C++ kernels on the machine that runs them, and makes them known to XLA.

The library lies in the cache folder, under a name that stands for the source, the compiler and the
processor. Code for one set of instructions makes one library; a process may load several.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jaxlib.version
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from itemwise.config import cache_dir, chosen_compiler
from itemwise.machine import processor
from itemwise.machine_code import is_sealed, private_folder, seal
from itemwise.ops.linear import cpu as cpu_linear
from itemwise.ops.step import cpu as cpu_step
from itemwise.types import CppLevel

OPS = Path(__file__).parent
SOURCES = {
    "float32": (OPS / "step/cpu.cc", OPS / "linear/cpu.cc"),
    "bfloat16": (OPS / "step/cpu_bfloat16.cc", OPS / "linear/cpu_bfloat16.cc"),
}
HEADERS = OPS / "cpu.h", OPS / "bfloat16.h", OPS / "xla.h", OPS / "step/step.h"
COMPILERS = ("c++", "g++", "clang++")
# Products are fused with sums where the source says so, and nowhere else.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC")
VERSION_TIMEOUT_S, TIMEOUT_S = 10, 120
DRAFT = "draft-"  # begins the names of folders in which a compiler writes
MAX_REASON = 2000  # characters of a compiler's message that are logged
Activations = Literal["bfloat16", "float32"]
logger = logging.getLogger("itemwise.engine")


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Attributes:
        level: what they are compiled for; part of the names that XLA knows them by.
        library: the file.
        activations: the type of activations.
        panel_width: outputs that lie side by side in a panel of weights.
    """

    level: CppLevel
    library: Path
    activations: Activations
    panel_width: int

    def panels(self, matrix: NDArray[Any]) -> NDArray[Any] | None:
        """A matrix [out, in] as the kernels read it; None if they cannot multiply with it."""
        if matrix.shape[0] % self.panel_width != 0:
            return None
        if self.activations == "float32":
            return cpu_linear.to_panels(matrix, self.panel_width)
        is_bfloat16 = matrix.dtype == np.dtype(ml_dtypes.bfloat16)
        return cpu_linear.to_paired_panels(matrix) if is_bfloat16 else None


@functools.cache
def load_kernels(
    level: CppLevel, flags: tuple[str, ...], activations: Activations
) -> Kernels | None:
    """Compiles the kernels, if that was not done before, and makes them known to XLA.

    Args:
        level: what XLA shall know them by.
        flags: of the compiler, beside `FLAGS`: the instructions to use.
        activations: the type of activations.

    Returns:
        the kernels; None where there is no C++ compiler, where it failed, or where the operating
        system refuses what they need, which is logged.
    """
    command = find_compiler()
    if command is None:
        return None
    sources = SOURCES[activations]
    try:
        path, library = _compiled(command, flags, sources)
        symbols = [library[kernel.SYMBOL] for kernel in (cpu_step, cpu_linear)]
        kernels = Kernels(level, path, activations, library.itemwise_panel())
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        reason = str(getattr(error, "stderr", None) or error).strip()[:MAX_REASON]
        logger.warning(
            "The C++ kernels for %s cannot be compiled; using XLA for attention and matmuls "
            "(slower): %s",
            level,
            reason,
        )
        return None
    if not library.itemwise_is_ready():
        logger.warning("The operating system refuses what %s needs (AMX tiles).", level)
        return None
    for kernel, symbol in zip((cpu_step, cpu_linear), symbols, strict=True):
        target = kernel.target(level)
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform="cpu")
    return kernels


def _compiled(
    command: Sequence[str], flags: tuple[str, ...], sources: Sequence[Path]
) -> tuple[Path, ctypes.CDLL]:
    """The library, from the cache folder; for this process alone where it cannot lie there.

    Raises:
        OSError, subprocess.SubprocessError: it cannot be compiled, or not be loaded.
    """
    try:
        path = build(command, flags, private_folder(cache_dir() / "kernels"), sources)
        return path, ctypes.cdll.LoadLibrary(str(path))
    except OSError as error:  # the folder is not ours alone, the disk is full or may not execute
        with tempfile.TemporaryDirectory() as folder:
            path = build(command, flags, Path(folder), sources)
            library = ctypes.cdll.LoadLibrary(str(path))  # stays, without its file
        logger.warning("The compiled C++ kernels are not kept (slower start): %s", error)
        return path, library


def find_compiler() -> list[str] | None:
    """The command of a C++ compiler: the one that the environment names, or one that is there."""
    chosen = chosen_compiler()
    if chosen:
        with contextlib.suppress(ValueError):  # a quote without its other
            command = shlex.split(chosen)
            if command and shutil.which(command[0]):
                return command
        logger.warning(
            "The C++ compiler `%s` ($CXX) does not exist; using XLA for attention and matmuls "
            "(slower).",
            chosen,
        )
        return None
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    if found is None:
        logger.info("No C++ compiler found; using XLA for attention and matmuls (slower).")
    return [found] if found else None


def build(
    compiler: Sequence[str], flags: tuple[str, ...], folder: Path, sources: Sequence[Path]
) -> Path:
    """The library of the sources, compiled with `FLAGS` and `flags`; made in the folder if need be.

    One that was changed since, or that others may have written, is made anew.

    Raises:
        OSError, subprocess.SubprocessError: the compiler cannot be run, or failed.
    """
    texts = [path.read_text(encoding="utf-8") for path in (*sources, *HEADERS)]
    version = _run([*compiler, "--version"], VERSION_TIMEOUT_S)
    made_of = texts, list(compiler), version, FLAGS, flags, processor(), jaxlib.version.__version__
    library = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.so"
    if is_sealed(library):
        return library
    _remove_old_drafts(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=DRAFT) as draft:
        made = Path(draft) / library.name
        command = compile_command(compiler, flags)
        objects = [str(made.with_suffix(f".{number}.o")) for number, _ in enumerate(sources)]
        commands = [
            [*command, "-c", str(source), "-o", to]
            for source, to in zip(sources, objects, strict=True)
        ]
        with ThreadPoolExecutor() as pool:  # half of a first start is spent here
            list(pool.map(_run, commands))
        _run([*command, *objects, "-o", str(made)])
        made.replace(library)
    seal(library)
    return library


def _remove_old_drafts(folder: Path) -> None:
    """Removes what processes left that were killed while they compiled."""
    for draft in folder.glob(f"{DRAFT}*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > 2 * TIMEOUT_S:
                shutil.rmtree(draft)


def compile_command(compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    """The compiler with all flags; warnings are those of our sources, not of XLA's header."""
    return [*compiler, *FLAGS, *flags, "-isystem", jax.ffi.include_dir()]


def _run(command: Sequence[str], timeout_s: int = TIMEOUT_S) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=timeout_s
    )
    return done.stdout
