"""A real browser, and what a page in it asked for and complained about."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"
)
# Nothing but what the page itself does: no updates, no other protocol, no sandbox (tests may run
# as root, where it does not start).
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WAIT_MS = 60_000


@dataclass
class Visit:
    """A page under watch.

    Attributes:
        page: the page.
        url: address of the server.
        elsewhere: requests to other hosts.
        faults: errors in the console and exceptions of scripts.
    """

    page: Page
    url: str
    elsewhere: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def open(self, tab: str = "rank", *, ready: bool = True) -> Page:
        """Opens the page at a tab; waits until the server is ready."""
        self.page.goto(f"{self.url}/#{tab}")
        if ready:
            self.page.wait_for_selector(".dot.ready")
        return self.page

    def note(self, request: Request) -> None:
        """Notes a request that goes to another host."""
        if not request.url.startswith((f"{self.url}/", "blob:", "data:")):
            self.elsewhere.append(request.url)

    def hear(self, said: ConsoleMessage) -> None:
        """Notes an error in the console."""
        if said.type == "error":
            self.faults.append(said.text)

    def check(self) -> None:
        """Fails if anything went to another host, or was an error."""
        assert self.elsewhere == []
        assert self.faults == []


def launched(driver: Playwright) -> Browser:
    """The browser, with an empty profile."""
    return driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)


@contextmanager
def visit(
    browser: Browser, url: str, *, width: int = 1280, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Visit]:
    """A window that shares nothing with others, at the server's address."""
    context = browser.new_context(
        color_scheme=scheme,
        reduced_motion="reduce",
        viewport={"width": width, "height": 900},
        permissions=["clipboard-read", "clipboard-write"],
    )
    try:
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        seen = Visit(page, url)
        page.on("request", seen.note)
        page.on("console", seen.hear)
        page.on("pageerror", lambda error: seen.faults.append(str(error)))
        yield seen
    finally:
        context.close()
