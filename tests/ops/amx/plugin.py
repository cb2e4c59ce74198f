"""A plugin of pytest for `python -m tests.ops.amx`: the level `cpp-amx` without AMX.

The level's library is compiled for AVX2 and tiles, not for AVX-512, and `emulator.cc` executes the
instructions on tiles. As on a processor with AMX, engines take the level by default.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from unittest import mock

from itemwise.types import CppLevel

FLAGS = ("-mavx2", "-mfma", "-DITEMWISE_AMX")
LIBRARY = "ITEMWISE_TEST_AMX_LIBRARY"  # the environment's name for the compiled library


def pytest_load_initial_conftests() -> None:
    """Changes the level before tests read the table, and after shapes are checked on import."""
    from itemwise.ops import build_cpu, load_cpu

    avx2 = build_cpu.TARGETS["cpp-avx2"].instructions
    amx = replace(build_cpu.TARGETS["cpp-amx"], instructions=avx2, flags=FLAGS)
    build_cpu.TARGETS["cpp-amx"] = amx
    compiled = Path(os.environ[LIBRARY])

    def library_of(level: CppLevel) -> Path:
        return compiled if level == "cpp-amx" else build_cpu.library_of(level)

    mock.patch.object(load_cpu, "library_of", library_of).start()
