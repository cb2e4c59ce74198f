"""Texts of others stay texts in Markdown, as a parser reads it."""

from __future__ import annotations

import html

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from itemwise.validation.markdown import markdown_code, markdown_table, markdown_text

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "<!-- comment -->",
    "&lt;b&gt; &#60;b&#62;",
    "a\n# heading\n\n- list\n\n    code",
    "a\u2028# b",
    "# heading",
    "[text](http://example.com)",
    "![image](x.png)",
    "<http://example.com>",
    "see https://example.com/x",
    "`code` and ``` fence",
    "*a* **b** _c_ __d__ ~~e~~",
    "back\\slash \\<b>",
    "a | b | c",
    "```\nend of the block",
    "[ref]: http://example.com",
    "{{7*7}} {% raw %} $x$",
    "- list",
    "+ list",
    "1. list",
    "> quote",
    "---",
    "===",
]
ORDINARY = [
    "Qwen/Qwen3-0.6B",
    "same_length_isolation_zero",
    "<= 0.02",
    "== 0",
    "4.00x",
    "a & b",
    "2026-11-26 on AMD EPYC, 2 cores; 5 %",
]


def tokens(text: str) -> list[Token]:
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": False})
    return [token for block in parser.parse(text) for token in (block, *(block.children or ()))]


def kinds(text: str) -> set[str]:
    return {token.type for token in tokens(text)}


def shown(text: str) -> str:
    """What a reader of the page sees."""
    inline = [token for token in tokens(text) if token.type in ("text", "text_special")]
    return "".join(token.content for token in inline)


@pytest.mark.parametrize("text", [*HOSTILE, *ORDINARY])
def test_text_is_shown_as_it_is(text: str) -> None:
    line = markdown_text(text)
    assert "\n" not in line
    assert kinds(line) <= {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
    assert shown(line) == " ".join(text.split())
    assert kinds(f"# {line}") - kinds("# a") <= {"text_special"}


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays_readable_in_the_source(text: str) -> None:
    assert markdown_text(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_cells_stay_in_their_columns(text: str) -> None:
    table = "\n".join(markdown_table(("a", "b"), [(text, 1), (2, text)]))
    found = tokens(table)
    assert sum(token.type == "td_open" for token in found) == 4
    assert sum(token.type == "th_open" for token in found) == 2
    assert not {"html_inline", "html_block", "link_open", "image"} & kinds(table)


@pytest.mark.parametrize("text", HOSTILE)
def test_code_stays_in_its_block(text: str) -> None:
    (block,) = tokens("\n".join(markdown_code([text, "last"], "sh")))
    content = f"{' '.join(text.splitlines())}\nlast\n"
    if block.type == "html_block":
        assert block.content == f"<pre>\n{html.escape(content)}</pre>"
    else:
        assert (block.type, block.info, block.content) == ("fence", "sh", content)
