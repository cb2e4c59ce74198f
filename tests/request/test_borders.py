"""Borders are safe where they are said to be, and nothing is said of what is not understood."""

from __future__ import annotations

import sys
import unicodedata

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers

from itemwise.request.borders import Borders, _starts, _stays
from itemwise.request.pattern import Pattern, UnknownSyntaxError
from tests.request.kinds import DEEPSEEK, FRAGMENTS, GPT4O, KINDS, LLAMA3, QWEN2, backend_of

# Like that of the demo model.
DEMO = (
    r"\Aquery:|\n(?:item|match):| (?:a|the|yes)(?!\p{L})| ?\p{L}{1,2}| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]|\s"
)
PATTERNS = {
    "qwen2": QWEN2,
    "llama3": LLAMA3,
    "gpt4o": GPT4O,
    "deepseek": "|".join(DEEPSEEK),
    "demo": DEMO,
}


@pytest.mark.parametrize(
    ("x", "y", "joined"),
    [
        ("a", " ", False),
        ("a", "b", True),
        ("a", "1", False),
        (".", "a", True),  # a letter takes one sign before it
        (".", "\n", True),
        (".", " ", False),
        ("好", "，", False),
        ("'", "s", True),
        ("\n", "a", True),  # spaces look at what follows them
    ],
)
def test_what_the_pattern_of_qwen_joins(x: str, y: str, joined: bool) -> None:
    assert Pattern(QWEN2).joins(x, y) is joined


@pytest.mark.parametrize("name", sorted(PATTERNS))
@given(
    left=st.lists(st.sampled_from(FRAGMENTS)).map("".join),
    pair=st.tuples(*[st.sampled_from(sorted(set("".join(FRAGMENTS))))] * 2),
    right=st.lists(st.sampled_from(FRAGMENTS)).map("".join),
)
def test_matches_on_one_side_do_not_depend_on_the_other(
    name: str, left: str, pair: tuple[str, str], right: str
) -> None:
    pattern, (x, y) = Pattern(PATTERNS[name]), pair
    if pattern.joins(x, y) or not pattern.matches(x):
        return
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")

    def pieces(text: str) -> list[str]:
        return [piece for piece, _ in split.pre_tokenize_str(text)]

    after = pieces(x + y + right)[len(pieces(x)) :]
    assert pieces(left + x + y + right) == pieces(left + x) + after


@pytest.mark.parametrize(
    "source",
    ["a*", r"(?<=a)b", "(?i)ab", r"\bfoo", "^a", "a(?!bc)", r"\A", "(a", "a)", r"(.)\1", "[a"],
)
def test_unknown_syntax_is_refused(source: str) -> None:
    with pytest.raises(UnknownSyntaxError):
        Pattern(source)


def test_characters_that_are_never_composed() -> None:
    parts = [
        unicodedata.decomposition(chr(code)).split()
        for code in range(sys.maxunicode + 1)
        if not 0xD800 <= code < 0xE000
    ]
    composed = [part for part in parts if len(part) == 2 and not part[0].startswith("<")]
    assert len(composed) > 900
    for first, second in composed:
        assert not _stays(chr(int(first, 16)))
        assert not _starts(chr(int(second, 16)))
    for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)):  # parts of Hangul syllables
        assert not _starts(chr(code))


def test_space_after_a_letter_is_a_border_for_known_kinds() -> None:
    for kind in set(KINDS) - {"unknown"}:
        assert Borders(backend_of(kind), []).is_safe("e", " "), kind


def test_kind_that_is_not_known_has_no_border() -> None:
    assert not Borders(backend_of("unknown"), []).known
    scripts = tokenizers.Tokenizer(models.BPE())
    scripts.pre_tokenizer = pre_tokenizers.UnicodeScripts()
    assert not Borders(scripts, []).known


def test_border_is_not_within_an_added_token_nor_after_one() -> None:
    borders = Borders(backend_of("qwen"), [tokenizers.AddedToken("a b!", normalized=False)])
    assert not borders.is_safe("a", " ")
    assert not borders.is_safe("!", " ")
    assert borders.is_safe("c", " ")
