"""Runs tests of the level `cpp-amx` on a processor without AMX: Linux on x86-64 with AVX2.

    PYTHONPATH=src python -m tests.ops.amx                           # tests of that level
    PYTHONPATH=src python -m tests.ops.amx tests/test_scorer.py -x   # by default on it

Needs a C++ compiler. The kernels' own instructions on tiles run: each one traps, and `emulator.cc`
executes it. That shows layouts, masks, tiles and threads, but neither the arithmetic of a processor
with AMX nor its speed. Tests that name processors, such as `tests/engine/test_cpu_level.py`, fail
here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from itemwise.ops.build_cpu import SOURCES, compile_library, find_compiler
from tests.ops.amx.plugin import FLAGS, LIBRARY

EMULATOR = Path(__file__).with_name("emulator.cc")
OF_THE_LEVEL = ["-k", "cpp-amx or levels_of_cpp", "tests"]


def main() -> int:
    """Compiles both, and runs pytest with the arguments; its exit status."""
    compiler = find_compiler()
    if compiler is None:
        raise SystemExit("The emulator needs a C++ compiler.")
    with tempfile.TemporaryDirectory() as folder:
        kernels, emulator = Path(folder) / "kernels.so", Path(folder) / "emulator.so"
        compile_library(compiler, FLAGS, SOURCES["bfloat16"], kernels)
        compile_library(compiler, FLAGS, [EMULATOR], emulator)
        environment = {**os.environ, LIBRARY: str(kernels), "LD_PRELOAD": str(emulator)}
        command = [sys.executable, "-m", "pytest", "-p", "tests.ops.amx.plugin"]
        arguments = sys.argv[1:] or OF_THE_LEVEL
        return subprocess.run([*command, *arguments], env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
