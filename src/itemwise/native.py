"""Compiles the C++ kernels on the machine that runs them, and makes them known to XLA.

The library lies in the cache folder, under a name that stands for the source, the compiler and the
processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax

from itemwise.config import cache_dir, chosen_compiler
from itemwise.hardware import processor
from itemwise.ops import cpu_linear, cpu_step

SOURCES = tuple(Path(str(kernel.__file__)).with_suffix(".cc") for kernel in (cpu_step, cpu_linear))
HEADER = SOURCES[0].with_name("cpu.h")
COMPILERS = ("c++", "g++", "clang++")
# Products are fused with sums where the source says so, and nowhere else.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-w")
TIMEOUT_S = 120
logger = logging.getLogger("itemwise.engine")


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Attributes:
        library: the file.
        panel_width: outputs that lie side by side in a panel of weights, see `to_panels`.
    """

    library: Path
    panel_width: int


@functools.cache
def load_kernels() -> Kernels | None:
    """Compiles the kernels, if that was not done before, and makes them known to XLA.

    Returns:
        the kernels; None where there is no C++ compiler, or where it failed, which is logged.
    """
    chosen = chosen_compiler()
    names = (chosen,) if chosen else COMPILERS
    compiler = next(filter(None, map(shutil.which, names)), None)
    if compiler is None:
        logger.info("no C++ compiler, all runs in XLA")
        return None
    try:
        path = build(compiler, cache_dir() / "kernels")
        library = ctypes.cdll.LoadLibrary(str(path))
        targets = [(kernel.TARGET, library[kernel.TARGET]) for kernel in (cpu_step, cpu_linear)]
        kernels = Kernels(path, library.itemwise_panel())
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("all runs in XLA, as the C++ kernels cannot be built: %s", reason.strip())
        return None
    for target, handler in targets:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")
    return kernels


def build(compiler: str, folder: Path) -> Path:
    """The compiled library in the folder, made there if need be.

    Raises:
        OSError, subprocess.SubprocessError: the compiler cannot be run, or failed.
    """
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    texts = [path.read_text(encoding="utf-8") for path in (*SOURCES, HEADER)]
    made_of = (texts, version.stdout, FLAGS, processor(), jax.__version__)
    library = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        made = Path(draft) / library.name
        include = f"-I{jax.ffi.include_dir()}"
        command = [compiler, *FLAGS, include, *map(str, SOURCES), "-o", str(made)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        made.replace(library)
    return library
