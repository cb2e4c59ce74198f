"""The held-out set: queries of real words that training never saw, ten graded items each."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass

from data import flip_number, near_miss, same_word
from words import HELD_OUT_ADJECTIVES, HELD_OUT_LOOKALIKES, HELD_OUT_NOUNS, HELD_OUT_VERBS

ITEMS_PER_QUERY = 10
SEED = 2024

WORDS = {"noun": HELD_OUT_NOUNS, "adjective": HELD_OUT_ADJECTIVES, "verb": HELD_OUT_VERBS}
# By number of content words, {}-fields by kind.
QUERIES = {
    1: ("{noun}", "{noun}", "the {noun}", "what is a {noun}"),
    2: (
        "{adjective} {noun}",
        "{noun} {noun}",
        "{noun} for my {noun}",
        "how to {verb} a {noun}",
        "{noun} and {noun}",
    ),
    3: (
        "{adjective} {noun} {noun}",
        "{adjective} {noun} for the {noun}",
        "{verb} {adjective} {noun}",
        "how do I {verb} a {noun} with a {noun}",
        "{noun} {noun} {noun}",
    ),
    4: (
        "{adjective} {noun} for {adjective} {noun}",
        "{verb} {noun} without {noun} {noun}",
        "{adjective} {adjective} {noun} with {noun}",
        "{noun} {noun} {noun} {noun}",
    ),
}
TITLES = (
    "{adjective} {noun}",
    "{adjective} {noun} with {adjective} {noun}",
    "{noun}, {adjective}, 40 cm",
    "{noun} for {noun} and {noun}",
    "{noun} {noun} ({adjective})",
    "{adjective} {noun} - 3 pack",
    "{adjective}, {adjective} {noun} in a {noun}",
    "the {noun} {noun}: {adjective} and {adjective}",
    "how to {verb} your {noun}",
    "how to {verb} a {noun} without a {noun}",
    "why does my {adjective} {noun} not {verb}?",
    "{verb} the {noun} on your {noun}",
    "where do I {verb} or {verb} a {noun}",
)


@dataclass(frozen=True)
class GradedQuery:
    """A query and its items.

    Attributes:
        query: as a user would type it.
        words: its content words.
        items: titles of products and help articles.
        fractions: for each item the share of `words` in it; 1 is a match.
    """

    query: str
    words: tuple[str, ...]
    items: tuple[str, ...]
    fractions: tuple[float, ...]


@dataclass(frozen=True)
class _Word:
    """A content word and its part of speech, a key of `WORDS`."""

    text: str
    kind: str


class _Maker:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def query(self, num_words: int) -> GradedQuery:
        form = self._rng.choice(QUERIES[num_words])
        words: list[_Word] = []
        for kind in _kinds(form):
            words.append(self._other(kind, words))
        contents = [self._content(words, change) for change in self._changes(num_words)]
        self._rng.shuffle(contents)
        titles, fractions = [], []
        for content in contents:
            title, said = self._title(content, words)
            present = [any(same_word(word.text, other) for other in said) for word in words]
            titles.append(title)
            fractions.append(sum(present) / num_words)
        text = _fill(form, words)
        return GradedQuery(
            text, tuple(word.text for word in words), tuple(titles), tuple(fractions)
        )

    def _changes(self, num_words: int) -> list[str]:
        """What is done to the query's words for each item: one to four are matches."""
        changes = ["same", "reordered", "plural", "reordered"][: self._rng.randint(1, 4)]
        changes += ["one replaced", "look-alikes"]
        if num_words > 1:
            changes += ["one missing", "one replaced", "one kept"]
        changes += ["look-alikes", *["none"] * ITEMS_PER_QUERY]
        return changes[:ITEMS_PER_QUERY]

    def _content(self, words: Sequence[_Word], change: str) -> list[_Word]:
        rng = self._rng
        chosen = list(words)
        at = rng.randrange(len(chosen))
        if change == "reordered":
            rng.shuffle(chosen)
        elif change == "plural":
            chosen = [self._flipped(word) for word in chosen]
        elif change == "one replaced":
            chosen[at] = self._lookalike(chosen[at], words)
        elif change == "one missing":
            chosen.pop(at)
        elif change == "one kept":
            chosen = [chosen[at]]
        elif change == "look-alikes":
            chosen = [self._lookalike(word, words) for word in chosen]
        elif change == "none":
            chosen = []
        return chosen

    def _other(self, kind: str, words: Sequence[_Word]) -> _Word:
        """A word that is none of `words`, every second time one that has look-alikes."""
        while True:
            texts = WORDS[kind]
            if self._rng.random() < 0.5:
                texts = [text for text in texts if text in HELD_OUT_LOOKALIKES] or texts
            word = _Word(self._rng.choice(texts), kind)
            if self._rng.random() < 0.15:
                word = self._flipped(word)
            if _is_new(word.text, words):
                return word

    def _flipped(self, word: _Word) -> _Word:
        """The plural of a singular noun, the singular of a plural one."""
        if word.kind != "noun":
            return word
        return _Word(flip_number(word.text, self._rng), word.kind)

    def _lookalike(self, word: _Word, words: Sequence[_Word]) -> _Word:
        """A real word where there is one, else the word with a letter or its end changed."""
        while True:
            real = HELD_OUT_LOOKALIKES.get(word.text)
            if real and self._rng.random() < 0.8:
                text = self._rng.choice(real)
            else:
                text = near_miss(word.text, self._rng)
            if _is_new(text, words):
                return _Word(text, word.kind)

    def _title(self, content: Sequence[_Word], words: Sequence[_Word]) -> tuple[str, list[str]]:
        """A title with all of `content`, and the content words in it; others fill its form."""
        form = self._rng.choice(TITLES)
        left: list[_Word] = list(content)
        used: list[_Word] = []
        for kind in _kinds(form):
            fitting = [word for word in left if word.kind == kind]
            if fitting:
                left.remove(fitting[0])
            used.append(fitting[0] if fitting else self._other(kind, [*words, *used]))
        title = _fill(form, used)
        if left:
            end = "?" if title.endswith("?") else ""
            title = title.removesuffix("?") + ", " + " ".join(word.text for word in left) + end
        return title[0].upper() + title[1:], [word.text for word in (*used, *left)]


def _kinds(form: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(form) if name]


def _fill(form: str, words: Sequence[_Word]) -> str:
    for word in words:
        form = form.replace("{" + word.kind + "}", word.text, 1)
    return form


def _is_new(text: str, words: Sequence[_Word]) -> bool:
    return not any(same_word(text, word.text) for word in words)


def held_out_set(num_queries: int = 240, seed: int = SEED) -> list[GradedQuery]:
    """Graded queries of one to four content words, the same ones for the same seed."""
    maker = _Maker(random.Random(seed))
    return [maker.query(1 + place % 4) for place in range(num_queries)]
