"""Markdown that shows texts of others as they are: no HTML, links or headings come of them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_MARKS = re.compile(
    r"[\\`*\[\]|#~$]"
    r"|<(?=[A-Za-z/!?])|&(?=#?\w+;)"  # tags and entities
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, which does not begin or end inside a word
    r"|(?<=[A-Za-z]):(?=//)"  # bare links
    r"|^[-+](?=\s)|^[-=](?=[-=]+$)|^>|(?<=^\d)[.)](?=\s)"  # lists, lines, quotes
)


def markdown_text(text: str) -> str:
    """A text of anyone, on one line."""

    def escaped(mark: re.Match[str]) -> str:
        return "&lt;" if mark[0] == "<" else f"\\{mark[0]}"

    return _MARKS.sub(escaped, " ".join(text.split()))


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table of texts of anyone."""
    texts = [[markdown_text(str(cell)) for cell in row] for row in (headings, *rows)]
    texts.insert(1, ["---"] * len(headings))
    return ["| " + " | ".join(row) + " |" for row in texts]


def markdown_code(lines: Iterable[str], language: str = "") -> list[str]:
    """The lines of a block of code; each is kept as it is."""
    shown = [" ".join(line.splitlines()) for line in lines]
    if any(re.search(r"<[A-Za-z/!?]", line) for line in shown):
        return ["<pre>", *map(html.escape, shown), "</pre>"]  # inert in viewers without fences, too
    longest = max((len(run) for run in re.findall("`+", "\n".join(shown))), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, *shown, fence]
