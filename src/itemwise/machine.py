"""What this machine is and can do, and what is installed on it. Light: imports no JAX."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("itemwise", "jax", "jaxlib", "numpy", "torch", "transformers")
CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
M_ARENA_MAX = -8  # of `malloc.h`
OWN_GROUPS, GROUP_MOUNTS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


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


def memory_limit_bytes(groups: Path = OWN_GROUPS, mounts: Path = GROUP_MOUNTS) -> int:
    """Memory that this process may use at most: the machine's, or what a control group allows."""
    limits = [group.limit for group in _memory_groups(groups, mounts)]
    return min([memory_bytes(), *limits])


def available_memory_bytes(
    meminfo: Path = MEMINFO, groups: Path = OWN_GROUPS, mounts: Path = GROUP_MOUNTS
) -> int:
    """Memory that a process can still use without swapping, by the machine and its control groups.

    All of it if the system does not say.
    """
    available = _line(meminfo, "MemAvailable:").split()
    of_machine = int(available[1]) * 1024 if available else memory_bytes()
    of_groups = [group.limit - group.used for group in _memory_groups(groups, mounts)]
    return max(0, min([of_machine, *of_groups]))


class _MemoryGroup(NamedTuple):
    """What a control group may use of memory, and uses apart from what can be dropped at once."""

    limit: int
    used: int


def _memory_groups(groups: Path, mounts: Path) -> Iterator[_MemoryGroup]:
    """This process's control groups that limit memory, of version 1 or 2, with those above them.

    In a container the path of a group may not exist, and its own files lie where groups are
    mounted.
    """
    if not groups.exists():  # not Linux
        return
    for line in groups.read_text(encoding="utf-8").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = mounts / controllers
        path = top / name.lstrip("/")
        for folder in (path, *path.parents):
            found = _read_group(folder, _VERSION_1 if controllers else _VERSION_2)
            if found:
                yield found
            if folder == top:
                break


class _GroupFiles(NamedTuple):
    """Where a control group says what it may use and uses, and what of that are cached files."""

    limit: str
    used: str
    cached: tuple[str, str]  # in memory.stat


_VERSION_1 = _GroupFiles(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
_VERSION_2 = _GroupFiles("memory.max", "memory.current", ("inactive_file", "active_file"))


def _read_group(folder: Path, files: _GroupFiles) -> _MemoryGroup | None:
    """What a control group allows; None where there is none or it has no limit."""
    try:
        limit, used = (
            int((folder / name).read_text("ascii")) for name in (files.limit, files.used)
        )
        lines = (folder / "memory.stat").read_text("ascii").splitlines()
    except (OSError, ValueError):
        return None
    stat = dict(line.split(maxsplit=1) for line in lines)
    return _MemoryGroup(limit, used - sum(int(stat.get(name, 0)) for name in files.cached))


def release_memory() -> None:
    """Gives memory that the process has freed back to the system.

    The GNU C library else keeps it: hundreds of MiB after programs were compiled.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def share_memory_between_threads() -> None:
    """Lets all threads allocate from two heaps, instead of eight for each core.

    For processes with many threads and large, short-lived values: a freed block in one thread's
    heap is of no use to the others. To be called before threads start.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


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
