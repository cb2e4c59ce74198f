"""One browser driver, and one server with the demo model, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from itemwise.config import ServerConfig
from itemwise.scorer import Scorer
from tests.browser.browser import Visit, launched, visit
from tests.server.fakes import get, running_server, wait_until


@pytest.fixture(scope="module")  # while it is open, no other test can run an event loop
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver, launched(driver) as made:
        yield made


@pytest.fixture(scope="session")
def scorer() -> Scorer:
    return Scorer.from_pretrained()


@pytest.fixture(scope="session")
def server(scorer: Scorer) -> Iterator[str]:
    with running_server(ServerConfig(), lambda: scorer) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        yield url


@pytest.fixture
def visitor(browser: Browser, server: str) -> Iterator[Visit]:
    with visit(browser, server) as made:
        yield made
