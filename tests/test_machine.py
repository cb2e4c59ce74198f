"""What a processor says of itself."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from itemwise.machine import (
    available_memory_bytes,
    environment,
    instructions,
    memory_bytes,
    memory_limit_bytes,
    release_memory,
)


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n", {"fpu", "avx2", "avx512_bf16"}),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", {"fp", "asimd", "bf16", "i8mm"}),
        ("processor : 0\nflags\t\t: fpu avx2 fma\nbugs : bf16\n", {"fpu", "avx2", "fma"}),
        ("", set()),
    ],
)
def test_instructions_are_what_linux_tells(
    cpuinfo: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert instructions(path) == expected


def test_available_memory_is_what_linux_says(tmp_path: Path) -> None:
    path, none = tmp_path / "meminfo", tmp_path / "none"
    path.write_text("MemTotal:  8000000 kB\nMemAvailable:    3000 kB\n")
    assert available_memory_bytes(path, none) == 3000 * 1024
    assert available_memory_bytes(none, none) == memory_bytes()


@pytest.mark.parametrize(
    ("text", "folder", "files", "cached"),
    [
        ("0::/a/b\n", "a", ("memory.max", "memory.current"), "inactive_file"),
        ("0::/not/in/the/container\n", "", ("memory.max", "memory.current"), "active_file"),
        (
            "9:cpu:/x\n4:memory:/a/b\n0::/\n",
            "memory/a/b",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
        ),
    ],
)
def test_a_control_group_limits_memory(
    text: str, folder: str, files: tuple[str, str], cached: str, tmp_path: Path
) -> None:
    groups, mounts, meminfo = tmp_path / "cgroup", tmp_path / "mounts", tmp_path / "none"
    groups.write_text(text)
    assert memory_limit_bytes(groups, mounts) == memory_bytes()
    (mounts / folder).mkdir(parents=True)
    for name, value in zip(files, ("5000", "3000"), strict=True):
        (mounts / folder / name).write_text(f"{value}\n")
    (mounts / folder / "memory.stat").write_text(f"anon 7\n{cached} 1000\n")
    assert memory_limit_bytes(groups, mounts) == 5000
    assert available_memory_bytes(meminfo, groups, mounts) == 5000 - (3000 - 1000)
    (mounts / folder / files[0]).write_text("max\n")
    assert memory_limit_bytes(groups, mounts) == memory_bytes()


def test_environment_names_the_machine_and_the_versions() -> None:
    found = environment()
    assert found["machine"]["cpu"]
    assert found["machine"]["memory_bytes"] == memory_bytes() >= available_memory_bytes()
    assert found["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(("machine", "expected"), [("x86_64", set()), ("arm64", {"asimd"})])
def test_without_linux_what_the_kind_always_has(
    machine: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert instructions(tmp_path / "none") == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * mmap.PAGESIZE

    kept = [bytearray(100_000) for _ in range(1000)]  # too small for pages of their own
    last = bytearray(100_000)  # above them on the heap
    before = resident()
    kept.clear()
    release_memory()
    assert before - resident() > 50_000_000
    assert len(last) == 100_000


COUNT_HEAPS = """
import ctypes, sys, threading
from itemwise.machine import share_memory_between_threads

if sys.argv[1] == "shared":
    share_memory_between_threads()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
all_here = threading.Barrier(6)

def allocate() -> None:
    all_here.wait(60)
    assert libc.malloc(ctypes.c_size_t(1000))  # kept
    all_here.wait(60)

threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
@pytest.mark.parametrize("shared", [True, False])
def test_threads_allocate_from_two_heaps(shared: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_HEAPS, "shared" if shared else "as they are"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    heaps = done.stdout.count("<heap nr=")
    assert heaps <= 2 if shared else heaps > 2
