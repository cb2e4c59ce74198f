"""What tests of the C++ kernels share."""

from __future__ import annotations

import pytest

from itemwise.types import CppLevel
from tests.conftest import BFLOAT16_CPP_LEVELS, FLOAT32_CPP_LEVELS, require


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
