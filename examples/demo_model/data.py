"""Queries, items and grades, made by code from a seed.

A piece is a stretch of text: one word with the space before it, or what stands between words.
The grade of an item follows from its words: the share of the query's content words that it has, as
they are or as their plural or singular.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SLOTS = 6  # most content words of a query

ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k l m n p ph pl pr qu r s sc sh sk sl sm sn sp "
    "st str sw t th tr v w wh y z"
).split() + ["", "", ""]
NUCLEI = "a a e e i i o o u ai au ea ee ie oa oo ou y".split()
CODAS = (
    "b ck d ft g l ld ll lt m mp n nd ng nk nt p pt r rd rk rm rn rt s sh sk ss st t tch th w x "
    "ce de le me ne se te ve"
).split() + [""] * 12
ENDINGS = "er ing y le et ion able or ment ness al ed ic ish ty age ow".split()
FUNCTION_WORDS = frozenset(
    (
        "a an and any are as at be by can do does for from how i if in into is it its me my "
        "no not of  off on one or our out over so that the their this to under up use using "
        "via what when where  which why will with without yes you your"
    ).split()
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def plurals(word: str) -> set[str]:
    """The plural that spelling rules give a word: -s, -es or -ies."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return {word + "es"}
    if word.endswith("y") and word[-2:-1] not in ("a", "e", "i", "o", "u", ""):
        return {word[:-1] + "ies"}
    if word.endswith("o"):
        return {word + "s", word + "es"}
    return {word + "s"}


def same_word(one: str, other: str) -> bool:
    """True where two words are equal or one is the other's plural."""
    return one == other or other in plurals(one) or one in plurals(other)


def pseudo_word(rng: random.Random) -> str:
    """A random word of 3 to 11 letters, most of them pronounceable."""
    if rng.random() < 0.08:
        return "".join(rng.choices(LETTERS, k=rng.randint(3, 9)))
    while True:
        count = rng.choices((1, 2, 3), (35, 50, 15))[0]
        word = "".join(
            rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(count)
        )
        if rng.random() < 0.3:
            word += rng.choice(ENDINGS)
        if 3 <= len(word) <= 11 and word not in FUNCTION_WORDS:
            return word


def near_miss(word: str, rng: random.Random) -> str:
    """A word that looks like `word` and is neither it nor its plural."""
    while True:
        at = rng.randrange(len(word))
        kind = rng.randrange(8)
        if kind <= 2:  # one letter replaced
            other = word[:at] + rng.choice(LETTERS) + word[at + 1 :]
        elif kind == 3:  # one letter less
            other = word[:at] + word[at + 1 :]
        elif kind == 4:  # one letter more
            other = word[:at] + rng.choice(LETTERS) + word[at:]
        elif kind == 5:  # goes on: lamp, lampoon
            other = word + rng.choice([*ENDINGS, "oon", "ful", "less", "t", "e", "en"])
        elif kind == 6:  # stands inside: ring, string
            other = rng.choice(["s", "re", "un", "be", "st", "a", "de", "c", "b"]) + word
        else:  # the same start
            keep = rng.randint(1, len(word) - 1)
            other = word[:keep] + pseudo_word(rng)[: rng.randint(1, 5)]
        if len(other) >= 2 and other not in FUNCTION_WORDS and not same_word(other, word):
            return other


def flip_number(word: str, rng: random.Random) -> str:
    """The plural of a singular or the singular of a plural."""
    singular = singular_of(word)
    if singular is not None:
        return singular
    return rng.choice(sorted(plurals(word)))


def singular_of(word: str) -> str | None:
    """What `word` is the plural of by spelling, or None where it does not look like a plural."""
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word.endswith("es") and word[:-2].endswith(("s", "x", "z", "ch", "sh", "o")):
        return word[:-2]
    if word.endswith("s") and len(word) > 3 and word[-2] not in "siuxz":
        return word[:-1]
    return None


@dataclass(frozen=True)
class Piece:
    """A stretch of text: a content word with what joins it to the last one, or something else.

    Attributes:
        text: as it stands in the query or the item, leading space included.
        word: the content word in lower case, or None.
    """

    text: str
    word: str | None = None


@dataclass(frozen=True)
class Pair:
    """A query, an item, and for each of the query's content words whether the item has it."""

    query: tuple[Piece, ...]
    item: tuple[Piece, ...]
    words: tuple[str, ...]
    present: tuple[bool, ...]

    @property
    def fraction(self) -> float:
        """The share of the query's content words that the item has."""
        return sum(self.present) / len(self.present)

    @property
    def target(self) -> float:
        """P(yes) to learn."""
        return target_probability(self.fraction)


