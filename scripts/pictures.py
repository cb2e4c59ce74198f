"""Makes the pictures in docs/images from the real thing: the demo in a terminal, the playground.

make pictures
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from itemwise.cli.demo import run_demo

IMAGES = Path(__file__).parents[1] / "docs" / "images"
COLUMNS = 92  # of the terminal
SIZE = (1200, 780)  # of the browser's window
MAX_BYTES = 100_000


def main() -> None:
    """Writes all pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    picture_of_demo(IMAGES / "demo.svg")
    with server() as url:
        pictures_of_playground(url, IMAGES)
    for path in sorted(IMAGES.iterdir()):
        size = path.stat().st_size
        print(f"{path.relative_to(IMAGES.parents[1])}: {size:,} bytes")
        assert size < MAX_BYTES, f"{path} is too large for a picture on the first page"


def picture_of_demo(path: Path) -> None:
    """What `itemwise demo` prints, as a picture of a terminal."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, legacy_windows=False
    )
    assert run_demo(console), "the demo failed, so there is nothing to show"
    # Rich's own picture loads a font from another host.
    code = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S)
    text = console.export_svg(title="itemwise demo", code_format=code, unique_id="demo")
    assert "url(http" not in text
    path.write_text(text, encoding="utf-8")


def pictures_of_playground(url: str, folder: Path) -> None:
    """The tab Rank with a ranking, in light and in dark."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for scheme, name in (("light", "playground"), ("dark", "playground-dark")):
            width, height = SIZE
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
            )
            page = context.new_page()
            page.goto(url)
            rank(page)
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.save(folder / f"{name}.webp", lossless=True, quality=100, method=6)
        browser.close()


def rank(page: Page) -> None:
    """Ranks the page's own example; twice, since the first request is slower than all others."""
    page.wait_for_selector(".dot.ready")
    for _ in range(2):
        page.click("#rank button[name=send]")
        page.wait_for_selector("#rank:not(.busy) .ranking li")
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")


@contextmanager
def server() -> Iterator[str]:
    """A server with the demo model, on a free port; gives its address once it is ready."""
    command = [sys.executable, "-m", "itemwise", "serve", "--port", "0", "--log-level", "warning"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        url = ""
        for line in process.stdout:
            url = url or next(iter(re.findall(r"listening on (http://\S+)", line)), "")
            if line.startswith("Ready"):
                break
        yield url
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
