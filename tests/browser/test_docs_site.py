"""The documentation as a site: every link leads somewhere, and nothing comes from other hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser.browser import needs_chromium

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def build(site: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    done = build(made)
    assert done.returncode == 0, done.stderr
    return made


def test_every_page_of_the_project_is_on_the_site(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    made = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")}
    readme = Path("decisions/README.md")
    assert pages - made - {readme} == set()
    assert {Path(name) for name in ("decisions/index.md", "CONTRIBUTING.md", "LICENSE.md")} <= made
    # What a page of the project links outside docs/ is a page of the site, too.
    assert 'href="demo_model.html"' in (site / "index.html").read_text()


def test_a_link_to_nowhere_fails_the_build(tmp_path: Path) -> None:
    """Plants the fault in a copy."""
    for name in ("docs", "scripts", "src/itemwise/demo_model"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    assert build(tmp_path / "site", tmp_path).returncode == 0
    with (tmp_path / "docs" / "gpu.md").open("a") as page:
        page.write("\n[nothing](nowhere.md)\n")
    done = build(tmp_path / "site", tmp_path)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


@needs_chromium
def test_site_can_be_read_without_a_network(browser: Browser, site: Path) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    for name in ("index.html", "architecture.html", "playground.html"):
        page.goto((site / name).as_uri())
        assert page.locator("h1").count() == 1
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert any(url.endswith("images/playground.webp") for url in asked)
