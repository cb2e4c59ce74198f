"""What the processor is, and what it can do."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Instructions that multiply bfloat16, as Linux names them on x86-64 and on Arm.
BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})


CPUINFO = Path("/proc/cpuinfo")


def multiplies_bfloat16(platform: str, cpuinfo: Path = CPUINFO) -> bool:
    """Whether a device has bfloat16 instructions.

    Accelerators count as having them, processors where they say so. XLA emulates them on others,
    which on two cores with AVX2 runs at 110 GFLOP/s where float32 runs at 180.

    Args:
        platform: JAX's name of the kind of device: `cpu`, `gpu`, `tpu`.
        cpuinfo: what Linux tells about the processor; other systems count as unable.
    """
    if platform != "cpu":
        return True
    return not BFLOAT16_FLAGS.isdisjoint(_line(cpuinfo, "flags", "Features").split())


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name, instructions and cores: what compiled code may depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = _line(cpuinfo, "model name", "CPU part") or platform.processor()
    return f"{platform.machine()} {name} {cores} {_line(cpuinfo, 'flags', 'Features')}"


def _line(cpuinfo: Path, *starts: str) -> str:
    """The first line that begins so; empty on systems other than Linux."""
    if not cpuinfo.exists():
        return ""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(starts)), "")
