r"""What a pre-tokenizer's regular expression can match across two characters.

Byte-level tokenizers cut text into pieces by a pattern like GPT-2's, ` ?\p{L}+| ?\p{N}+|\s+`, whose
matches are found from left to right. If no match can hold `x` directly followed by `y`, and `x`
alone is a match, then every text has a border between the two, and what stands on one side of it
does not change the pieces on the other. `Pattern` decides that from the pattern's source, for the
subset of Oniguruma's syntax that tokenizers use; what it does not know it refuses.

The atoms of an alternative (character classes and single characters) are matched in order. So `x`
and `y` can be neighbours in a match only if an atom accepts `x`, and one that may follow it accepts
`y`. Which characters an atom accepts is asked of the library's own engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_ESCAPE = re.compile(r"\\(?:[pP]\{\^?[\w ]+\}|x[0-9A-Fa-f]{2}|x\{[0-9A-Fa-f]+\}|u[0-9A-Fa-f]{4}|.)")
_QUANTIFIER = re.compile(r"(?:[?*+]|\{(\d*)(?:,\d*)?\})[?+]?")
_GROUP = re.compile(r"\(\?(?:(i)|>)?:?|\((?!\?)")
_END = "$"
_START, _NEVER = r"\A", "(?!)"
_UNKNOWN_ESCAPES = frozenset("ABbGKkRXZzgy123456789")


class UnknownSyntaxError(ValueError):
    """The pattern uses syntax whose matches are not analysed."""


@dataclass(frozen=True)
class _Atom:
    """A character class or a character, or what looks ahead without matching.

    Attributes:
        source: its regular expression.
        follower: number of the first atom that may match the next character.
        looks_ahead: whether it looks at the next character and matches nothing.
        ignore_case: whether it is in a group `(?i:...)`.
    """

    source: str
    follower: int
    looks_ahead: bool = False
    ignore_case: bool = False


class Pattern:
    """A regular expression of a pre-tokenizer.

    Raises:
        UnknownSyntaxError: the analysis does not cover the expression.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._alternatives = _Parser(source).alternatives()
        try:
            self.joins("a", "b")
        except Exception as error:  # the engine raises nothing narrower
            raise UnknownSyntaxError(f"`{source}` has parts that the engine refuses") from error

    def joins(self, x: str, y: str) -> bool:
        """Whether a match may hold `x` directly followed by `y`, or depend on what follows `x`."""
        return any(
            after.looks_ahead or _accepts(after, y)
            for atoms in self._alternatives
            for before in atoms
            if not before.looks_ahead and _accepts(before, x)
            for after in atoms[before.follower :]
        )

    def matches(self, x: str) -> bool:
        """Whether the character is a match by itself, and so is never left out by matches."""
        return _removes(self._source.replace(_START, _NEVER), x)


def _accepts(atom: _Atom, char: str) -> bool:
    if atom.ignore_case and not char.isascii() and {char.lower(), char.upper()} != {char}:
        return True  # folding case may make several characters of one
    return _removes(f"(?i:{atom.source})" if atom.ignore_case else atom.source, char)


@lru_cache(maxsize=65536)
def _removes(source: str, char: str) -> bool:
    from tokenizers import Regex, pre_tokenizers

    return not pre_tokenizers.Split(Regex(source), "removed").pre_tokenize_str(char)


class _Parser:
    """Reads a pattern into the atoms of its alternatives at the top."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._ignore_case = False

    def alternatives(self) -> list[list[_Atom]]:
        """The atoms of each alternative, in order."""
        found = []
        for atoms, length in self._branches():
            if length == 0:
                raise UnknownSyntaxError(f"`{self._source}` can match the empty text")
            found.append(atoms)
        if self._at < len(self._source):
            raise UnknownSyntaxError(f"`{self._source}` closes a group that it does not open")
        return found

    def _branches(self) -> Iterator[tuple[list[_Atom], int]]:
        """Each branch up to the group's end: its atoms, and the least characters it matches."""
        while True:
            yield self._branch()
            if not self._source.startswith("|", self._at):
                return
            self._at += 1

    def _branch(self) -> tuple[list[_Atom], int]:
        atoms: list[_Atom] = []
        length = 0
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            length += self._element(atoms)
        return atoms, length

    def _element(self, atoms: list[_Atom]) -> int:
        """Appends an atom or a group; gives the least number of characters that it matches."""
        first, length = len(atoms), 1
        if self._source.startswith(("(?!", "(?="), self._at):
            self._look_ahead(atoms)
            return 0
        if self._source[self._at] == _END:
            self._at += 1
            atoms.append(_Atom(_END, first + 1, looks_ahead=True))
            return 0
        if self._source.startswith(_START, self._at):  # matches nothing, and not after `x`
            self._at += len(_START)
            return 0
        if self._source[self._at] == "(":
            length = self._group(atoms)
        else:
            atoms.append(_Atom(self._single(), first + 1, ignore_case=self._ignore_case))
        quantifier = _QUANTIFIER.match(self._source, self._at)
        if quantifier is None:
            return length
        self._at = quantifier.end()
        if quantifier[0] != "?":  # it may begin again
            atoms[first:] = [
                _Atom(a.source, min(a.follower, first), a.looks_ahead, a.ignore_case)
                for a in atoms[first:]
            ]
        least = 0 if quantifier[0][0] in "?*" else int(quantifier[1] or quantifier[0][0] == "+")
        return length * least

    def _look_ahead(self, atoms: list[_Atom]) -> None:
        self._at += len("(?!")
        atoms.append(_Atom(self._single(), len(atoms) + 1, looks_ahead=True))
        if not self._source.startswith(")", self._at):
            raise UnknownSyntaxError(f"`{self._source}` looks ahead more than one character")
        self._at += 1

    def _group(self, atoms: list[_Atom]) -> int:
        opening = _GROUP.match(self._source, self._at)
        if opening is None or (opening[0].startswith("(?") and opening[0][-1] not in ":>"):
            raise UnknownSyntaxError(f"`{self._source}` has a kind of group that is not known")
        self._at = opening.end()
        outside, self._ignore_case = self._ignore_case, self._ignore_case or bool(opening[1])
        shortest = None
        for inner, length in self._branches():
            shift = len(atoms)
            atoms += [
                _Atom(a.source, a.follower + shift, a.looks_ahead, a.ignore_case) for a in inner
            ]
            shortest = length if shortest is None else min(shortest, length)
        self._ignore_case = outside
        if not self._source.startswith(")", self._at):
            raise UnknownSyntaxError(f"`{self._source}` does not close a group")
        self._at += 1
        return shortest or 0

    def _single(self) -> str:
        """The source of one character class, escape or character."""
        char = self._source[self._at]
        if char == "[":
            return self._class()
        if char == "\\":
            escape = _ESCAPE.match(self._source, self._at)
            if escape is None or escape[0][1] in _UNKNOWN_ESCAPES:
                raise UnknownSyntaxError(f"`{self._source}` has an escape that is not known")
            self._at = escape.end()
            return escape[0]
        if char in "^*+?{":
            raise UnknownSyntaxError(f"`{self._source}` has `{char}` where it is not known")
        if self._ignore_case and not char.isascii():
            raise UnknownSyntaxError(f"`{self._source}` ignores the case of `{char}`")
        self._at += 1
        return char

    def _class(self) -> str:
        start, depth = self._at, 0
        while self._at < len(self._source):
            char = self._source[self._at]
            self._at += 2 if char == "\\" else 1
            depth += (char == "[") - (char == "]")
            if depth == 0:
                return self._source[start : self._at]
        raise UnknownSyntaxError(f"`{self._source}` does not close a character class")
