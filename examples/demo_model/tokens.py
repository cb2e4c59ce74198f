"""The demo model's tokenizer, and pairs as token ids with what each token should know.

Words are read as pairs of letters from their start, so that words never seen are read as well as
others; function words and the frame of the template are one token each.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from data import FUNCTION_WORDS, MAX_SLOTS, Pair, Piece, same_word

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE: dict[str, Any] = {
    "query": "query: {query}\nitem:",
    "item": " {item}\nmatch:",
    "labels": [" yes", " no"],
}
FRAME = ("query:", "\nitem:", "\nmatch:")
IGNORED = -100  # a token that an auxiliary loss leaves out
_PATTERN = (
    r"\Aquery:|\n(?:item|match):| (?:{words})(?!\p{{L}})"
    r"| ?\p{{L}}{{1,2}}| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]|\s"
)


def build_tokenizer() -> tokenizers.Tokenizer:
    """Lower case; one token a function word, a pair of letters, or else a byte."""
    letters = string.ascii_lowercase
    pairs = [*letters, *(one + two for one in letters for two in letters)]
    whole = [*FRAME, *(" " + word for word in sorted(FUNCTION_WORDS))]
    whole += [space + pair for space in ("", " ") for pair in pairs]
    vocab = {token: place for place, token in enumerate(SPECIAL_TOKENS)}
    for token in (*sorted(pre_tokenizers.ByteLevel.alphabet()), *map(_visible, whole)):
        vocab.setdefault(token, len(vocab))
    model = models.BPE(vocab=vocab, merges=[], ignore_merges=True)
    tokenizer = tokenizers.Tokenizer(model)
    pattern = _PATTERN.format(words="|".join(sorted(FUNCTION_WORDS)))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, special=True) for t in SPECIAL_TOKENS])
    return tokenizer


def _visible(text: str) -> str:
    """Text as byte-level vocabularies write it."""
    return text.replace(" ", "Ġ").replace("\n", "Ċ")


@dataclass(frozen=True)
class Encoded:
    """A pair in tokens.

    Attributes:
        ids: int64 [T], the template filled in.
        prefix: int64 [T], bit k set where word k of the query starts like the item's word so far;
            IGNORED outside of the item's content words.
        ended: int64 [T], after each content word of the item: 1 + the query's word that it is, or
            0 for none; IGNORED elsewhere.
        present: float32 [MAX_SLOTS], 1 where the item has that word of the query; IGNORED where
            the query has no such word.
        target: P(yes) to learn.
    """

    ids: np.ndarray[Any, np.dtype[np.int64]]
    prefix: np.ndarray[Any, np.dtype[np.int64]]
    ended: np.ndarray[Any, np.dtype[np.int64]]
    present: np.ndarray[Any, np.dtype[np.float32]]
    target: float


class Encoder:
    """Turns pairs into tokens, piece by piece: the tokens that the filled-in template has."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._vocab = tokenizer.get_vocab()
        self._ids: dict[str, list[int]] = {}
        self._tokenizer = tokenizer

    def encode(self, pair: Pair) -> Encoded:
        """The pair in tokens, with the labels of the auxiliary losses."""
        ids: list[int] = []
        for piece in (Piece("query:"), *pair.query, Piece("\nitem:")):
            ids += self._piece(piece)
        prefix, ended = [IGNORED] * len(ids), [IGNORED] * len(ids)
        known = IGNORED  # of the word that ended just now
        for piece in (*pair.item, Piece("\nmatch:")):
            tokens = self._piece(piece)
            ended += [known] + [IGNORED] * (len(tokens) - 1)
            known = IGNORED
            if piece.word is None:
                prefix += [IGNORED] * len(tokens)
            else:
                prefix += _prefix_bits(piece.word, pair.words)
                known = _slot(piece.word, pair.words)
            ids += tokens
        present = np.full(MAX_SLOTS, IGNORED, np.float32)
        present[: len(pair.present)] = pair.present
        return Encoded(np.array(ids), np.array(prefix), np.array(ended), present, pair.target)

    def _piece(self, piece: Piece) -> list[int]:
        if piece.word is None:
            if piece.text not in self._ids:
                self._ids[piece.text] = self._tokenizer.encode(piece.text).ids
            return self._ids[piece.text]
        space = "Ġ" if piece.text[0] == " " else ""
        first, *others = _chunks(piece.word)
        return [self._vocab[space + first], *(self._vocab[other] for other in others)]


def _chunks(word: str) -> list[str]:
    return [word[at : at + 2] for at in range(0, len(word), 2)]


def _prefix_bits(word: str, words: Sequence[str]) -> list[int]:
    """For each chunk of `word`: the set, as bits, of the `words` that start like it so far."""
    return [
        sum(1 << slot for slot, other in enumerate(words) if other.startswith(word[: at + 2]))
        for at in range(0, len(word), 2)
    ]


def _slot(word: str, words: Sequence[str]) -> int:
    return next((1 + slot for slot, other in enumerate(words) if same_word(word, other)), 0)
