"""Which level an engine takes, on which processor, with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest

from itemwise.config import EngineConfig
from itemwise.engine import cpu_level
from itemwise.engine.cpu_level import BY_NAME, LEVELS, choose_level
from itemwise.errors import ConfigError
from itemwise.ops.load_cpu import Kernels
from itemwise.types import CppLevel, CpuLevelName

BFLOAT16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
HASWELL = "fpu avx avx2 fma"
SKYLAKE = f"{HASWELL} avx512f avx512bw avx512cd avx512dq avx512vl"
COOPER_LAKE = f"{SKYLAKE} avx512_bf16"
SAPPHIRE_RAPIDS = f"{COOPER_LAKE} amx_bf16 amx_tile"


class Machine:
    """Stands in for a processor, and for a package with kernels or without."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flags, self.compiled = HASWELL, True
        self.broken: set[CppLevel] = set()
        monkeypatch.delenv("ITEMWISE_CPU_LEVEL", raising=False)
        monkeypatch.setattr(cpu_level, "instructions", lambda: frozenset(self.flags.split()))
        monkeypatch.setattr(cpu_level, "load_kernels", self._load)

    def _load(self, level: CppLevel) -> Kernels | None:
        activations = BY_NAME[level].activations
        works = self.compiled and level not in self.broken
        return Kernels(level, Path("kernels.so"), activations, 8) if works else None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def chosen(weights: np.dtype[Any] = BFLOAT16, **settings: Any) -> str:
    return choose_level(EngineConfig(**settings), weights).name


def test_every_level_has_a_row() -> None:
    assert {level.name for level in LEVELS} == set(get_args(CpuLevelName))
    cpp = {level.name for level in LEVELS if level.is_cpp}
    assert cpp == set(get_args(CppLevel))
    assert len(BY_NAME) == len(LEVELS)


@pytest.mark.parametrize(
    ("flags", "bfloat16", "float32", "native"),
    [
        (SAPPHIRE_RAPIDS, "cpp-amx", "cpp-avx512", "xla-bfloat16"),
        (COOPER_LAKE, "xla-bfloat16", "cpp-avx512", "xla-bfloat16"),
        (SKYLAKE, "cpp-avx512", "cpp-avx512", "xla-float32"),
        (f"{HASWELL} avx512f", "cpp-avx2", "cpp-avx2", "xla-float32"),
        (HASWELL, "cpp-avx2", "cpp-avx2", "xla-float32"),
        ("fpu avx avx2", "xla-float32", "xla-float32", "xla-float32"),
        ("fp asimd", "cpp-neon", "cpp-neon", "xla-float32"),
        ("fp asimd bf16", "xla-bfloat16", "cpp-neon", "xla-bfloat16"),
        ("", "xla-float32", "xla-float32", "xla-float32"),
    ],
)
def test_the_best_level_goes_by_processor_and_settings(
    flags: str, bfloat16: str, float32: str, native: str, machine: Machine
) -> None:
    machine.flags = flags
    assert chosen() == bfloat16
    assert chosen(FLOAT32) == float32
    assert chosen(attention_backend="native") == native
    assert chosen(FLOAT32, attention_backend="native") == "xla-float32"


def test_without_kernels_xla_serves(machine: Machine) -> None:
    machine.compiled = False
    assert chosen() == "xla-float32"
    machine.flags = SAPPHIRE_RAPIDS
    assert chosen() == "xla-bfloat16"
    assert chosen(FLOAT32) == "xla-float32"


def test_kernels_that_do_not_work_leave_the_processor_to_the_next_level(machine: Machine) -> None:
    machine.flags, machine.broken = SAPPHIRE_RAPIDS, {"cpp-amx"}
    assert chosen() == "xla-bfloat16"
    assert chosen(FLOAT32) == "cpp-avx512"


@pytest.mark.parametrize(
    "name",
    ["xla-bfloat16", "xla-float32", "cpp-avx2", "cpp-avx512", "cpp-amx", "cpp-avx2-bfloat16"],
)
def test_a_level_can_be_asked_for(
    name: CpuLevelName, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.flags = SAPPHIRE_RAPIDS
    monkeypatch.setenv("ITEMWISE_CPU_LEVEL", name)
    assert chosen() == name
    assert chosen(cpu_level="auto") == name
    assert chosen(cpu_level="cpp-avx2") == "cpp-avx2", "a setting comes before the environment"
    in_bfloat16 = BY_NAME[name].activations == "bfloat16"
    assert chosen(FLOAT32) == ("xla-float32" if in_bfloat16 else name)
    assert chosen(attention_backend="native") == (name if "xla" in name else "xla-float32")


@pytest.mark.parametrize(
    ("name", "lack"),
    [
        ("cpp-avx512", "needs a processor with avx512bw avx512dq avx512f avx512vl"),
        ("cpp-neon", "needs a processor with asimd"),
        ("avx2", "is unknown"),
    ],
)
def test_what_the_machine_cannot_run_is_refused(
    name: str, lack: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITEMWISE_CPU_LEVEL", name)
    with pytest.raises(ConfigError) as caught:
        chosen()
    assert str(caught.value) == (
        f"`ITEMWISE_CPU_LEVEL` is {name!r}, which {lack}; expected a level that this machine can "
        "run: xla-bfloat16, cpp-avx2, xla-float32, cpp-avx2-bfloat16, cpp-plain-bfloat16, or auto"
    )


def test_kernels_that_are_not_there_are_refused(machine: Machine) -> None:
    machine.compiled = False
    with pytest.raises(ConfigError) as caught:
        chosen(cpu_level="cpp-avx2")
    assert (
        "`cpu_level` is 'cpp-avx2', which needs C++ kernels that are compiled and work here"
        in str(caught.value)
    )
    assert "run: xla-bfloat16, xla-float32, or auto" in str(caught.value)
