"""What tests of the C++ kernels share."""

from __future__ import annotations

import pytest

from itemwise.types import CppLevel
from tests.conftest import CPP_LEVELS, require


@pytest.fixture(scope="module", params=CPP_LEVELS)
def level(request: pytest.FixtureRequest) -> CppLevel:
    """Each C++ level that this machine runs."""
    require(request.param)
    level: CppLevel = request.param
    return level
