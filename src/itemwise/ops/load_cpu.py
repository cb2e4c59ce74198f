"""Loads the C++ kernels that the package holds, and makes them known to XLA.

Code for one set of instructions is one library; a process may load several. `build_cpu.py` compiles
them when the package is built.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from itemwise.ops.build_cpu import TARGETS, library_of
from itemwise.ops.linear import cpu as cpu_linear
from itemwise.ops.step import cpu as cpu_step
from itemwise.types import CppLevel

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
    activations: Literal["bfloat16", "float32"]
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
def load_kernels(level: CppLevel) -> Kernels | None:
    """Loads the kernels of a level, if that was not done before.

    Returns:
        the kernels; None where the package has none, where they cannot be loaded, where the
        operating system refuses what they need, or where their products have other bits than they
        should, which is logged.
    """
    path = library_of(level)
    if not path.exists():
        logger.warning(
            "The C++ kernels for %s are not compiled; using XLA for attention and matmuls "
            "(slower). To compile them: python -m itemwise.ops.build_cpu",
            level,
        )
        return None
    try:
        library = ctypes.cdll.LoadLibrary(str(path))
        symbols = [library[kernel.SYMBOL] for kernel in (cpu_step, cpu_linear)]
        kernels = Kernels(level, path, TARGETS[level].activations, library.itemwise_panel())
        library.itemwise_lack.restype = ctypes.c_char_p
        lack: bytes | None = library.itemwise_lack()
    except (OSError, AttributeError) as error:
        logger.warning(
            "The C++ kernels for %s cannot be loaded; using XLA for attention and matmuls "
            "(slower): %s",
            level,
            error,
        )
        return None
    if lack is not None:
        logger.warning(
            "The C++ kernels for %s do not work here; using XLA for attention and matmuls "
            "(slower): %s",
            level,
            lack.decode(),
        )
        return None
    for kernel, symbol in zip((cpu_step, cpu_linear), symbols, strict=True):
        target = kernel.target(level)
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform="cpu")
    return kernels
