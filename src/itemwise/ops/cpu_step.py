"""The exact step's attention as C++ (`cpu_step.cc`), compiled on the machine that runs it.

The same meaning as the XLA form (`attention.py`), and the same promise: a query's keys come one
after the other, counted from its row's first token, then from the beginning of its context.
XLA cannot keep a block of scores in registers and cache, nor leave the places of a short row out.

The compiled library lies in the cache folder, under a name that stands for the source, the compiler
and the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32

from itemwise.config import cache_dir
from itemwise.hardware import processor
from itemwise.ops.attention import StepLayout
from itemwise.types import StepShape

SOURCE = Path(__file__).with_suffix(".cc")
TARGET = "itemwise_attend"
# Products are fused with sums where the source says so, and nowhere else.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-w")
COMPILE_TIMEOUT_S = 120
logger = logging.getLogger("itemwise.engine")


@functools.cache
def load_kernel() -> Path | None:
    """Compiles the kernel, if that was not done before, and makes it known to XLA.

    Returns:
        the library; None where there is no C++ compiler, or where it failed, which is logged.
    """
    name = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    compiler = shutil.which(name) if name else None
    if compiler is None:
        logger.info("no C++ compiler, attention runs in XLA")
        return None
    try:
        library = _build(compiler, cache_dir() / "kernels")
        handler = getattr(ctypes.cdll.LoadLibrary(str(library)), TARGET)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("attention runs in XLA, as its kernel cannot be built: %s", reason.strip())
        return None
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    return library


def _build(compiler: str, folder: Path) -> Path:
    """The compiled library in the folder, made there if need be."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    made_of = (SOURCE.read_text(), version.stdout, FLAGS, processor(), jax.__version__)
    library = folder / f"{hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        made = Path(draft) / library.name
        command = [compiler, *FLAGS, f"-I{jax.ffi.include_dir()}", str(SOURCE), "-o", str(made)]
        subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=COMPILE_TIMEOUT_S
        )
        made.replace(library)
    return library


def attend_cpu(
    q: Float32[Array, "T N H"],
    k: Float32[Array, "T K H"],
    v: Float32[Array, "T K H"],
    k_pages: Float32[Array, "P K page H"],
    v_pages: Float32[Array, "P K page H"],
    layout: StepLayout,
    shape: StepShape,
) -> Float32[Array, "T N H"]:
    """Attention output of every token place; places outside rows hold finite garbage.

    Only after `load_kernel`.
    """
    seen: Array = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(q.shape, jnp.float32))(
        q,
        k,
        v,
        k_pages,
        v_pages,
        layout.lane_start,
        layout.num_lanes,
        layout.context_pages,
        layout.context_lens,
        layout.granule_start,
        layout.granule_index,
        layout.num_granules,
        lane_tokens=np.int64(shape.lane_tokens),
        granule_tokens=np.int64(shape.granule_tokens),
    )
    return seen
