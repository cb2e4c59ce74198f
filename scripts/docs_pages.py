"""A hook of MkDocs: pages outside docs/ join the site, and links between all of them follow."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
# From files of the project to pages of the site. Other files outside docs/ are not on the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "LICENSE": "LICENSE.md",
    "src/itemwise/demo_model/README.md": "demo_model.md",
}
# In Markdown, and in the tags of pictures.
_LINK = re.compile(r'(?:(?<=\]\()|(?<=src=")|(?<=srcset="))([^)\s#:"]+)(?=[)#"])')


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds to the navigation what it does not name: the decisions, and new pages."""
    docs = Path(config.docs_dir)
    assert config.nav is not None
    named = str(config.nav)
    more = sorted(page.name for page in docs.glob("*.md") if f"'{page.name}'" not in named)
    decisions = sorted(f"decisions/{page.name}" for page in (docs / "decisions").glob("0*.md"))
    if more:
        config.nav.append({"More": more})
    config.nav.append({"Decisions": ["decisions/README.md", *decisions]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        if source == "LICENSE":
            text = f"# License\n\n```\n{text}```\n"
        content = _LINK.sub(lambda link, at=source: _on_site(link[1], at), text)
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links of pages in docs/ to files outside it."""
    if page.file.generated_by:
        return markdown
    source = f"docs/{page.file.src_uri}"
    here = posixpath.dirname(page.file.src_uri)
    return _LINK.sub(lambda link: _on_site(link[1], source, here), markdown)


def _on_site(link: str, source: str, here: str = "") -> str:
    """A link of a file of the project, as a link between pages of the site."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    if target in PAGES:
        page = PAGES[target]
    elif target.startswith("docs/"):
        page = target.removeprefix("docs/")
        if page == "results":  # a folder of raw results
            page = "performance-history.md"
    else:
        return link  # the build says that there is no such page
    return posixpath.relpath(page, here) if here else page
