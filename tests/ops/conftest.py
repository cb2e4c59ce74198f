"""What tests of the C++ kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from itemwise.engine.compile_cache import compiling_into
from itemwise.machine_code import private_folder
from itemwise.types import CppLevel
from tests.conftest import BFLOAT16_CPP_LEVELS, FLOAT32_CPP_LEVELS, kept_programs, require


@pytest.fixture(scope="package", autouse=True)
def programs_kept(pytestconfig: pytest.Config) -> Iterator[None]:
    """What these tests compile stays in a folder of their own; no engine starts meanwhile."""
    with compiling_into(private_folder(kept_programs(pytestconfig) / "ops")):
        yield


@pytest.fixture(scope="module", params=FLOAT32_CPP_LEVELS)
def level(request: pytest.FixtureRequest) -> CppLevel:
    """Each C++ level with float32 activations that this machine runs."""
    require(request.param)
    level: CppLevel = request.param
    return level


@pytest.fixture(scope="module", params=BFLOAT16_CPP_LEVELS)
def bfloat16_level(request: pytest.FixtureRequest) -> CppLevel:
    """Each C++ level with bfloat16 activations that this machine runs."""
    require(request.param)
    level: CppLevel = request.param
    return level
