"""What this machine is and can do, and what is installed on it. Light: imports no JAX."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = ("itemwise", "jax", "jaxlib", "numpy", "torch", "transformers")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")


def instructions(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Extensions of the processor's instruction set, as Linux names them on x86-64 and on Arm.

    On other systems, only the extensions that every processor of the architecture has.
    """
    found = _line(cpuinfo, "flags", "Features").partition(":")[2].split()
    always = ["asimd"] if platform.machine() in ("aarch64", "arm64") else []
    return frozenset([*found, *always])


def processor(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name, instructions and cores: what compiled code may depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = _line(cpuinfo, "model name", "CPU part") or platform.processor()
    return f"{platform.machine()} {name} {cores} {_line(cpuinfo, 'flags', 'Features')}"


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_memory_bytes(meminfo: Path = MEMINFO) -> int:
    """Memory that a new process can use without swapping; all of it if the system does not say."""
    available = _line(meminfo, "MemAvailable:").split()
    return int(available[1]) * 1024 if available else memory_bytes()


def environment() -> dict[str, Any]:
    """Where and when something was measured: date, machine, versions and commit, as JSON values."""
    name = _line(CPUINFO, "model name").partition(":")[2].strip()
    cpu = name or platform.processor() or platform.machine()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cpu": cpu, "cores": os.cpu_count(), "memory_bytes": memory_bytes()},
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that scores depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the source tree, marked `-dirty` if files differ; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--dirty"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _line(path: Path, *starts: str) -> str:
    """The first line with one of these beginnings; empty on systems other than Linux."""
    if not path.exists():
        return ""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in lines if line.startswith(starts)), "")
