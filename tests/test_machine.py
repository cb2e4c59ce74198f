"""Which processors multiply bfloat16 themselves."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from itemwise.machine import available_memory_bytes, environment, memory_bytes, multiplies_bfloat16


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 amx_bf16\n", True),
        ("processor : 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 fma avx512f\nbugs : bf16\n", False),
        ("processor : 0\nFeatures\t: fp asimd\n", False),
        ("", False),
    ],
)
def test_processor_says_whether_it_multiplies_bfloat16(
    cpuinfo: str, expected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert multiplies_bfloat16("cpu", path) is expected


def test_unknown_processor_counts_as_unable(tmp_path: Path) -> None:
    assert not multiplies_bfloat16("cpu", tmp_path / "none")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_multiply_bfloat16(platform: str, tmp_path: Path) -> None:
    assert multiplies_bfloat16(platform, tmp_path / "none")


def test_available_memory_is_what_linux_says(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  8000000 kB\nMemAvailable:    3000 kB\n")
    assert available_memory_bytes(path) == 3000 * 1024
    assert available_memory_bytes(tmp_path / "none") == memory_bytes()


def test_environment_names_the_machine_and_the_versions() -> None:
    found = environment()
    assert found["machine"]["cpu"]
    assert found["machine"]["memory_bytes"] == memory_bytes() >= available_memory_bytes()
    assert found["versions"]["jax"] == jax.__version__
