"""The threads of the C++ kernels: every unit runs once, and who waits sleeps."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from itemwise.ops.build_cpu import OPS, compile_command

COMPILER = shutil.which("c++") or ""
pytestmark = pytest.mark.skipif(
    not COMPILER or sys.platform != "linux", reason="no C++ compiler, or no /proc"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("threads") / "run_units.so"
    source = Path(__file__).with_name("run_units.cc")
    command = compile_command([COMPILER], ["-march=native", "-shared", f"-I{OPS}"])
    subprocess.run([*command, str(source), "-o", str(made)], check=True)
    found = ctypes.CDLL(str(made))
    found.caller_sleeps.restype = ctypes.c_bool
    found.wrong_units.argtypes, found.wrong_units.restype = [ctypes.c_int64], ctypes.c_int64
    return found


def test_caller_sleeps_while_others_work(library: ctypes.CDLL) -> None:
    assert library.caller_sleeps()


def test_each_unit_runs_once(library: ctypes.CDLL) -> None:
    assert library.wrong_units(3000) == 0