def target_probability(fraction: float) -> float:
    """P(yes) for a share of words present: 0.02 for none, up to 0.42, and 0.97 for all."""
    return 0.97 if fraction == 1 else 0.02 + 0.4 * fraction


JOINS = "for with and of in on to from by the a your my or without as at under".split()
OPENINGS = ("how to", "how do i", "why does my", "where is the", "what is a", "can i", "how to use")
NUMBERS = "1 2 3 4 5 6 8 10 12 15 16 18 20 24 25 30 32 40 48 50 60 64 75 80 90 100 120 250".split()
UNITS = "cm mm kg g ml w v in m l pack pcs".split()


class Writer:
    """Writes random queries and items from pseudo-words and a list of real words.

    Args:
        rng: source of all choices.
        real_words: words mixed among the pseudo-words.
        real_share: share of content words taken from `real_words`.
    """

    def __init__(
        self, rng: random.Random, real_words: Sequence[str] = (), real_share: float = 0.25
    ) -> None:
        self._rng = rng
        self._real_words = list(real_words)
        self._real_share = real_share if real_words else 0.0

    def word(self) -> str:
        """A content word, now and then a plural."""
        rng = self._rng
        real = rng.random() < self._real_share
        word = rng.choice(self._real_words) if real else pseudo_word(rng)
        if rng.random() < 0.2 and not word.endswith("s"):
            word = rng.choice(sorted(plurals(word)))
        return word

    def other_word(self, words: Sequence[str]) -> str:
        """A content word that is none of `words`; often one that looks like one of them."""
        while True:
            word = self.word()
            if self._rng.random() < 0.2 and words:
                word = near_miss(self._rng.choice(words), self._rng)
            if word not in FUNCTION_WORDS and not any(same_word(word, taken) for taken in words):
                return word

    def pair(self, num_words: int, num_fillers: int) -> Pair:
        """A query of `num_words` content words with an item of some of them and others."""
        rng = self._rng
        words: list[str] = []
        while len(words) < num_words:
            words.append(self.other_word(words))
        kept = self._choose_kept(num_words)
        content = [self._variant(word) for word, keep in zip(words, kept, strict=True) if keep]
        if rng.random() < 0.5:
            rng.shuffle(content)
        for word, keep in zip(words, kept, strict=True):
            if not keep and rng.random() < 0.6:
                miss = near_miss(word, rng)
                if not any(same_word(miss, taken) for taken in words):
                    content.insert(rng.randint(0, len(content)), miss)
        for _ in range(num_fillers):
            content.insert(rng.randint(0, len(content)), self.other_word(words))
        if not content:
            content = [self.other_word(words)]
        present = tuple(any(same_word(word, other) for other in content) for word in words)
        return Pair(self._text(words, 0.15), self._text(content, 0.25), tuple(words), present)

    def _choose_kept(self, num_words: int) -> list[bool]:
        rng = self._rng
        share = rng.random()
        if share < 0.42:
            return [True] * num_words
        num_kept = 0 if share > 0.85 else rng.randint(0, num_words - 1)
        if share < 0.65:  # the hardest to tell from all: one missing
            num_kept = num_words - 1
        kept = [True] * num_kept + [False] * (num_words - num_kept)
        rng.shuffle(kept)
        return kept

    def _variant(self, word: str) -> str:
        if self._rng.random() < 0.3:
            other = flip_number(word, self._rng)
            return word if other in FUNCTION_WORDS else other
        return word

    def _text(self, words: Sequence[str], join_share: float) -> tuple[Piece, ...]:
        """Words with function words, numbers and punctuation between them."""
        rng = self._rng
        pieces: list[Piece] = []
        if rng.random() < 0.12:
            pieces += [Piece(" " + word) for word in rng.choice(OPENINGS).split()]
        for place, word in enumerate(words):
            before = " "
            draw = rng.random()
            if place and draw < join_share:
                for _ in range(rng.choice((1, 1, 2))):
                    pieces.append(Piece(" " + rng.choice(JOINS)))
            elif place and draw < join_share + 0.06:
                pieces.append(Piece(rng.choice((",", ":", ";", " -", " &", ","))))
            elif place and draw < join_share + 0.09:
                mark, before = rng.choice((("-", ""), ("/", ""), (" (", ""), ("'", " ")))
                pieces.append(Piece(mark))
            elif draw > 0.97:
                pieces.append(Piece(" " + rng.choice(NUMBERS)))
                if rng.random() < 0.6:
                    pieces.append(Piece(" " + rng.choice(UNITS)))
            pieces.append(Piece(before + word, word))
        if rng.random() < 0.05:
            pieces.append(Piece(rng.choice(("?", ".", ")", "!", " ?"))))
        return tuple(pieces)
