"""How a processor runs a model: one of a few levels, chosen once for an engine.

A level is the type of activations and the code that computes: XLA's, or C++ kernels that are
compiled for some instructions. To add one, add a row to `LEVELS` and its name to `types.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from itemwise.config import EngineConfig, chosen_cpu_level
from itemwise.errors import ConfigError
from itemwise.machine import instructions
from itemwise.ops.build_cpu import TARGETS
from itemwise.ops.load_cpu import Kernels, load_kernels
from itemwise.types import CppLevel, CpuLevelName


@dataclass(frozen=True)
class CpuLevel:
    """A way to run a model on a processor.

    Attributes:
        name: as settings and `/server_info` have it.
        activations: their type, and that of pages. Weights in float32 need float32.
        instructions: sets of extensions, as /proc/cpuinfo names them. A processor that has all of
            any one set is meant for the level. XLA runs its levels on every processor and emulates
            the instructions that are missing; C++ needs them.
        on_request: whether an engine takes it only when it is asked for.
    """

    name: CpuLevelName
    activations: Literal["bfloat16", "float32"]
    instructions: tuple[frozenset[str], ...]
    on_request: bool = False

    @property
    def is_cpp(self) -> bool:
        """Whether C++ kernels compute attention and matrix products, and not XLA."""
        return self.name in TARGETS

    @property
    def meaning(self) -> str:
        """What the level is, in words."""
        code = "XLA computes everything"
        if self.is_cpp:
            code = "C++ kernels compute attention and matrix products"
        return f"{code}, activations are {self.activations}"

    def suits(self, found: frozenset[str]) -> bool:
        """Whether a processor with these instructions is meant for the level."""
        return any(wanted <= found for wanted in self.instructions)

    def kernels(self) -> Kernels | None:
        """The level's C++ kernels, loaded at the first call; None for XLA, or if there are none."""
        return load_kernels(cast(CppLevel, self.name)) if self.is_cpp else None

    def lack(self) -> str | None:
        """Why this machine cannot run the level; None if it can."""
        if not self.is_cpp:
            return None
        if not self.suits(instructions()):
            return f"needs a processor with {' or '.join(map(_listed, self.instructions))}"
        return None if self.kernels() else "needs C++ kernels that are compiled and work here"


def _cpp(name: CppLevel, on_request: bool = False) -> CpuLevel:
    target = TARGETS[name]
    return CpuLevel(name, target.activations, (target.instructions,), on_request)


# The best first: without other wishes an engine takes the first one that suits the processor. The
# levels of C++ in bfloat16 have the same products, `cpp-amx` included: see `ops/bfloat16.h`.
LEVELS = (
    _cpp("cpp-amx"),
    CpuLevel(
        "xla-bfloat16",
        "bfloat16",
        (frozenset({"amx_bf16"}), frozenset({"avx512_bf16"}), frozenset({"bf16"})),
    ),
    _cpp("cpp-avx512"),
    _cpp("cpp-avx2"),
    _cpp("cpp-neon"),
    CpuLevel("xla-float32", "float32", (frozenset(),)),
    _cpp("cpp-avx512-bfloat16", on_request=True),
    _cpp("cpp-avx2-bfloat16", on_request=True),
    _cpp("cpp-plain-bfloat16", on_request=True),
)
BY_NAME = {level.name: level for level in LEVELS}
PLAIN = BY_NAME["xla-float32"]  # runs everywhere, with all settings


def choose_level(config: EngineConfig, weights: np.dtype[Any]) -> CpuLevel:
    """The level for weights of a type: the one that is asked for, or the best.

    A level that does not go with the weights or with `attention_backend` counts as xla-float32.

    Raises:
        ConfigError: this machine cannot run the level that is asked for.
    """
    source, name = "cpu_level", str(config.cpu_level)
    if name == "auto":
        source, name = "ITEMWISE_CPU_LEVEL", chosen_cpu_level()
    if name == "auto":
        return _best(config, weights)
    level = next((level for level in LEVELS if level.name == name), None)
    lack = level.lack() if level else "is unknown"
    if level is None or lack:
        able = ", ".join(level.name for level in LEVELS if level.lack() is None)
        raise ConfigError(
            f"`{source}` is {name!r}, which {lack}; expected a level that this machine can run: "
            f"{able}, or auto"
        )
    return level if _fits(level, config, weights) else PLAIN


def _best(config: EngineConfig, weights: np.dtype[Any]) -> CpuLevel:
    """The first level that suits the processor and whose kernels can be had."""
    found = instructions()
    suitable = (
        level
        for level in LEVELS
        if not level.on_request and level.suits(found) and _fits(level, config, weights)
    )
    return next((level for level in suitable if level.lack() is None), PLAIN)


def _fits(level: CpuLevel, config: EngineConfig, weights: np.dtype[Any]) -> bool:
    """Whether a level goes with the settings."""
    wide_enough = level.activations == "float32" or weights != np.float32
    return wide_enough and (not level.is_cpp or config.attention_backend != "native")


def _listed(names: frozenset[str]) -> str:
    return " ".join(sorted(names))
