"""The level `cpp-amx` on a processor without AMX: an emulator executes what works on tiles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from itemwise.ops.build_cpu import OPS, compile_library
from tests.conftest import CPP_LEVELS
from tests.ops.amx.plugin import FLAGS

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("c++") or ""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMPILER, reason="no C++ compiler"),
    pytest.mark.skipif("cpp-avx2" not in CPP_LEVELS, reason="no AVX2"),
    pytest.mark.skipif("cpp-amx" in CPP_LEVELS, reason="this processor has AMX itself"),
    pytest.mark.skipif(sys.platform != "linux", reason="the emulator is for Linux"),
]
# What a library says of itself when it is loaded.
LACK = """\
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.itemwise_lack.restype = ctypes.c_char_p
print(library.itemwise_lack())
"""
OTHER_BITS = "b'its products have other bits than they should, on this processor'"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("emulator") / "emulator.so"
    compile_library([COMPILER], FLAGS, [Path(__file__).with_name("amx") / "emulator.cc"], library)
    return library


@pytest.fixture
def lack(tmp_path: Path) -> Callable[..., str]:
    """What a library of products lacks, with a text of `bfloat16.h` in place of another."""

    def compile_and_ask(right: str, wrong: str, **environment: str) -> str:
        shutil.copytree(OPS, tmp_path / "ops", ignore=shutil.ignore_patterns("compiled"))
        header, library = tmp_path / "ops/bfloat16.h", tmp_path / "products.so"
        text = header.read_text()
        assert right in text
        header.write_text(text.replace(right, wrong))
        compile_library([COMPILER], FLAGS, [tmp_path / "ops/linear/cpu_bfloat16.cc"], library)
        command = [sys.executable, "-c", LACK, str(library)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
        )
        return done.stdout.strip() or done.stderr.strip()

    return compile_and_ask


def test_the_system_refuses_tiles_that_it_does_not_have(lack: Callable[..., str]) -> None:
    assert lack("", "") == "b'the operating system refuses AMX tiles'"


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("", "", "None"),
        ('"tilezero %%tmm" #tile ::', '"" ::', OTHER_BITS),
        ("ITEMWISE_TILE_PRODUCT(1, 4, 7);", "ITEMWISE_TILE_PRODUCT(1, 4, 6);", OTHER_BITS),
        ("ITEMWISE_TILE_PRODUCT(3, 5, 7);", ";", OTHER_BITS),
        ("{16, 16, 16, 16, 16, 16, 16, 16}", "{16, 16, 16, 15, 16, 16, 16, 16}", "AMX emulator"),
        ('asm volatile("ldtilecfg %0" ::"m"(config) : "memory");', "", "AMX emulator"),
    ],
    ids=["as it is", "tiles not zeroed", "other columns", "a tile less", "rows", "no tiles"],
)
def test_products_on_tiles_are_compared(
    right: str, wrong: str, expected: str, lack: Callable[..., str], emulator: Path
) -> None:
    assert expected in lack(right, wrong, LD_PRELOAD=str(emulator))


def test_its_tests_pass() -> None:
    """Products, attention and whole engines, with the bits of the plain level."""
    files = [f"tests/ops/{room}/test_cpu_bfloat16.py" for room in ("linear", "step")]
    chosen = [*files, "tests/test_levels.py", "-k", "cpp-amx or levels_of_cpp"]
    command = [sys.executable, "-m", "tests.ops.amx", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout, "the level was not used"
