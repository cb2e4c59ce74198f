"""The server that clients are pointed at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from itemwise import Scorer
from itemwise.config import ServerConfig
from tests.conftest import DEMO_POOL
from tests.server.fakes import get, running_server, wait_until


@pytest.fixture(scope="module")
def scorer(cache_folder: str) -> Scorer:
    return Scorer.from_pretrained(compilation_cache_dir=cache_folder, kv_cache_bytes=DEMO_POOL)


@pytest.fixture(scope="module")
def url(scorer: Scorer) -> Iterator[str]:
    with running_server(ServerConfig("itemwise/demo"), lambda: scorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made
